"""Where arrays lie: the mesh from config, batches, state and activations on it, and `shard_map`.

The only file that builds a `Mesh`. Where a parameter lies is said in `placement.py`; the optimizer's
state follows its parameter.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from bigjax.core import settings
from bigjax.core.errors import UserError
from bigjax.core.layout import laid_out
from bigjax.core.method import Sums
from bigjax.core.rules import map_with_path, path_of
from bigjax.mesh.layout import OnMesh
from bigjax.mesh.placement import Placement, Vocabulary, any_of, axes_of, divisors

# Slow to change first: the last axis lies on the nearest devices, the first over the slow network.
AXES = ("dcn", "pipeline", "data", "fsdp", "expert", "sequence", "tensor")
# The batch is split over these.
BATCH_AXES = ("dcn", "data", "fsdp", "expert")
# The axes that activations name, beside those that a model's parameters name.
ACTIVATION_RULES = (("batch", BATCH_AXES), ("length", "sequence"), ("layers", "pipeline"))


def make_mesh(sizes: settings.Mesh, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """The mesh of a run, with every axis of `AXES` (absent ones have size 1).

    Args:
      sizes: devices along each axis.
      devices: default all of them, of all hosts.

    Raises:
      UserError: the sizes do not multiply to the number of devices, or `dcn` not to that of the
        slices (or hosts); says which would.
    """
    devices = jax.devices() if devices is None else list(devices)
    shape = {axis: getattr(sizes, axis) for axis in AXES}
    fixed = math.prod(size for size in shape.values() if size != -1)
    free = [axis for axis, size in shape.items() if size == -1]
    if len(devices) % fixed or (not free and fixed != len(devices)):
        raise UserError(_misfit(shape, len(devices)))
    if free:
        shape[free[0]] = len(devices) // fixed
    slices = len({getattr(device, "slice_index", 0) for device in devices})
    hosts = len({device.process_index for device in devices})
    types = (AxisType.Auto,) * len(AXES)
    if slices > 1 and shape["dcn"] != slices:
        raise UserError(f"config.mesh.dcn: there are {slices} slices; {slices} would do")
    if slices > 1:
        inner, outer = (1, *tuple(shape.values())[1:]), (slices, *(1,) * (len(AXES) - 1))
        grid = mesh_utils.create_hybrid_device_mesh(inner, outer, devices)
        return Mesh(grid, AXES, axis_types=types)
    if hosts % shape["dcn"] and shape["dcn"] % hosts:
        raise UserError(
            f"config.mesh.dcn: {shape['dcn']} does not divide the {hosts} hosts; "
            f"{any_of(divisors(hosts))} would"
        )
    return jax.make_mesh(tuple(shape.values()), AXES, axis_types=types, devices=devices)


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """How a batch lies: its leading axis over every data-like axis of the mesh."""
    return NamedSharding(mesh, PartitionSpec(BATCH_AXES))


def replicated(mesh: Mesh) -> NamedSharding:
    return NamedSharding(mesh, PartitionSpec())


def batch_devices(sizes: Mapping[str, int]) -> int:
    """Over how many devices a mesh of these sizes splits the batch."""
    return math.prod(sizes[axis] for axis in BATCH_AXES)


def check_batch(key: str, batch_size: int, accumulate: int, mesh: Mesh) -> int:
    """Rows of a (micro)batch on each device.

    Raises:
      UserError: the batch does not divide; says the nearest sizes that do.
    """
    devices = batch_devices(mesh.shape)
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


def layout(placed: Mapping[str, Placement], tree: Any, mesh: Mesh) -> Any:
    """A tree of NamedSharding for a tree of arrays or shapes that may hold parameters.

    A leaf whose path ends in a parameter's path (the parameter, an optimizer's moment, the moving
    average) lies as the parameter does if it has its shape, and as what is left of it if it lacks
    one dimension (Adafactor's factored moments). A method's memory of each row of a batch lies as a
    batch does (see `Method.init`). All other leaves are replicated.
    """

    def of(key_path: Any, leaf: Any) -> NamedSharding:
        parts = path_of(key_path).split("/")
        if parts[:2] == ["memory", "rows"]:
            return batch_sharding(mesh)
        for start in range(len(parts)):
            placement = placed.get("/".join(parts[start:]))
            if placement is not None:
                return NamedSharding(mesh, _following(placement, leaf.shape))
        return replicated(mesh)

    return jax.tree_util.tree_map_with_path(of, tree)


@contextlib.contextmanager
def activations(mesh: Mesh, words: Vocabulary, options: settings.Sharding) -> Iterator[None]:
    """While a step is traced: what a model says of its arrays' layout holds, over this mesh."""
    table = (*ACTIVATION_RULES, *words.logical)
    how = (options.sequence, options.microbatches, options.rounds)
    with laid_out(OnMesh(mesh, table, *how)):
        yield


def per_device(mesh: Mesh) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """The other way to run a step: each device sums over its own rows, then all add up, by hand.

    Takes and returns `sums(state, data, frozen, rng) -> Sums` (see `bigjax.core.method`). The random
    key is folded with the device's place, so that dropout differs between devices; sums and
    weights are added by `psum`; collections, whose BatchNorm statistics are already those of all
    devices (`core.layout.batch_axes`), are averaged.
    """

    def distribute(sums: Callable[..., Any]) -> Callable[..., Any]:
        def local(state: Any, batch: Any, frozen: Any, rng: jax.Array):
            rng = jax.random.fold_in(rng, jax.lax.axis_index(BATCH_AXES))
            found = sums(state, batch, frozen, rng)
            gradients, pairs = jax.lax.psum((found.gradients, found.pairs), BATCH_AXES)
            collections = jax.lax.pmean(found.collections, BATCH_AXES)
            return Sums(gradients, pairs, collections, found.memory)

        whole, rows = PartitionSpec(), PartitionSpec(BATCH_AXES)
        return jax.shard_map(
            local,
            mesh=mesh,
            in_specs=(whole, rows, whole, whole),
            out_specs=whole,
            check_vma=False,  # so that a gradient stays local until the psum above
        )

    return distribute


def check_axes(mesh: Mesh, placed: Mapping[str, Placement], model: Any) -> None:
    """Refuses a mesh axis above 1 that nothing in the run uses: its devices would repeat work.

    Batches use dcn, data and fsdp; another axis must split a parameter, or be among the model's
    MESH_AXES.

    Raises:
      UserError: names the axis, and what would use it.
    """
    split = {axis for placement in placed.values() for axis in axes_of(placement.spec)}
    used = {"dcn", "data", "fsdp", *split, *getattr(model, "MESH_AXES", ())}
    if mesh.shape["sequence"] > 1 and mesh.shape["pipeline"] > 1:
        raise UserError(
            "config.mesh: sequence and pipeline do not go together; give the one's devices to fsdp"
        )
    if mesh.shape["pipeline"] > 1 and getattr(model, "scan_layers", True) is False:
        raise UserError("config.mesh.pipeline: stages need model.scan_layers=True (stacked layers)")
    for axis, size in mesh.shape.items():
        if size > 1 and axis not in used:
            raise UserError(
                f"config.mesh.{axis}: nothing in {type(model).__name__} is split over '{axis}', so "
                f"{size} devices would repeat the same work; use mesh.data or mesh.fsdp"
            )


def gathering(mesh: Mesh, placed: Mapping[str, Placement]) -> Callable[[Any], Any]:
    """`gathered(params)`: inside a step, parameters whole along fsdp before they are used. Pure.

    What FSDP does in any case, said to the compiler where the batch is split over data and fsdp and
    parameters over fsdp and tensor: left to itself, XLA's partitioner (jaxlib 0.10.2 to 0.12.0.1)
    computes wrong products there for some batch sizes (8 and 16 rows on 2 x 2 x 2 devices: gradients
    wholly wrong; `tests/test_sharding_matrix.py` has the case). Elsewhere nothing is said, nor
    of stacked layers, which a loop reads one by one and which were right in every case tried.
    """
    rows = math.prod(mesh.shape[axis] for axis in BATCH_AXES if axis != "fsdp")
    if rows == 1 or mesh.shape["fsdp"] == 1 or mesh.shape["tensor"] == 1:
        return lambda params: params

    def whole(path: str, leaf: jax.Array) -> jax.Array:
        spec = placed[path].spec if path in placed else ()
        if "fsdp" not in axes_of(spec) or "blocks/" in path:
            return leaf
        kept = [_without_fsdp(axes) for axes in spec]
        return jax.lax.with_sharding_constraint(leaf, NamedSharding(mesh, PartitionSpec(*kept)))

    return lambda params: map_with_path(whole, params)


def _without_fsdp(axes: Any) -> Any:
    kept = tuple(a for a in ((axes,) if isinstance(axes, str) else axes or ()) if a != "fsdp")
    return kept or None


def check_per_device(placed: Mapping[str, Placement], mesh: Mesh) -> None:
    """Refuses what `per_device` cannot run: split parameters, and axes that do not split the batch."""
    what = "config.sharding.mode: shard_map keeps a whole copy of the parameters on every device"
    for axis, size in mesh.shape.items():
        if size > 1 and axis not in BATCH_AXES:
            raise UserError(
                f"{what}, so mesh.{axis}={size} has no use; use mesh.data, or mode 'jit'"
            )
    for path, placement in placed.items():
        if placement.spec:
            raise UserError(
                f"{what}, but the rule {placement.rule!r} splits {path}; "
                "use the rule 'replicate' and mesh.data, or mode 'jit'"
            )


def _following(placement: Placement, shape: tuple[int, ...]) -> PartitionSpec:
    """The spec of an array of `shape` that belongs to a parameter."""
    whole, spec = placement.shape, placement.spec
    if shape == whole:
        return spec
    entries = (*spec, *(None,) * (len(whole) - len(spec)))
    for dim in reversed(range(len(whole))):
        if shape == whole[:dim] + whole[dim + 1 :]:
            return PartitionSpec(*entries[:dim], *entries[dim + 1 :])
    return PartitionSpec()


def _misfit(shape: Mapping[str, int], devices: int) -> str:
    """Why the sizes do not fit, and for each that is given, those that would if the rest stay."""
    given = {axis: size for axis, size in shape.items() if size not in (1, -1)}
    fixed = math.prod(given.values())
    free = -1 in shape.values()
    product = " x ".join(f"{axis} {size}" for axis, size in given.items()) or "every axis 1"
    would = []
    for axis, size in given.items():
        left, rest = divmod(devices, fixed // size)
        if not rest:
            would.append(f"{axis} {any_of(divisors(left) if free else [left])}")
    if not would:
        would = [f"a product of {any_of(divisors(devices) if free else [devices])}"]
    return (
        f"config.mesh: {product} = {fixed} does not {'divide' if free else 'equal'} the {devices} "
        f"devices; {' or '.join(would)} would"
    )
