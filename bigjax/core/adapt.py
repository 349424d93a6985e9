"""Parametrizations: how trained and frozen leaves become the parameters that the model sees. Pure.

`config.adapt` is a list of them. Training, evaluation, prediction and export look through it, so that
any method runs under any of them. The frozen leaves are `frozen["base"]`: held once, never in the
optimizer, never saved again.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
from flax import traverse_util

from bigjax.core.errors import UserError
from bigjax.core.rules import paths

BASE = "base"  # the name of the frozen leaves among `frozen`
MODEL = "model"  # the subtree of the trained leaves that are the model's own


@dataclasses.dataclass(frozen=True)
class Parametrization:
    """Leaves of its own over a model's parameters. Override what is different.

    NAME: the subtree of the trained leaves that holds its own.
    """

    NAME = ""

    def keeps(self, params: Mapping[str, Any]) -> set[str]:
        """Paths of the model's leaves that stay trained as they are; the others are frozen.

        params: path -> leaf (or shape).
        """
        return set(params)

    def init(self, rng: jax.Array, params: Mapping[str, jax.Array]) -> Any:
        """Its own trained leaves, a nested dict; params: path -> leaf."""
        return {}

    def apply(self, own: Any, params: dict[str, jax.Array], step: jax.Array) -> dict:
        """path -> the leaf that the model sees, from its own leaves and those of the model."""
        return params


@dataclasses.dataclass(frozen=True)
class OwnLeaves(Parametrization):
    """The trained leaves of a method (`Method.parameters`), which the model does not see; make(rng)."""

    NAME = "method"

    make: Callable[[jax.Array], Any]

    def init(self, rng: jax.Array, params: Mapping[str, jax.Array]) -> Any:
        return self.make(rng)


@dataclasses.dataclass(frozen=True)
class Adaptation:
    """Several parametrizations as one; () is none: the trained leaves are the model's parameters."""

    parts: tuple[Parametrization, ...] = ()

    def __post_init__(self) -> None:
        names = [part.NAME for part in self.parts]
        if len(set(names)) < len(names):
            raise UserError(
                f"config.adapt: {', '.join(names)}: one of each kind; it takes many rules"
            )

    def split(self, params: Any) -> tuple[dict, dict]:
        """(kept, base) of a model's parameters: path -> leaf each."""
        leaves = paths(params)
        kept = set(leaves)
        for part in self.parts:
            kept &= part.keeps(leaves)
        base = {path: leaf for path, leaf in leaves.items() if path not in kept}
        return {path: leaves[path] for path in leaves if path in kept}, base

    def begin(self, rng: jax.Array, params: Any) -> tuple[Any, Any]:
        """(trained leaves, base) of a model's parameters before the first step."""
        if not self.parts:
            return params, {}
        kept, base = self.split(params)
        trained = {MODEL: traverse_util.unflatten_dict(kept, sep="/")} if kept else {}
        for number, part in enumerate(self.parts):
            if own := part.init(jax.random.fold_in(rng, number), paths(params)):
                trained[part.NAME] = own
        return trained, traverse_util.unflatten_dict(base, sep="/")

    def own(self, trained: Any) -> Any:
        """The method's own among the trained leaves."""
        return trained.get(OwnLeaves.NAME, {}) if self.parts else {}

    def params(self, trained: Any, frozen: Mapping[str, Any], step: Any) -> Any:
        """The parameters that the model sees."""
        if not self.parts:
            return trained
        base = paths(frozen[BASE]) if frozen.get(BASE) else {}
        leaves = {**base, **(paths(trained[MODEL]) if MODEL in trained else {})}
        for part in self.parts:
            leaves = part.apply(trained.get(part.NAME, {}), leaves, step)
        return traverse_util.unflatten_dict(leaves, sep="/")
