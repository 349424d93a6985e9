"""The one door to checkpoints: save, restore, keep the newest and the best. Only this file imports Orbax.

A run's checkpoints lie under `checkpoints/<step>/`. The step is also the data position, so a state
is all that a resume needs.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import flax
import jax
import orbax.checkpoint as ocp
from orbax.checkpoint.checkpoint_managers import AnyPreservationPolicy, BestN, LatestN

from bigjax import settings
from bigjax.errors import UserError, did_you_mean
from bigjax.rules import paths


class Checkpoints:
    """The checkpoints of one run's folder."""

    def __init__(self, workdir: Path, options: settings.Checkpoint) -> None:
        policies: list[Any] = [LatestN(options.keep)]
        if options.best:
            best = options.best
            policies.append(
                BestN(
                    get_metric_fn=lambda metrics: metrics[best],
                    reverse=options.best_mode == "min",
                    n=1,
                    keep_checkpoints_without_metrics=False,
                )
            )
        self._best = options.best
        self._manager = ocp.CheckpointManager(
            (workdir / "checkpoints").absolute(),
            options=ocp.CheckpointManagerOptions(
                preservation_policy=AnyPreservationPolicy(policies), cleanup_tmp_directories=True
            ),
        )

    def steps(self) -> list[int]:
        return sorted(self._manager.all_steps())

    def latest(self) -> int | None:
        return self._manager.latest_step()

    def save(self, step: int, state: Any, metrics: dict[str, Any]) -> None:
        """Starts an asynchronous save; `state` may be donated to the next step once this returns.

        Args:
          step: completed updates.
          state: the training state.
          metrics: what was evaluated at this step; the best-metric rule reads it.
        """
        if step in self._manager.all_steps():
            return
        kept = {self._best: metrics[self._best]} if self._best in metrics else None
        self._manager.save(step, args=ocp.args.StandardSave(state), metrics=kept, force=True)

    def restore(self, abstract_state: Any, step: int | None = None) -> Any:
        """The state at `step` (default: the newest), laid out as `abstract_state` says."""
        step = self.latest() if step is None else step
        return self._manager.restore(step, args=ocp.args.StandardRestore(abstract_state))

    def close(self) -> None:
        """Waits for the saves under way."""
        self._manager.wait_until_finished()
        self._manager.close()


def restore_leaves(workdir: Path, wanted: dict[str, Any]) -> dict[str, jax.Array]:
    """Some arrays of a run's newest checkpoint, and nothing else read from disk.

    Args:
      workdir: the run's folder.
      wanted: path in the state, e.g. "params/dense_0/kernel" -> array or `ShapeDtypeStruct` that
        says the shape, dtype and sharding to come in.

    Raises:
      UserError: there is no checkpoint, a leaf is missing (the nearest is named) or has another shape.
    """
    directory = workdir / "checkpoints"
    steps = sorted(int(p.name) for p in directory.glob("*") if p.name.isdigit())
    if not steps:
        raise UserError(f"{workdir}: holds no checkpoint")
    folder = (directory / str(steps[-1]) / "default").absolute()
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
        there = paths(checkpointer.metadata(folder).item_metadata.tree)
        for path, leaf in wanted.items():
            if path not in there:
                raise UserError(f"{folder}: holds no '{path}'{did_you_mean(path, there)}")
            if tuple(there[path].shape) != tuple(leaf.shape):
                raise UserError(
                    f"{folder}: '{path}' has shape {tuple(there[path].shape)}, "
                    f"not {tuple(leaf.shape)}"
                )
        abstract = _nested(
            {
                path: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding)
                for path, leaf in wanted.items()
            }
        )
        restored = checkpointer.restore(
            folder,
            args=ocp.args.PyTreeRestore(
                item=abstract,
                restore_args=ocp.checkpoint_utils.construct_restore_args(abstract),
                partial_restore=True,
            ),
        )
    return paths(restored)


def _nested(flat: dict[str, Any]) -> dict[str, Any]:
    """{"a/b": leaf} as {"a": {"b": leaf}}."""
    return flax.traverse_util.unflatten_dict(flat, sep="/")


def abstract_with(shardings: Any, abstract: Any) -> Any:
    """`abstract` with each leaf's sharding attached, as `restore` takes it."""
    return jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        abstract,
        shardings,
    )
