"""Adapters as `peft` keeps them, trained on: their A and B as those of our leaves; see `bigjax.pretrained.peft`.

W + scale B A of a published matrix (out, in) is our x (W' + scale a b), a = A' (m, r) and b = B' (r, n).
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from flax import traverse_util

from bigjax.core.errors import UserError
from bigjax.core.matrices import as_matrix
from bigjax.core.rules import paths
from bigjax.pretrained.entry import Entry
from bigjax.pretrained.load import open_checkpoint, prefix_of
from bigjax.pretrained.peft import CONFIG, WEIGHTS, Adapter, is_adapter, read_adapters
from bigjax.pretrained.reader import read_json


class Thin(NamedTuple):
    """The adapter of one leaf: a (m, r), b (r, n), what a b is multiplied by, and DoRA's magnitudes (n,)."""

    a: np.ndarray
    b: np.ndarray
    scale: float
    magnitude: np.ndarray | None


def adapt_section(init: Mapping[str, Any], model: Mapping[str, Any]) -> tuple[dict[str, Any], ...]:
    """`config.adapt` of the adapters that `config.init` names: rank, scale, and which leaves.

    Args:
      init: the raw section. model: the values of `config.model`.

    Raises:
      UserError: there are none, they are damaged, or not of this model's leaves.
    """
    source = init.get("source", "")
    settings, thin, whole, known = _read(source, init.get("family") or "", model)
    rules = {path: one.a.shape[1] for path, one in thin.items()} | dict.fromkeys(whole, "train")
    return (
        {
            "type": "dora" if settings.get("use_dora") else "lora",
            "rank": settings["r"],
            "alpha": float(settings["lora_alpha"]),
            "rank_stabilized": bool(settings.get("use_rslora")),
            "rules": (*_together(rules, known), (".*", None)),
        },
    )


def begun(init: Any, model: Mapping[str, Any], part: Any, wanted: Any) -> dict[str, Any]:
    """The leaves of a parametrization as the adapters have them, laid out as `wanted`, its abstract ones.

    Args:
      init: the settings of `config.init`. part: a `bigjax.methods.lora.LoRA` or `DoRA`.

    Raises:
      UserError: as `adapt_section`; `config.adapt` chooses other leaves, or other ranks.
    """
    settings, thin, _, _ = _read(init.source, init.family, model)
    if (part.NAME == "dora") != bool(settings.get("use_dora")):
        raise UserError(f"config.adapt: {part.NAME}: {init.source} holds another kind of adapter")
    found = {}
    for path, (a, b, scale, magnitude) in thin.items():
        found[f"{path}/a"] = a
        found[f"{path}/b"] = b * np.float32(scale / part.scale(a.shape[1]))
        if magnitude is not None:
            found[f"{path}/m"] = magnitude
    leaves = paths(wanted)
    theirs = {path: x.shape for path, x in found.items()}
    ours = {path: tuple(x.shape) for path, x in leaves.items()}
    for path in sorted({*theirs, *ours}):
        if theirs.get(path) != ours.get(path):
            raise UserError(
                f"config.adapt: {part.NAME}: rules: {path} is {ours.get(path, 'none of ours')}; in "
                f"{init.source} it is {theirs.get(path, 'not there')}"
            )
    placed = {path: jax.device_put(found[path], like.sharding) for path, like in leaves.items()}
    return traverse_util.unflatten_dict(placed, sep="/")


def _read(
    source: str, name: str, model: Mapping[str, Any]
) -> tuple[dict[str, Any], dict[str, Thin], list[str], list[str]]:
    """(adapter_config.json, leaf -> its adapter, leaves that the folder has whole, all leaves that have a name)."""
    if not is_adapter(source):
        raise UserError(
            f"config.init.adapters: 'train' needs a folder with {CONFIG}; {source} is none"
        )
    if model.get("scan_layers"):
        raise UserError("config.init.adapters: 'train' needs config.model.scan_layers=False")
    settings = read_json(Path(os.path.expanduser(source)) / CONFIG)
    rank = settings.get("r")
    if not isinstance(rank, int) or isinstance(rank, bool) or rank < 1:
        raise UserError(f"{source}: {CONFIG}: r is {rank!r}, not a rank")
    published, family = open_checkpoint(source, name, merged=False)
    base, _, adapters, replaced = read_adapters(source)
    before = prefix_of(base, family)
    entries = {entry.name: entry for entry in family.entries(dict(model))}
    found: dict[str, Thin] = {}
    for tensor, adapter in adapters.items():
        short = tensor.removeprefix(before)
        if short not in entries:
            raise UserError(f"{source}: {WEIGHTS}: the adapter of '{tensor}' is of no leaf of ours")
        found |= _leaves(entries[short], adapter, published.shapes[short])
    whole = [
        _leaf(path)
        for tensor in replaced
        if (entry := entries.get(tensor.removeprefix(before)))
        for path in entry.paths
    ]
    known = [_leaf(path) for entry in entries.values() for path in entry.paths]
    return settings, found, whole, known


def _leaf(path: str) -> str:
    return path.partition("/")[2]


def _leaves(entry: Entry, adapter: Adapter, shape: tuple[int, ...]) -> dict[str, Thin]:
    """The adapters of the leaves that a published tensor becomes.

    Of several leaves each gets an A of its own, without the rows that it has nothing of.
    """
    A = adapter.a.reshape(len(adapter.a), -1)
    B = adapter.b.reshape(len(adapter.b), -1)
    rows = np.arange(np.prod(shape)).reshape(shape)
    found = {}
    for path, numbers in zip(entry.paths, entry.load(rows), strict=True):
        leaf = _leaf(path)
        _, m, n = as_matrix(leaf, numbers.shape)
        first, second = np.divmod(numbers.reshape(m, n), np.prod(shape[1:], dtype=int))
        # Which output and which input of the published matrix each number is of.
        outs, ins = (second, first) if adapter.turned(shape) else (first, second)
        if np.all(outs == outs[:1]) and np.all(ins == ins[:, :1]):
            a, b = A[:, ins[:, 0]].T, B[outs[0]].T
        elif np.all(outs == outs[:, :1]) and np.all(ins == ins[:1]) and adapter.magnitude is None:
            a, b = B[outs[:, 0]], A[:, ins[0]]
        else:
            raise UserError(f"{adapter.where}: is not of the matrix that {leaf} is")
        if len(entry.paths) > 1 and np.any(b):
            used = np.any(b, axis=1)
            a, b = a[:, used], b[used]
        scale = adapter.scale
        magnitude = None if adapter.magnitude is None else adapter.magnitude[outs[0]]
        found[leaf] = Thin(a, b, scale, magnitude)
    return found


def _together(rules: Mapping[str, Any], known: list[str]) -> list[tuple[str, Any]]:
    """The rules of single leaves as patterns over all numbered blocks, where these have the same."""
    found: dict[str, Any] = {}
    for path, rule in rules.items():
        pattern = re.sub(r"\d+", r"\\d+", path)
        alike = [other for other in known if re.fullmatch(pattern, other)]
        same = all(rules.get(other) == rule for other in alike)
        found[pattern if same else path] = rule
    return list(found.items())
