"""Where arrays lie: the mesh from config, and regex -> rule for every parameter.

The only file that builds a `Mesh`. A tactic is a pure function of a leaf's shape and the mesh; the
optimizer's state follows the parameter it belongs to.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import jax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from bigjax import settings
from bigjax.errors import UserError
from bigjax.rules import match_rules, path_of, paths

# Slow to change first: the last axis lies on the nearest devices.
AXES = ("pipeline", "data", "fsdp", "expert", "sequence", "tensor")
# The batch is split over these.
BATCH_AXES = ("data", "fsdp", "expert")


def make_mesh(sizes: settings.Mesh, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """The mesh of a run, with every axis of `AXES` (absent ones have size 1).

    Raises:
      UserError: the sizes do not multiply to the number of devices; says which would.
    """
    devices = jax.devices() if devices is None else devices
    shape = {axis: getattr(sizes, axis) for axis in AXES}
    fixed = math.prod(size for size in shape.values() if size != -1)
    free = [axis for axis, size in shape.items() if size == -1]
    if len(devices) % fixed or (not free and fixed != len(devices)):
        asked = " x ".join(f"{axis} {size}" for axis, size in shape.items() if size not in (1, -1))
        raise UserError(
            f"config.mesh: {asked} = {fixed} does not "
            f"{'divide' if free else 'equal'} the {len(devices)} devices; the sizes must multiply to "
            f"{len(devices)} (one may be -1)"
        )
    if free:
        shape[free[0]] = len(devices) // fixed
    return jax.make_mesh(
        tuple(shape.values()), AXES, axis_types=(AxisType.Auto,) * len(AXES), devices=devices
    )


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """How a batch lies: its leading axis over every data-like axis of the mesh."""
    return NamedSharding(mesh, PartitionSpec(BATCH_AXES))


def replicated(mesh: Mesh) -> NamedSharding:
    return NamedSharding(mesh, PartitionSpec())


def check_batch(key: str, batch_size: int, accumulate: int, mesh: Mesh) -> int:
    """Rows of a (micro)batch on each device.

    Raises:
      UserError: the batch does not divide; says the nearest sizes that do.
    """
    devices = math.prod(mesh.shape[axis] for axis in BATCH_AXES)
    unit = devices * accumulate
    if batch_size % unit:
        below, above = batch_size // unit * unit, -(-batch_size // unit) * unit
        would = f"{below} or {above}" if below else f"{above}"
        raise UserError(
            f"{key}: {batch_size} rows do not divide over {devices} batch devices"
            + (f" x {accumulate} microbatches" if accumulate > 1 else "")
            + f"; {would} would"
        )
    return batch_size // unit


def param_specs(
    rules: Sequence[tuple[str, Any]], params: Any, mesh: Mesh
) -> dict[str, PartitionSpec]:
    """Parameter path -> spec, from the first rule that matches each path."""
    values = match_rules(rules, params, what="sharding.rules")
    return {
        path: _spec(values[path], path, leaf.shape, mesh) for path, leaf in paths(params).items()
    }


def state_shardings(rules: Sequence[tuple[str, Any]], state: Any, mesh: Mesh) -> Any:
    """A tree of NamedSharding for an abstract `TrainState`.

    A leaf outside `params` whose path ends in a parameter's path and whose shape is that
    parameter's (an optimizer moment, the moving average) lies as the parameter does; all other
    leaves are replicated.
    """
    specs = param_specs(rules, state.params, mesh)
    shapes = {path: leaf.shape for path, leaf in paths(state.params).items()}

    def of(key_path: Any, leaf: Any) -> NamedSharding:
        parts = path_of(key_path).split("/")
        for start in range(len(parts)):
            tail = "/".join(parts[start:])
            if shapes.get(tail) == leaf.shape:
                return NamedSharding(mesh, specs[tail])
        return replicated(mesh)

    return jax.tree_util.tree_map_with_path(of, state)


def _spec(rule: Any, path: str, shape: tuple[int, ...], mesh: Mesh) -> PartitionSpec:
    if rule == "replicate":
        return PartitionSpec()
    if rule == "fsdp":
        return _fsdp(shape, mesh)
    if isinstance(rule, tuple | list):
        return _explicit(tuple(rule), path, shape, mesh)
    raise UserError(
        f"config.sharding.rules: {rule!r} (for {path}) is no rule; "
        "use 'replicate', 'fsdp' or a tuple such as (None, 'tensor')"
    )


def _fsdp(shape: tuple[int, ...], mesh: Mesh) -> PartitionSpec:
    """The largest dimension that the fsdp axis divides; replicated if none does."""
    size = mesh.shape["fsdp"]
    for dim in sorted(range(len(shape)), key=lambda d: -shape[d]):
        if size > 1 and shape[dim] % size == 0:
            return PartitionSpec(*(None,) * dim, "fsdp")
    return PartitionSpec()


def _explicit(
    rule: tuple[Any, ...], path: str, shape: tuple[int, ...], mesh: Mesh
) -> PartitionSpec:
    if len(rule) > len(shape):
        raise UserError(
            f"config.sharding.rules: {rule} has more dimensions than {path} of shape {shape}"
        )
    for dim, axes in zip(shape, rule, strict=False):
        names = (axes,) if isinstance(axes, str) else tuple(axes or ())
        for name in names:
            if name not in mesh.shape:
                raise UserError(
                    f"config.sharding.rules: {rule} (for {path}): no mesh axis '{name}'; "
                    f"axes: {', '.join(AXES)}"
                )
        parts = math.prod(mesh.shape[name] for name in names)
        if dim % parts:
            raise UserError(
                f"config.sharding.rules: {rule} cannot split dimension {dim} of {path} {shape} "
                f"over {parts} devices"
            )
    return PartitionSpec(*rule)
