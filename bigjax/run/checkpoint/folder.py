"""What lies in a run's folder of checkpoints, and what of it is ours to remove.

A file or folder is removed only if it carries one of the marks below *and* this run's id. Whatever
else lies there, a folder named by digits as well, is somebody's and stays. Knows no arrays.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import shutil
from pathlib import Path
from typing import Any

from etils import epath

from bigjax.core.errors import RunFailed, UserError
from bigjax.run.checkpoint import hashes
from bigjax.run.checkpoint.hashes import MANIFEST, PARTIAL, BadCheckpoint
from bigjax.run.files import RUN_ID, TEMPORARY, read_json, read_json_lines, sync, write_atomic
from bigjax.run.text import amount

log = logging.getLogger("bigjax")

POINTER = "checkpoints_at.txt"  # in the run's folder, where `checkpoint.folder` is used
SAVED = ".saved"  # in the run's folder: {run, step} of the newest save that was completed
ITEM = "default"  # the sub-folder of a step that Orbax's own CheckpointManager would use
SAVING = ".saving-"  # a file `.saving-STEP` that holds the run's id, while STEP is saved
DOOMED = ".deleting-"  # a folder `.deleting-RUN-STEP`: a checkpoint on its way out


class CheckpointError(RunFailed):
    """A save failed, or none of the checkpoints can be trusted. Says which, and why."""


def folder_of(workdir: Path | str, run: str | None = None) -> epath.Path:
    """Where a run's checkpoints lie: in its folder, or where the pointer there says.

    Raises:
      UserError: the pointer names a folder that is not called by a run's id, or not by `run`.
    """
    pointer = epath.Path(workdir) / POINTER
    if not pointer.exists():
        return (epath.Path(workdir) / "checkpoints").absolute()
    said = pointer.read_bytes().decode(errors="replace").strip()
    folder = epath.Path(said)
    if not (said.isprintable() and RUN_ID.fullmatch(folder.name)) or run not in (None, folder.name):
        raise UserError(
            f"{pointer}: {said[:200]!r} is not where this run keeps checkpoints"
            + (f" (its name would be {run})" if run else "")
        )
    return folder


def all_steps(folder: epath.Path) -> list[int]:
    """Steps that have a checkpoint, good or bad, and are not being saved just now."""
    names = {path.name for path in _listed(folder)}
    found = []
    for name in names:
        digits = name.isascii() and name.isdecimal() and str(int(name)) == name
        if digits and (
            (folder / name / MANIFEST).exists()
            or ((folder / name / ITEM).exists() and f"{SAVING}{name}" not in names)
        ):
            found.append(int(name))
    return found


def has_checkpoints(workdir: Path | str) -> bool:
    """Whether a run has saved anything, good or bad."""
    return bool(all_steps(folder_of(workdir)))


def newest_manifest(workdir: Path | str) -> dict[str, Any] | None:
    """The manifest of the newest checkpoint whose manifest is true; None without one."""
    folder = folder_of(workdir)
    for step in sorted(all_steps(folder), reverse=True):
        with contextlib.suppress(BadCheckpoint):
            found = hashes.read_manifest(folder / str(step), step=step, run=None)
            if RUN_ID.fullmatch(str(found["run"])):
                return found
    return None


def check_room(folder: epath.Path, needed: int) -> None:
    """Raises OSError where a disk has no room for so many bytes: Orbax finds out halfway, in its threads."""
    if "://" in os.fspath(folder):  # a bucket
        return
    there = next(path for path in (folder, *folder.parents) if os.path.isdir(path))
    if (free := shutil.disk_usage(there).free) < needed:
        said = f"the disk is full: {amount(needed)} are needed, {amount(free)} are free"
        raise OSError(errno.ENOSPC, said)


def begin_save(folder: epath.Path, step: int, run: str | None) -> None:
    """Marks `step` as being saved, and makes its folder.

    Half a save that does not say whose it is, is set aside.

    Raises:
      OSError: something else of that name holds files.
    """
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / str(step)
    if there := _listed(target):
        if not all(_is_saved(path) for path in there):
            raise FileExistsError(f"{target} is there already and is no checkpoint: move it away")
        log.warning("%s: half a save; moved to %s", target, set_aside(folder, step, "half a save"))
    mark = folder / f"{SAVING}{step}"
    if hashes.is_local(folder) and not all_steps(folder):
        # After a loss of power, too, the rest of a run's first save is known as half a save.
        write_atomic(mark, f"{run}\n")
    else:  # there is an older one to go on from, or a bucket, which keeps what is written
        mark.write_text(f"{run}\n")
    target.mkdir(exist_ok=True)


def end_save(folder: epath.Path, step: int) -> None:
    (folder / f"{SAVING}{step}").unlink()


def sync_folders(folder: epath.Path) -> None:
    """The names of all files below a folder, and its own, survive a loss of power from here on."""
    if hashes.is_local(folder):
        for path in (folder, *(p for p in Path(folder).rglob("*") if p.is_dir()), folder.parent):
            sync(path)


def clean_up(folder: epath.Path, run: str | None) -> None:
    """Removes what a killed process of this run left of saves and removals, and says so."""
    for path in _listed(folder):
        step = path.name.removeprefix(SAVING)
        if path.name.startswith(f"{DOOMED}{run}-"):
            _remove(path)
            log.info("%s: removed the rest of a checkpoint that was being removed", path)
        elif path.name.startswith(f".{SAVING}") and path.name.endswith(TEMPORARY):
            path.unlink()
        elif path.name.startswith(SAVING) and path.is_file() and _says(path, run):
            if step.isdecimal() and not (folder / step / MANIFEST).exists():
                _remove_half(folder / step)
            path.unlink()


def remove(folder: epath.Path, step: int, manifest: dict[str, Any], run: str | None) -> bool:
    """Removes a checkpoint of this run; False, and it stays, if it holds files that it did not save."""
    target = folder / str(step)
    if foreign := set(hashes.files_of(target)) - manifest["files"].keys():
        log.warning("%s stays: %s in it is not of the checkpoint", target, sorted(foreign)[0])
        return False
    doomed = folder / f"{DOOMED}{run}-{step}"  # a kill half-way leaves no half checkpoint
    target.rename(doomed)
    _remove(doomed)
    return True


def set_aside(folder: epath.Path, step: int, why: str) -> epath.Path:
    """Moves a bad checkpoint to `bad/STEP-N`; nothing is removed.

    Raises:
      CheckpointError: it cannot be moved.
    """
    try:
        (folder / "bad").mkdir(parents=True, exist_ok=True)
        taken = {path.name for path in (folder / "bad").iterdir()}
        number = next(n for n in range(1, len(taken) + 2) if f"{step}-{n}" not in taken)
        target = folder / "bad" / f"{step}-{number}"
        (folder / str(step)).rename(target)
        (target / "why.txt").write_text(f"{why}\n")
    except OSError as error:
        raise CheckpointError(
            f"{folder / str(step)} is bad ({why}), and cannot be moved to {folder / 'bad'} "
            f"({error.strerror}): move it away by hand"
        ) from None
    return target


def lost(workdir: Path, folder: epath.Path, every: Any) -> str | None:
    """What shows that a run without any checkpoint had some; None if nothing does.

    Args:
      every: the config's `checkpoint.every`. Where metrics reach beyond two saves that were due, the
        first of them was completed: the second waits for it.
    """
    aside = folder / "bad"
    if aside.is_dir() and list(aside.iterdir()):
        return f"{aside} holds what was set aside as bad"
    saved, manifest = read_json(workdir / SAVED), read_json(workdir / "manifest.json")
    if saved:
        return f"step {saved.get('step')} was saved"
    starts = (manifest or {}).get("resumes")
    if any(
        isinstance(s, dict) and s.get("step") for s in (starts if isinstance(starts, list) else ())
    ):
        return "manifest.json tells of a resume"
    if (workdir / "result.json").exists():
        return "it has a result.json"
    lines, _ = read_json_lines(workdir / "metrics.jsonl")
    last = max((s for line in lines if isinstance(s := line.get("step"), int)), default=0)
    if isinstance(every, int) and last > 2 * every:
        return f"metrics.jsonl reaches step {last}"
    return None


def _listed(folder: epath.Path) -> list[epath.Path]:
    try:
        return list(folder.iterdir())
    except FileNotFoundError:
        return []
    except OSError as error:
        raise UserError(f"{folder}: cannot be read ({error.strerror})") from None


def _says(path: epath.Path, run: str | None) -> bool:
    return path.read_bytes().decode(errors="replace").strip() == run


def _is_saved(path: epath.Path) -> bool:
    """Whether this, in the folder of a step, is by its name something that a save wrote."""
    return path.name in (ITEM, PARTIAL) or path.name.startswith(f"{ITEM}.orbax-checkpoint-tmp")


def _remove(path: epath.Path) -> None:
    """Removes a folder; of a link, the link."""
    if hashes.is_local(path) and Path(path).is_symlink():
        path.unlink()
    else:
        path.rmtree()


def _remove_half(folder: epath.Path) -> None:
    """Removes what Orbax and we wrote of a save; what else lies there stays."""
    for path in _listed(folder):
        if _is_saved(path):
            path.unlink() if path.is_file() else _remove(path)
    with contextlib.suppress(OSError):
        folder.rmdir()
        log.info("%s: removed what a killed save left", folder)


def step_of_result(workdir: Path) -> int | None:
    """The step of the checkpoint that a finished run is; None if it is just the newest.

    A run that has gone on since, or has lost that checkpoint, is its newest one again.
    """
    result, steps = read_json(Path(workdir) / "result.json") or {}, all_steps(folder_of(workdir))
    best = result.get("best_step")
    return best if best in steps and result.get("step") == max(steps) else None
