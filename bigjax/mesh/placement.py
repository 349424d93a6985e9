"""Where each parameter lies: regex -> rule, a rule being tactics applied in order, "tensor + fsdp".

A tactic is a pure function `(spec so far, mesh, path, leaf, names of its axes) -> spec`; a new one is
one small function and one line in `_tactic`. Nothing here touches a device.
"""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
from jax.sharding import Mesh, PartitionSpec

from bigjax.core import settings
from bigjax.core.errors import UserError, did_you_mean
from bigjax.core.rules import Rules, match_rules, paths

Spec = tuple[Any, ...]  # one entry a dimension: None, a mesh axis, or a tuple of them
Names = Sequence[str | None]  # Linen's logical axis names of a parameter, () where it has none
Tactic = Callable[[Spec, Mesh, str, Any, Names], Spec]

RULES = "use replicate, fsdp, fsdp:MIN_SIZE, logical, tensor (joined by +), or (None, 'tensor')"


class Vocabulary(NamedTuple):
    """What the words "tensor" and "logical" mean for one model.

    tensor: the model's own (regex -> rule) list; the first match holds, a path without one stays.
    logical: (name, mesh axis, tuple of them, or None) pairs; the first match holds.
    """

    tensor: Rules = ()
    logical: Sequence[tuple[str, Any]] = ()


def vocabulary(model: Any, options: settings.Sharding) -> Vocabulary:
    """A model's own words, from the class attributes TENSOR_RULES and LOGICAL_RULES; the config's first."""
    logical = (*options.logical, *getattr(model, "LOGICAL_RULES", ()))
    return Vocabulary(getattr(model, "TENSOR_RULES", ()), logical)


class Placement(NamedTuple):
    """Where a parameter lies, and the rule that says so."""

    shape: tuple[int, ...]
    pattern: str
    rule: Any
    spec: PartitionSpec


def place(
    rules: Rules,
    params: Any,
    mesh: Mesh,
    names: Mapping[str, Names] | None = None,
    words: Vocabulary | None = None,
) -> dict[str, Placement]:
    """Parameter path -> where it lies, from the first rule that matches the path.

    Args:
      rules: (regex, rule) pairs; a rule is a tuple with an entry a dimension, such as
        (None, "tensor"), or the words replicate, fsdp, fsdp:MIN_SIZE, logical, tensor, several of
        them joined by " + " and applied in order.
      params: arrays or shapes.
      names: parameter path -> logical axis names (see `logical_names`).
      words: what "tensor" and "logical" mean.

    Raises:
      UserError: no rule matches, a rule is unknown, or it cannot split its parameter evenly.
    """
    matched = match_rules(
        [(pair[0], pair) if len(pair) == 2 else pair for pair in rules],
        params,
        what="config.sharding.rules",
    )
    placed = {}
    for path, leaf in paths(params).items():
        pattern, rule = matched[path]
        own, first = (names or {}).get(path, ()), _of_stages(path, leaf, mesh, names or {})
        spec: Spec = (*first, *(None,) * (len(leaf.shape) - len(first)))
        for tactic in tactics(rule, words or Vocabulary()):
            spec = tactic(spec, mesh, path, leaf, own)
        spec = (*first, *spec[len(first) :])
        while spec and spec[-1] is None:
            spec = spec[:-1]
        placed[path] = Placement(leaf.shape, pattern, rule, PartitionSpec(*spec))
    return placed


def _of_stages(path: str, leaf: Any, mesh: Mesh, names: Mapping[str, Names]) -> Spec:
    """("pipeline",) for stacked layers on a mesh of stages, whatever the rule says of the rest.

    Raises:
      UserError: the stages do not share the layers evenly.
    """
    stages = mesh.shape.get("pipeline", 1)
    if stages == 1 or tuple(names.get(path, ()))[:1] != ("layers",):
        return ()
    if leaf.shape[0] % stages:
        raise UserError(
            f"config.mesh.pipeline: {stages} stages do not share {leaf.shape[0]} layers evenly; "
            f"{any_of(divisors(leaf.shape[0]))} would"
        )
    return ("pipeline",)


def logical_names(boxed: Any) -> dict[str, Names]:
    """Parameter path -> Linen's logical axis names, from parameters still in their boxes."""
    return {path: tuple(spec) for path, spec in paths(nn.get_partition_spec(boxed)).items()}


def tactics(rule: Any, words: Vocabulary) -> list[Tactic]:
    """The tactics that a rule stands for, in order."""
    if isinstance(rule, tuple | list):
        return [functools.partial(explicit, tuple(rule))]
    if not isinstance(rule, str):
        raise UserError(f"config.sharding.rules: {rule!r} is no rule; {RULES}")
    return [_tactic(word.strip(), words) for word in rule.split("+")]


def _tactic(word: str, words: Vocabulary) -> Tactic:
    name, colon, number = word.partition(":")
    if name == "fsdp" and (number.isdigit() or not colon):
        return functools.partial(fsdp, int(number or 0))
    if word == "replicate":
        return replicate
    if word == "logical":
        return functools.partial(logical, words.logical)
    if word == "tensor":
        return functools.partial(tensor, words)
    known = ("replicate", "fsdp", "logical", "tensor")
    raise UserError(
        f"config.sharding.rules: '{word}' is no rule{did_you_mean(name, known)}; {RULES}"
    )


def replicate(spec: Spec, mesh: Mesh, path: str, leaf: Any, names: Names) -> Spec:
    """A whole copy on every device."""
    return (None,) * len(spec)


def fsdp(min_size: int, spec: Spec, mesh: Mesh, path: str, leaf: Any, names: Names) -> Spec:
    """The largest free dimension that the fsdp axis divides; a leaf of fewer elements stays as it is.

    Zhao et al. 2023, "PyTorch FSDP"; Rajbhandari et al. 2020, "ZeRO", stage 3.
    """
    size = mesh.shape["fsdp"]
    if size == 1 or math.prod(leaf.shape) < min_size or "fsdp" in axes_of(spec):
        return spec
    for dim in sorted(range(len(spec)), key=lambda d: -leaf.shape[d]):
        if spec[dim] is None and leaf.shape[dim] >= size and leaf.shape[dim] % size == 0:
            return (*spec[:dim], "fsdp", *spec[dim + 1 :])
    return spec


def logical(
    table: Sequence[tuple[str, Any]], spec: Spec, mesh: Mesh, path: str, leaf: Any, names: Names
) -> Spec:
    """Every axis where the table sends its logical name; names that the table lacks stay free."""
    if not names:
        return spec
    axes = [next((axes for name, axes in table if name == own), None) for own in names]
    return explicit(tuple(axes), spec, mesh, path, leaf, names)


def tensor(words: Vocabulary, spec: Spec, mesh: Mesh, path: str, leaf: Any, names: Names) -> Spec:
    """The model's own tensor-parallel rule for this parameter."""
    if mesh.shape["tensor"] > 1 and not words.tensor:
        raise UserError(
            "config.sharding.rules: this model ships no TENSOR_RULES for the rule 'tensor'; "
            "give its parameters explicit rules such as (None, 'tensor'), or mesh.tensor=1"
        )
    for pattern, rule in words.tensor:
        if re.fullmatch(pattern, path):
            for tactic in tactics(rule, words):
                spec = tactic(spec, mesh, path, leaf, names)
            return spec
    return spec


def explicit(
    rule: tuple[Any, ...], spec: Spec, mesh: Mesh, path: str, leaf: Any, names: Names
) -> Spec:
    """As the rule says, an entry a dimension; mesh axes of size 1 are left out.

    Raises:
      UserError: more entries than dimensions, no such mesh axis, or an uneven split.
    """
    where = f"config.sharding.rules: {rule} (for {path} {leaf.shape})"
    if len(rule) > len(leaf.shape):
        raise UserError(f"{where}: more entries than dimensions")
    entries = []
    for size, axes in zip(leaf.shape, rule, strict=False):
        axes = (axes,) if isinstance(axes, str) else tuple(axes or ())
        for axis in axes:
            if axis not in mesh.shape:
                hint = did_you_mean(axis, mesh.shape)
                raise UserError(
                    f"{where}: no mesh axis '{axis}'{hint}; axes: {', '.join(mesh.shape)}"
                )
        axes = tuple(axis for axis in axes if mesh.shape[axis] > 1)
        parts = math.prod(mesh.shape[axis] for axis in axes)
        if size % parts:
            split = " x ".join(f"{axis} {mesh.shape[axis]}" for axis in axes)
            raise UserError(
                f"{where}: {split} does not divide dimension {size}; {any_of(divisors(size))} would"
            )
        entries.append(axes if len(axes) > 1 else axes[0] if axes else None)
    used = axes_of(entries)
    if len(used) != len(set(used)):
        raise UserError(f"{where}: a mesh axis can split one dimension only")
    return (*entries, *(None,) * (len(leaf.shape) - len(entries)))


def axes_of(spec: Sequence[Any]) -> list[str]:
    """Every mesh axis that a spec uses."""
    return [axis for axes in spec for axis in ((axes,) if isinstance(axes, str) else axes or ())]


def divisors(number: int) -> list[int]:
    return [n for n in range(1, number + 1) if number % n == 0]


def any_of(numbers: Sequence[int]) -> str:
    """The numbers as a reader would list a choice, "1, 2 or 4"."""
    return ", ".join(map(str, numbers[:-1])) + " or " * (len(numbers) > 1) + str(numbers[-1])
