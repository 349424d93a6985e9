"""A run's checkpoints: save, verify, fall back, keep the newest and the best, set bad ones aside."""

from __future__ import annotations

import contextlib
import json
import logging
import math
import os
import time
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
from etils import epath
from jax.experimental import multihost_utils

from bigjax.core import settings
from bigjax.core.errors import UserError
from bigjax.core.rules import paths
from bigjax.run.checkpoint import hashes, leaves
from bigjax.run.checkpoint.folder import (
    POINTER,
    SAVED,
    CheckpointError,
    all_steps,
    begin_save,
    check_room,
    clean_up,
    end_save,
    folder_of,
    lost,
    remove,
    set_aside,
    sync_folders,
)
from bigjax.run.checkpoint.hashes import MANIFEST, PARTIAL, BadCheckpoint
from bigjax.run.checkpoint.processes import agree, from_first, gathered, is_mine, owner
from bigjax.run.files import write_atomic, write_json
from bigjax.run.text import duration

log = logging.getLogger("bigjax")


@dataclass(frozen=True)
class Origin:
    """What a checkpoint says of the run that wrote it; a resume checks `run`."""

    run: str | None = None  # the run's id, from its manifest.json
    config_fingerprint: str = ""
    batch_size: int = 0
    versions: Any = None


class Checkpoints:
    """The checkpoints of one run's folder.

    Args:
      workdir: the run's folder.
      options: the config's section `checkpoint`; a reader needs none.
      origin: of the run that writes here; None to read only: nothing is moved or removed then.
    """

    def __init__(
        self,
        workdir: Path | str,
        options: settings.Checkpoint = settings.Checkpoint(),  # noqa: B008 (frozen)
        origin: Origin | None = None,
    ) -> None:
        self._workdir = Path(workdir)
        self._folder = folder_of(workdir, origin and origin.run)
        if origin is not None and options.folder is not None and not self._folder.exists():
            self._folder = epath.Path(options.folder).expanduser() / str(origin.run)
            if jax.process_index() == 0:
                write_atomic(self._workdir / POINTER, f"{self._folder}\n")
        self._options = options
        self._origin = origin
        self._checkpointer = leaves.checkpointer()
        self._worker = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._saving: Future[None] | None = None
        self._spared: set[int] = set()  # too old to keep, but with files of others in them
        if origin is not None and jax.process_index() == 0:
            clean_up(self._folder, origin.run)

    def steps(self) -> list[int]:
        """Steps whose checkpoints have a true manifest; their files are not read."""
        return sorted(step for step in all_steps(self._folder) if self._manifest(step))

    def best_step(self) -> int | None:
        """The save with the best of `checkpoint.best`, the latest of equal ones; None if none has it."""
        scores = {
            step: self._manifest(step)["metrics"].get(self._options.best) for step in self.steps()
        }
        scores = {step: x for step, x in scores.items() if x is not None and not math.isnan(x)}
        choose = max if self._options.best_mode == "max" else min
        return choose(reversed(scores), key=scores.get) if scores else None

    def save(self, step: int, state: Any, metrics: dict[str, Any]) -> None:
        """Starts an asynchronous save; `state` may be donated to the next step once this returns.

        Hashes are computed, and the manifest written, in the background. What the run has logged up
        to this step is on the disk already (`Writers.sync`).

        Args:
          step: completed updates.
          state: the training state.
          metrics: what was evaluated at this step; the best-metric rule reads it.

        Raises:
          CheckpointError: this save could not start, or the one before it failed.
        """
        self.wait()
        best = self._options.best
        kept = {best: float(metrics[best])} if best in metrics else {}
        folder = self._folder / str(step)
        if manifest := self._manifest(step):
            if kept and not manifest["metrics"] and jax.process_index() == 0:
                _write_manifest(folder, {**manifest, "metrics": kept})
            return
        try:
            check_room(self._folder, _bytes_here(state))
            if jax.process_index() == 0:
                begin_save(self._folder, step, self._run)
            leaves.write_tree(self._checkpointer, folder, state)
        except Exception as error:
            raise self._save_failed(step, error) from error
        arrays = {path: leaf for path, leaf in paths(state).items() if leaf is not None}
        blocks = {path: hashes.host_blocks(leaf) for path, leaf in arrays.items()}
        layout = {
            path: {"shape": list(np.shape(leaf)), "dtype": str(leaf.dtype)}
            for path, leaf in arrays.items()
        }
        self._saving = self._worker.submit(self._finish, step, layout, blocks, kept)

    def check(self) -> None:
        """Raises the `CheckpointError` of a save that has failed since; never waits."""
        if self._saving is not None and self._saving.done():
            self.wait()

    def wait(self) -> None:
        """Waits for the save under way.

        Raises:
          CheckpointError: it failed.
        """
        saving, self._saving = self._saving, None
        if saving is not None:
            saving.result()

    def close(self) -> None:
        """Waits for the save under way and lets go of the threads. Raises as `wait`."""
        try:
            self.wait()
        finally:
            self._worker.shutdown()
            with contextlib.suppress(Exception):  # what failed in there, `wait` has raised already
                self._checkpointer.close()

    def restore(self, abstract_state: Any, step: int | None = None, *, verify: bool = True) -> Any:
        """The state at `step` (default: the newest), laid out as `abstract_state` says.

        Without `verify`, no file and no array is hashed; the manifest must be true all the same.

        Raises:
          CheckpointError: it is bad; the files and arrays are named. It stays where it is.
          UserError: its arrays are not those of this config.
        """
        self.wait()
        step = max(all_steps(self._folder)) if step is None else step
        try:
            return self._restore(step, abstract_state, verify)
        except BadCheckpoint as bad:
            raise CheckpointError(f"{self._folder / str(step)}: {bad}") from None

    def restore_newest(self, abstract_state: Any) -> tuple[int, Any] | None:
        """The newest good (step, state); None where nothing was ever saved.

        Bad checkpoints on the way are named and, unless this only reads, moved to
        `checkpoints/bad/<step>-<n>/`.

        Raises:
          CheckpointError: there are, or were, checkpoints and none is good; says what was tried.
          UserError: as `restore`.
        """
        self.wait()
        tried, steps = [], self._newest_first()
        while steps:
            step = steps.pop(0)
            try:
                return step, self._restore(step, abstract_state)
            except BadCheckpoint as bad:
                if self._is_gone(step):  # the run that writes there has pruned it: look again
                    tried, steps = [], self._newest_first()
                    continue
                where = self._set_aside(step, bad)
                tried.append(f"step {step}: {bad}")
                log.error("checkpoint of step %d is bad: %s%s", step, bad, where)
        why = "; ".join(tried)
        if not why and self._origin is not None:
            why = lost(self._workdir, self._folder, self._options.every)
        if why:
            raise CheckpointError(
                f"{self._folder}: no good checkpoint; {why}. This run does not start again from "
                "step 0 by itself: put a checkpoint back, or train in another --workdir"
            )
        return None

    def listing(self, verify_files: bool) -> list[dict[str, Any]]:
        """One row per checkpoint, newest first: step, MiB, age, metric and whether it is good.

        Args:
          verify_files: hash every file again; otherwise only the manifests are checked.
        """
        rows = []
        for step in sorted(all_steps(self._folder), reverse=True):
            folder, row = self._folder / str(step), {"step": step}
            try:
                manifest = hashes.read_manifest(folder, step=step, run=self._run)
                size = sum(file["size"] for file in manifest["files"].values())
                row["MiB"] = round(size / 2**20, 2)
                row["age"] = duration(time.time() - manifest["time"])
                row["metric"] = " ".join(f"{k} {v:.4g}" for k, v in manifest["metrics"].items())
                if verify_files:
                    self._check_files(step, manifest)
                row["state"] = "verified" if verify_files else "complete"
            except BadCheckpoint as bad:
                if not folder.exists():  # pruned while we looked
                    continue
                row["state"] = f"BAD: {bad}"
            rows.append(row)
        return rows

    # Saving, in the background.

    def _finish(self, step: int, layout: Any, blocks: Any, metrics: dict[str, float]) -> None:
        """Hashes the arrays, waits for Orbax, hashes its files, writes the manifest, prunes.

        Everything that the manifest vouches for is on the disk before it, and it before anything
        older is removed: a loss of power at any moment leaves a good checkpoint.
        """
        folder = self._folder / str(step)
        try:
            contents = hashes.block_hashes(blocks)
            self._checkpointer.wait_until_finished()
            names = filter(is_mine, sorted(hashes.files_of(folder), key=owner))
            files = hashes.file_hashes(folder, names, sync=True)
            parts = gathered(f"{self._run}/{step}", {"arrays": contents, "files": files})
            if jax.process_index() != 0:
                return
            for part in parts:
                for path, found in part["arrays"].items():
                    layout[path].setdefault("blocks", {}).update(found)
                files.update(part["files"])
            content = {
                "format": hashes.FORMAT,
                "run": self._run,
                "step": step,
                "sample_position": step * self._origin.batch_size,
                "config_fingerprint": self._origin.config_fingerprint,
                "versions": self._origin.versions,
                "time": time.time(),
                "metrics": metrics,
                "arrays": layout,
                "files": files,
            }
            _write_manifest(folder, content)
            write_json(self._workdir / SAVED, {"run": self._run, "step": step})
            end_save(self._folder, step)
            self._prune()
        except Exception as error:
            raise self._save_failed(step, error) from error

    def _save_failed(self, step: int, error: Exception) -> CheckpointError:
        good = [good for good in self.steps() if good != step]
        kept = f"the last good one is of step {good[-1]}" if good else "there is no earlier one"
        reason = " ".join(str(error).split())[:400] or type(error).__name__
        return CheckpointError(
            f"{self._folder}: the checkpoint of step {step} was not saved ({reason}); {kept}"
        )

    def _prune(self) -> None:
        """Removes what is neither among the newest `keep` nor the best."""
        manifests = {step: self._manifest(step) for step in self.steps()}
        kept = set(sorted(manifests)[-self._options.keep :])
        kept |= {self.best_step()} - {None}
        for step in manifests.keys() - kept - self._spared:
            if not remove(self._folder, step, manifests[step], self._run):
                self._spared.add(step)

    # Restoring.

    @property
    def _run(self) -> str | None:
        return self._origin.run if self._origin else None

    def _manifest(self, step: int) -> dict[str, Any] | None:
        try:
            return hashes.read_manifest(self._folder / str(step), step=step, run=self._run)
        except BadCheckpoint:
            return None

    def _restore(self, step: int, abstract_state: Any, verify: bool = True) -> Any:
        """The state at `step`, or `BadCheckpoint`, on all processes alike."""
        folder, problem, manifest, state = self._folder / str(step), "", None, None
        try:
            manifest = hashes.read_manifest(folder, step=step, run=self._run)
            if verify:
                self._check_files(step, manifest)
        except hashes.OtherFormat as other:  # nothing is wrong with it: it stays where it is
            raise UserError(f"{folder}: {other}; go on with the revision that wrote it") from None
        except BadCheckpoint as bad:
            problem = str(bad)
            if manifest is not None and jax.process_count() == 1:
                problem += leaves.damage(folder, manifest)
        agree(problem)
        wanted = {path: leaf for path, leaf in paths(abstract_state).items() if leaf is not None}
        if differences := hashes.check_layout(wanted, manifest["arrays"]):
            raise UserError(
                f"{folder} holds the state of another config: {'; '.join(differences[:5])}"
            )
        try:
            state = leaves.read_tree(folder, abstract_state)
        except Exception as error:
            if not folder.exists():
                raise BadCheckpoint("removed while it was read") from None
            raise leaves.unreadable(folder, error) from error
        arrays = {path: leaf for path, leaf in paths(state).items() if leaf is not None}
        wrong = hashes.wrong_arrays(arrays, manifest["arrays"]) if verify else []
        agree(f"arrays differ from what was saved: {hashes.some(wrong)}" if wrong else "")
        leaves.check_step(arrays, step)
        return state

    def _newest_first(self) -> list[int]:
        # One list for all processes: the others may look while the first still clears up.
        return from_first(sorted(all_steps(self._folder), reverse=True))

    def _is_gone(self, step: int) -> bool:
        return bool(from_first([int(not (self._folder / str(step)).exists())])[0])

    def _check_files(self, step: int, manifest: dict[str, Any]) -> None:
        count, index = jax.process_count(), jax.process_index()
        hashes.check_files(self._folder / str(step), manifest, lambda i: i % count == index)

    def _set_aside(self, step: int, bad: BadCheckpoint) -> str:
        """Moves a checkpoint out of the way; returns where it went, for the message."""
        if self._origin is None:
            return ""
        target = set_aside(self._folder, step, str(bad)) if jax.process_index() == 0 else None
        if jax.process_count() > 1:
            multihost_utils.sync_global_devices(f"bigjax set aside {step}")
        return f"; set aside as {target}" if target else ""


def _write_manifest(folder: epath.Path, content: dict[str, Any]) -> None:
    """Writes the manifest in one move: a reader, or a crash, sees a whole one or none."""
    partial = folder / PARTIAL
    with partial.open("w") as file:
        file.write(hashes.sealed(json.loads(json.dumps(content))))
        file.flush()
        if hashes.is_local(folder):
            os.fsync(file.fileno())
    sync_folders(folder)
    partial.replace(folder / MANIFEST)
    sync_folders(folder)


def _bytes_here(state: Any) -> int:
    """What this process writes of a state."""
    arrays = [leaf for leaf in jax.tree.leaves(state) if isinstance(leaf, jax.Array)]
    shards = [shard for array in arrays for shard in array.addressable_shards]
    return sum(shard.data.nbytes for shard in shards if shard.replica_id == 0)


def _is_news(record: logging.LogRecord) -> bool:
    """Not what Orbax's threads log, with its stack, and raise as well."""
    return "_SignalingThread.run()" not in str(record.msg) and "background save" not in str(
        record.msg
    )


logging.getLogger("absl").addFilter(_is_news)
