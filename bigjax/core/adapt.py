"""Parametrizations: how trained and frozen leaves become the parameters that the model sees. Pure.

`config.adapt` is a list of them. Training, evaluation, prediction and export look through it, so that
any method runs under any of them. The frozen leaves are `frozen["base"]`: held once, never in the
optimizer, never saved again; some of them in few bits, where a parametrization says so.
"""

from __future__ import annotations

import contextlib
import contextvars
import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Any, ClassVar

import flax
import jax
import jax.numpy as jnp
from flax import traverse_util

from bigjax.core.errors import UserError
from bigjax.core.quantize import Quantized, dequantize
from bigjax.core.rules import map_with_path, paths

BASE = "base"  # the name of the frozen leaves among `frozen`
MODEL = "model"  # the subtree of the trained leaves that are the model's own


@dataclasses.dataclass(frozen=True)
class Parametrization:
    """Leaves of its own over a model's parameters. Override what is different.

    NAME: the subtree of the trained leaves that holds its own.
    RECOMPUTED: whether the backward pass makes the parameters again, rather than keep them from the
      forward pass: where the base is held in few bits.
    BY_LAYER: whether `apply` does the same to each layer of a stacked leaf, knows a leaf by its own
      leaves alone and reads no step, so that a loop over layers may apply it to one at a time.
    """

    NAME = ""
    RECOMPUTED = False
    BY_LAYER = False

    def keeps(self, params: Mapping[str, Any]) -> set[str]:
        """Paths of the model's leaves that stay trained as they are; the others are frozen.

        params: path -> leaf (or shape).
        """
        return set(params)

    def check(self, total_steps: int) -> None:
        """Raises UserError if it makes no sense in a run of `total_steps` steps."""

    def init(self, rng: jax.Array, params: Mapping[str, jax.Array]) -> Any:
        """Its own trained leaves, a nested dict; params: path -> leaf."""
        return {}

    def hold(self, base: dict[str, jax.Array], params: Mapping[str, jax.Array]) -> dict:
        """path -> how a leaf of the base is held: itself, or `Quantized`; params: all leaves."""
        return base

    def apply(self, own: Any, params: dict[str, jax.Array], step: jax.Array) -> dict:
        """path -> the leaf that the model sees, from its own leaves and those of the model."""
        return params

    def project(
        self, params: dict[str, jax.Array], before: Mapping[str, jax.Array], step: jax.Array
    ) -> dict:
        """path -> the model's trained leaf as it is kept after an update.

        before: the same leaves before the update; at the start of a run, these. step: updates done.
        """
        return params

    def wrap(self, model: Any) -> Any:
        """What is called in the model's place: has its `apply`."""
        return model


@dataclasses.dataclass(frozen=True)
class OwnLeaves(Parametrization):
    """The trained leaves of a method (`Method.parameters`), which the model does not see; make(rng)."""

    NAME = "method"
    BY_LAYER = True

    make: Callable[[jax.Array], Any]

    def init(self, rng: jax.Array, params: Mapping[str, jax.Array]) -> Any:
        return self.make(rng)


@flax.struct.dataclass
class PerLayer:
    """A stacked leaf before it is made: a loop over layers makes each layer's when it uses it.

    Else all layers' full numbers, and the gradients of them all, would live at once.

    Attributes:
      base: as `Adaptation` holds it, with the leading axis of layers that the loop takes away.
      own: NAME of a parametrization -> its own leaves of this leaf, likewise.
      path, parts: of the leaf; what makes it. dtype: of what is made; None: the base's.
    """

    ONE_LEAF: ClassVar[bool] = True

    base: Any
    own: dict[str, Any]
    path: str = flax.struct.field(pytree_node=False)
    parts: tuple[Parametrization, ...] = flax.struct.field(pytree_node=False)
    dtype: Any = flax.struct.field(pytree_node=False, default=None)

    def astype(self, dtype: Any) -> PerLayer:
        return self.replace(dtype=dtype)

    def made(self) -> jax.Array:
        """The leaf of one layer, where the loop has taken the axis away."""
        base, own = jax.tree.map(lambda x: x[None], (self.base, self.own))
        if isinstance(base, Quantized):
            base = dequantize(base.replace(shape=(1, *base.shape[1:])))
        leaves = {self.path: base}
        for part in self.parts:
            leaves = part.apply(own.get(part.NAME, {}), leaves, None)
        leaf = leaves[self.path][0]
        return leaf if self.dtype is None else leaf.astype(self.dtype)


def made(tree: Any) -> Any:
    """The parameters of one layer, each `PerLayer` made."""
    return map_with_path(lambda _, x: x.made() if isinstance(x, PerLayer) else x, tree)


_LOOPS: contextvars.ContextVar[set[str] | None] = contextvars.ContextVar("loops", default=None)


@contextlib.contextmanager
def loops_met() -> Iterator[set[str]]:
    """Paths of the stacked subtrees whose loops say, as they are traced within, that they make `PerLayer`
    leaves: a loop of a user's own does not, and must be given its leaves as they are."""
    token = _LOOPS.set(set())
    try:
        yield _LOOPS.get()
    finally:
        _LOOPS.reset(token)


def makes_layers(path: str) -> None:
    """Said by a loop over the stacked subtree at this path: `made` is called for each layer in it."""
    if (loops := _LOOPS.get()) is not None:
        loops.add(path)


@dataclasses.dataclass(frozen=True)
class Adaptation:
    """Several parametrizations as one; () is none: the trained leaves are the model's parameters.

    looped: paths of the stacked subtrees whose layers the model's loops make (`loops_met`).
    remat: whether it computes them again in the backward pass.
    """

    parts: tuple[Parametrization, ...] = ()
    looped: frozenset[str] = frozenset()
    remat: bool = False

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
            base = part.hold(base, paths(params))
        trained = self.project(trained, trained, jnp.zeros((), jnp.int32))
        return trained, traverse_util.unflatten_dict(base, sep="/")

    def own(self, trained: Any) -> Any:
        """The method's own among the trained leaves."""
        return trained.get(OwnLeaves.NAME, {}) if self.parts else {}

    def params(
        self, trained: Any, frozen: Mapping[str, Any], step: Any, *, by_layer: bool = False
    ) -> Any:
        """The parameters that the model sees.

        by_layer: stacked leaves that are adapted or held in few bits come as `PerLayer` where a loop of
          the model makes them and each part allows it.
        """
        if not self.parts:
            return trained
        leaves = traverse_util.flatten_dict(dict(frozen.get(BASE, {})), sep="/")
        leaves |= paths(trained[MODEL]) if MODEL in trained else {}
        own = {part.NAME: paths(trained.get(part.NAME, {})) for part in self.parts}
        later = {}
        if by_layer and self._in_loop:
            later, own = self._per_layer(leaves, own)
        leaves = {path: leaf for path, leaf in leaves.items() if path not in later}
        leaves = {p: dequantize(x) if isinstance(x, Quantized) else x for p, x in leaves.items()}
        for part in self.parts:
            leaves = part.apply(traverse_util.unflatten_dict(own[part.NAME], sep="/"), leaves, step)
        return traverse_util.unflatten_dict(leaves | later, sep="/")

    def _per_layer(
        self, leaves: Mapping[str, Any], own: Mapping[str, dict[str, Any]]
    ) -> tuple[dict[str, PerLayer], dict[str, dict[str, Any]]]:
        """(path -> stacked leaf to be made in the loop, the parts' own leaves of the others)."""
        adapted = {path.rpartition("/")[0] for tree in own.values() for path in tree}
        in_loop = tuple(f"{path}/" for path in self.looped)
        chosen = {
            path
            for path, leaf in leaves.items()
            if path.startswith(in_loop) and (path in adapted or isinstance(leaf, Quantized))
        }
        theirs: dict[str, dict] = {path: {} for path in chosen}
        others: dict[str, dict] = {name: {} for name in own}
        for name, tree in own.items():
            for path, leaf in tree.items():
                of = path.rpartition("/")[0]
                (theirs[of].setdefault(name, {}) if of in chosen else others[name])[path] = leaf
        later = {}
        for path, trees in theirs.items():
            nested = {n: traverse_util.unflatten_dict(tree, sep="/") for n, tree in trees.items()}
            later[path] = PerLayer(leaves[path], nested, path, self.parts)
        return later, others

    def project(self, trained: Any, before: Any, step: Any) -> Any:
        """The trained leaves as they are kept after an update (see `Parametrization.project`)."""
        if MODEL not in trained or not self.parts:
            return trained
        leaves, old = paths(trained[MODEL]), paths(before[MODEL])
        for part in self.parts:
            leaves = part.project(leaves, old, step)
        return {**trained, MODEL: traverse_util.unflatten_dict(leaves, sep="/")}

    def wrap(self, model: Any) -> Any:
        """What is called in the model's place."""
        for part in self.parts:
            model = part.wrap(model)
        return model

    @property
    def _in_loop(self) -> bool:
        return bool(self.looped) and all(part.BY_LAYER for part in self.parts)

    @property
    def recomputed(self) -> bool:
        """Whether the backward pass must be told to make the parameters again: layers that are made in
        a loop which is computed again are so without a word, and keep what `model.remat` says."""
        of_itself = self._in_loop and self.remat
        return any(part.RECOMPUTED for part in self.parts) and not of_itself
