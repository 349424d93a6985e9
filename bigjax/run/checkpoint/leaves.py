"""Arrays of a checkpoint: written, and read, verified, whatever else the checkpoint holds.

Orbax is imported where it is first used: it takes longer than all that `config` and a refusal do with a config.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import flax
import jax
import numpy as np
import tensorstore as ts
from etils import epath
from jax.sharding import NamedSharding, PartitionSpec

from bigjax.core.errors import UserError, did_you_mean
from bigjax.core.rules import paths
from bigjax.run.checkpoint import hashes
from bigjax.run.checkpoint.folder import ITEM, CheckpointError, all_steps, folder_of, step_of_result
from bigjax.run.checkpoint.hashes import BadCheckpoint


def restore_leaves(workdir: Path, wanted: dict[str, Any]) -> dict[str, jax.Array]:
    """Some arrays of a run's newest checkpoint, or of the one that its result names, verified, and nothing else read from disk.

    Another run's weights decide what is computed here, so there is no falling back to older ones.

    Args:
      workdir: the run's folder.
      wanted: path in the state, e.g. "params/dense_0/kernel" -> array or `ShapeDtypeStruct` that
        says the shape, dtype and sharding to come in.

    Raises:
      UserError: there is no checkpoint, a leaf is missing (the nearest is named) or has another shape.
      CheckpointError: the checkpoint is bad.
    """
    while True:
        step, folder = _newest(workdir)
        try:
            manifest = hashes.read_manifest(folder, step=step, run=None)
            return _verified_leaves(folder, manifest, wanted)
        except Exception as error:
            if not folder.exists():
                continue  # removed by the run that writes there: look again
            if isinstance(error, BadCheckpoint):
                raise CheckpointError(f"{folder}: {error}") from None
            raise


def _newest(workdir: Path) -> tuple[int, epath.Path]:
    directory = folder_of(workdir)
    steps = all_steps(directory)
    if not steps:
        raise UserError(f"{workdir}: holds no checkpoint")
    step = step_of_result(workdir) or max(steps)
    return step, directory / str(step)


def _verified_leaves(
    folder: epath.Path, manifest: dict[str, Any], wanted: dict[str, Any]
) -> dict[str, jax.Array]:
    there = manifest["arrays"]
    for path, leaf in wanted.items():
        if path not in there:
            raise UserError(f"{folder}: holds no '{path}'{did_you_mean(path, there)}")
        if tuple(there[path]["shape"]) != tuple(leaf.shape):
            raise UserError(
                f"{folder}: '{path}' has shape {tuple(there[path]['shape'])}, "
                f"not {tuple(leaf.shape)}"
            )
    kept = {
        path: jax.ShapeDtypeStruct(leaf.shape, there[path]["dtype"], sharding=leaf.sharding)
        for path, leaf in wanted.items()
    }
    if kept and "step" in there:
        about = there["step"]
        sharding = next(iter(kept.values())).sharding
        if isinstance(sharding, NamedSharding):
            sharding = NamedSharding(sharding.mesh, PartitionSpec())
        kept["step"] = jax.ShapeDtypeStruct(
            tuple(about["shape"]), about["dtype"], sharding=sharding
        )
    try:
        restored = paths(read_tree(folder, flax.traverse_util.unflatten_dict(kept, sep="/")))
    except Exception as error:
        hashes.check_files(folder, manifest)  # says which file it was, if it was one
        raise unreadable(folder, error) from error
    if wrong := hashes.wrong_arrays(restored, there):
        raise BadCheckpoint(f"arrays differ from what was saved: {hashes.some(wrong)}")
    check_step(restored, manifest["step"])
    return {path: restored[path].astype(leaf.dtype) for path, leaf in wanted.items()}


def unreadable(folder: epath.Path, error: Exception) -> CheckpointError:
    """Of a checkpoint whose files are those of its manifest. It stays where it is: memory may have been
    short, or somebody has made a true manifest of files that are none of Orbax's."""
    reason = " ".join(str(error).split())[:400] or type(error).__name__
    return CheckpointError(
        f"{folder}: its files are as they were saved, and cannot be read ({reason})"
    )


def check_step(arrays: dict[str, Any], step: int) -> None:
    """Raises `BadCheckpoint` if the state says that it is of another step than its manifest does."""
    if "step" in arrays and np.any((inside := np.asarray(arrays["step"])) != step):
        raise BadCheckpoint(f"its state is of step {inside}, not {step}")


def checkpointer() -> Any:
    """What writes trees of arrays, in the background. Copies of an array share its writing only where each writes
    1 MiB: Orbax compiles a program for each shape that is shared, which takes longer than a small write."""
    import orbax.checkpoint as ocp

    arrays = ocp.type_handlers.ArrayHandler(min_slice_bytes_for_replica_parallel=2**20)
    registry = ocp.type_handlers.create_type_handler_registry((jax.Array, arrays))
    return ocp.AsyncCheckpointer(ocp.PyTreeCheckpointHandler(type_handler_registry=registry))


def write_tree(checkpointer: Any, folder: epath.Path, state: Any) -> None:
    """Begins to write the arrays of a tree."""
    import orbax.checkpoint as ocp

    checkpointer.save(folder / ITEM, args=ocp.args.PyTreeSave(state))


def read_tree(folder: epath.Path, wanted: Any) -> Any:
    """The arrays that a tree describes, unverified; a part of the checkpoint's tree is enough.

    Branches without arrays need not be there: a state of an older bigjax lacks what is empty today.
    """
    import orbax.checkpoint as ocp

    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
        return checkpointer.restore(
            folder / ITEM,
            args=ocp.args.PyTreeRestore(
                item=wanted,
                restore_args=ocp.checkpoint_utils.construct_restore_args(wanted),
                partial_restore=True,
            ),
        )


def damage(folder: epath.Path, manifest: dict[str, Any]) -> str:
    """Which arrays a damaged checkpoint would have given wrongly, as part of a message.

    TensorStore is asked directly: on damaged files Orbax leaves its coroutines' failures behind it.
    """
    base = str(folder / ITEM) if "://" in str(folder) else f"file://{folder / ITEM}"
    found: dict[str, list[str]] = {"altered": [], "unreadable": []}
    for path in manifest["arrays"]:
        where = {"driver": "ocdbt", "base": f"{base}/", "path": f"{path.replace('/', '.')}/"}
        try:
            array = ts.open({"driver": "zarr", "kvstore": where}).result().read().result()
            found["altered"] += hashes.wrong_arrays({path: array}, manifest["arrays"])
        except Exception:  # whatever TensorStore makes of damaged files
            found["unreadable"].append(path)
    says = [f"arrays {kind}: {hashes.some(names)}" for kind, names in found.items() if names]
    return f" ({'; '.join(says)})" if says else " (all arrays still read as saved)"


def abstract_with(shardings: Any, abstract: Any) -> Any:
    """`abstract` with each leaf's sharding attached, as `Checkpoints.restore` takes it."""
    return jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        abstract,
        shardings,
    )
