"""How a step that is being traced lies over a mesh: what models' names of axes mean there."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from bigjax.core.errors import UserError, did_you_mean
from bigjax.core.layout import FREE
from bigjax.mesh.placement import explicit


@dataclasses.dataclass(frozen=True)
class OnMesh:
    """`bigjax.core.layout.Layout` over a mesh.

    table: (logical name, mesh axis, a tuple of them, or None) pairs; the first match holds.
    """

    mesh: Mesh
    table: Sequence[tuple[str, Any]]
    sequence: str = "ring"
    microbatches: int | None = None
    rounds: int = 1

    def constrain(self, x: jax.Array, names: Sequence[str | None]) -> jax.Array:
        if "length" in names and x.shape[names.index("length")] % self.parts("length"):
            # Such as the one token that is read behind a cache. `attend` refuses what should divide.
            names = [None if name == "length" else name for name in names]
        spec = self._spec(names, x)
        return jax.lax.with_sharding_constraint(x, NamedSharding(self.mesh, spec))

    def axes(self, name: str) -> tuple[str, ...]:
        found = next((axes for own, axes in self.table if own == name), None) or ()
        found = (found,) if isinstance(found, str) else found
        for axis in found:
            if axis not in self.mesh.shape:
                hint = did_you_mean(axis, self.mesh.shape)
                raise UserError(f"config.sharding.logical: no mesh axis '{axis}'{hint}")
        return tuple(axis for axis in found if self.mesh.shape[axis] > 1)

    def parts(self, name: str) -> int:
        return math.prod(self.mesh.shape[axis] for axis in self.axes(name))

    def per_part(self, function: Callable[..., Any], takes: Any, gives: Any) -> Callable[..., Any]:
        """As `Layout.per_part`; `takes` and `gives` are trees of tuples of names, one an array."""

        def spec(names: Sequence[str | None]) -> PartitionSpec:
            return PartitionSpec(*(self.axes(name) or None if name else None for name in names))

        def is_names(x: Any) -> bool:
            return isinstance(x, tuple) and all(isinstance(n, str | None) for n in x)

        specs = [jax.tree.map(spec, names, is_leaf=is_names) for names in (takes, gives)]
        return jax.shard_map(
            function, mesh=self.mesh, in_specs=specs[0], out_specs=specs[1], check_vma=False
        )

    def _spec(self, names: Sequence[str | None], x: jax.Array) -> PartitionSpec:
        found = tuple(self.axes(name) if name and name != FREE else None for name in names)
        spec = explicit(found, (), self.mesh, "an activation", x, names)
        free = PartitionSpec.UNCONSTRAINED
        return PartitionSpec(
            *(free if n == FREE else axes for n, axes in zip(names, spec, strict=True))
        )
