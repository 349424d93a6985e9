"""Which outputs of another run's model stand for this run's classes: by their names, never by their number."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from bigjax.core.errors import UserError, did_you_mean
from bigjax.run.manifest import known_of


class Words(NamedTuple):
    """What the outputs of a run's model mean, as far as it is known.

    classes: their names, in order. tokenizer: fingerprint of what made its tokens.
    mapped: how many tokens of ours a vocabulary of the user's maps to its own; None: there is none.
    """

    classes: tuple[str, ...] | None = None
    tokenizer: str | None = None
    mapped: int | None = None


def words_of_run(folder: Path) -> Words:
    """As the newest start of a run's manifest tells."""
    known = known_of(folder)
    names = known.get("class_names")
    return Words(tuple(names) if names else None, known.get("tokenizer"))


def words_of_source(source: Any) -> Words:
    tokenizer = getattr(source, "tokenizer", None)
    return Words(source.class_names, getattr(tokenizer, "fingerprint", None))


def columns(
    ours: Words, theirs: Words, renamed: Mapping[str, str], key: str
) -> tuple[int, ...] | None:
    """The places of our classes among their outputs; None: all of them, as they are.

    Args:
      renamed: our name of a class -> theirs, where they differ.
      key: of the config, for messages.

    Raises:
      UserError: a class of ours is none of theirs (the nearest is named), two of ours are one of theirs,
        or the tokens are others.
    """
    if theirs.mapped is None and differ(ours.tokenizer, theirs.tokenizer):
        raise UserError(
            f"{key}: reads other tokens than this run: its tokenizer is {theirs.tokenizer[:12]}, "
            f"this run's {ours.tokenizer[:12]}; train one of them with the tokenizer of the other, or say "
            "in config.method.tokens which token is which"
        )
    for name in renamed:
        if name not in (ours.classes or ()):
            hint = did_you_mean(name, ours.classes or ())
            raise UserError(f"config.method.classes: this run has no class '{name}'{hint}")
    if ours.classes is None or theirs.classes is None:
        return None
    found = [_named(name, renamed, theirs.classes) for name in ours.classes]
    for name in found:
        if name not in theirs.classes:
            raise UserError(
                f"{key}: has no class '{name}'{did_you_mean(name, theirs.classes)}; it has "
                f"{', '.join(theirs.classes)}; config.method.classes says which of them is meant"
            )
    for name in found:
        both = [one for one, other in zip(ours.classes, found, strict=True) if other == name]
        if len(both) > 1:  # its chance would count twice
            raise UserError(
                f"config.method.classes: {' and '.join(both)} are both '{name}' of {key}; each needs its own"
            )
    same = tuple(found) == theirs.classes
    return None if same else tuple(theirs.classes.index(name) for name in found)


def differ(a: str | None, b: str | None) -> bool:
    return None not in (a, b) and a != b


def read_vocabulary(path: Path, theirs: int) -> np.ndarray:
    """The teacher's id of each token of ours, int32 (V,); theirs: how many tokens the teacher has.

    Raises:
      UserError: it is no such file.
    """
    try:
        ids = np.load(path, allow_pickle=False)
    except (OSError, ValueError) as error:
        raise UserError(f"config.method.tokens: {path} is no file .npy ({error})") from None
    if ids.ndim != 1 or ids.dtype.kind not in "iu" or not len(ids):
        raise UserError(
            f"config.method.tokens: {path} holds {ids.dtype} {ids.shape}, not whole numbers (V,)"
        )
    if ids.min() < 0 or ids.max() >= theirs:
        raise UserError(
            f"config.method.tokens: {path} names ids {ids.min()} to {ids.max()}; the teacher has {theirs}"
        )
    return ids.astype(np.int32)


@dataclass(frozen=True)
class Translated:
    """A model of texts that reads our tokens and speaks of ours, its own being `vocabulary/ids` (V,) of its
    variables. tokens: which of its inputs are tokens.
    """

    COLLECTION = "vocabulary"

    model: Any
    tokens: Sequence[int]

    def apply(self, variables: Any, *inputs: Any, **options: Any) -> Any:
        """As `nn.Module.apply`."""
        variables = dict(variables)
        ids = variables.pop(self.COLLECTION)["ids"]
        inputs = [ids[x] if place in self.tokens else x for place, x in enumerate(inputs)]
        result = self.model.apply(variables, *inputs, **options)
        outputs, *collections = result if "mutable" in options else (result,)
        return (outputs[..., ids], *collections) if collections else outputs[..., ids]


def _named(name: str, renamed: Mapping[str, str], theirs: Sequence[str]) -> str:
    """What a class of ours is called by them; of several teachers only some may call it otherwise."""
    other = renamed.get(name, name)
    return name if name in theirs and other not in theirs else other


@dataclass(frozen=True)
class Columns:
    """A model of whose outputs (..., K) some are taken, in this order."""

    model: Any
    columns: Sequence[int]

    def apply(self, variables: Any, *inputs: Any, **options: Any) -> Any:
        """As `nn.Module.apply`."""
        result = self.model.apply(variables, *inputs, **options)
        outputs, *collections = result if "mutable" in options else (result,)
        taken = jax.tree.map(lambda x: x[..., np.array(self.columns)], outputs)
        return (taken, *collections) if collections else taken
