"""Files that are whole or not there: atomic writes, strict JSON, and the lock of a run's folder.

Knows nothing of models or configs. What a kill leaves behind carries `TEMPORARY` in its name, so that
only our own leavings are ever cleaned up.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import logging
import math
import os
import re
import secrets
import shutil
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from bigjax.core.errors import UserError
from bigjax.mesh.distributed import is_leader

log = logging.getLogger("bigjax")

TEMPORARY = ".bigjax-tmp"
RUN_ID = re.compile(r"[0-9a-f]{16}")  # a run's id, see `bigjax.run.manifest`
WRITTEN = (  # by a run, in its folder
    "bad_step.json", "checkpoints_at.txt", "config.json", "manifest.json", "metrics.jsonl",
    "report.html", "result.json", ".saved", "skipped.jsonl", "time.json", "train_mean.json",
)  # fmt: skip
MOST_TRIES = 8  # to find where a line begins that was glued to a torn one
DAY = 86400.0  # seconds; a private folder older than this belongs to a process that is gone


def write_atomic(path: str | Path, text: str) -> None:
    """Replaces `path` by `text` in one move: a reader, a crash or a loss of power sees old or new.

    Raises:
      OSError: naming `path`, e.g. for a full disk; the old file stays.
    """
    path = Path(path)
    temporary = _temporary(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, "x", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        sync(path.parent)
    except BaseException as error:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.errno:
            error.filename = str(path)
        raise


def sync(path: str | Path) -> None:
    """What a file holds, or which names a folder holds, survives a loss of power from here on."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno != errno.EINVAL:  # a file system that cannot, or need not
            raise
    finally:
        os.close(handle)


def publish(final: Path, write: Callable[[Path], None]) -> bool:
    """Makes the folder `final`, whole or not at all: `write(private)` fills one that is renamed.

    Of several processes the first to finish wins. Returns False if `final` was there already.
    """
    if final.exists():
        return False
    private = _temporary(final)
    try:
        private.mkdir(parents=True)
        for left in final.parent.glob(f".{final.name}.*{TEMPORARY}"):
            if time.time() - left.stat().st_mtime > DAY:
                shutil.rmtree(left, ignore_errors=True)
    except OSError as error:
        raise UserError(f"cannot write {final.parent}: {error.strerror}") from None
    try:
        write(private)
        try:
            os.rename(private, final)
        except OSError:
            if not final.exists():  # unless another process was first
                raise
    finally:
        shutil.rmtree(private, ignore_errors=True)
    return True


def write_json(path: str | Path, value: object) -> None:
    """Writes `value` as indented JSON, atomically; arrays and non-finite numbers as in `plain`."""
    write_atomic(path, json.dumps(plain(value), indent=2, ensure_ascii=False) + "\n")


def read_json(path: Path) -> dict[str, Any] | None:
    """The JSON object in a file; None if there is no file, or, with a warning, if it is damaged.

    Raises:
      UserError: there is something else of that name, or it may not be read.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None
    except (ValueError, RecursionError) as error:
        log.warning("%s is damaged and counts as lost (%s)", path, error)
        return None
    if not isinstance(found, dict):
        log.warning("%s is damaged and counts as lost (no JSON object)", path)
        return None
    return found


def read_json_lines(path: Path) -> tuple[list[dict[str, Any]], list[str]]:
    """The objects of a file of JSON lines, and what is wrong with it, a line of text each.

    Lines that were glued together are taken apart; what cannot be read is left out and named, but
    for a last line that has no end: it is being written, or was when its process was killed. Without
    a file there are none.

    Raises:
      UserError: as `read_json`.
    """
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").split("\n")
    except FileNotFoundError:
        return [], []
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None
    decoder, found, problems = json.JSONDecoder(), [], []
    for number, line in enumerate(lines, 1):
        at, torn = 0, 0
        while torn < MOST_TRIES and (at := line.find("{", at)) >= 0:
            try:
                item, at = decoder.raw_decode(line, at)
                found.append(item)
            except (ValueError, RecursionError):
                at, torn = at + 1, torn + 1
        if (torn or (line.strip() and "{" not in line)) and number < len(lines):
            problems.append(f"line {number} is torn; what is lost of it is left out")
    return found, problems


def plain(value: object) -> object:
    """Returns `value` as strict JSON can hold it.

    Arrays and array scalars become (nested) lists and numbers, tuples lists, and the numbers that
    JSON lacks become the strings "NaN", "Infinity" and "-Infinity", which `float` turns back (the
    convention of Protocol Buffers' JSON mapping). Anything else is returned as it is.
    """
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if isinstance(value, (np.ndarray, np.generic)) or hasattr(value, "__array__"):
        return plain(np.asarray(value).tolist())
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    return value


@contextlib.contextmanager
def workdir_lock(workdir: Path) -> Iterator[None]:
    """Holds `workdir/.lock` while the block runs; of several processes of one run, the first does.

    The lock goes with its process, however that ends. Temporary files that killed processes left in
    the folder are removed.

    Raises:
      UserError: another process holds it (its number and host are named), it cannot be made, or a
        folder stands where a run writes a file.
    """
    if not is_leader():
        yield
        return
    path = workdir / ".lock"
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        file = open(path, "a+")  # noqa: SIM115
    except OSError as error:
        raise UserError(f"{path}: cannot lock the folder ({error.strerror})") from None
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            holder = file.read().strip() or "another process"
            raise UserError(f"{workdir} is being written by {holder}") from None
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
        file.flush()
        for left in workdir.glob(f".*{TEMPORARY}"):
            if left.is_file():
                left.unlink()
        if wrong := [name for name in WRITTEN if (workdir / name).is_dir()]:
            raise UserError(
                f"{workdir / wrong[0]}: a folder, where the run's file belongs; move it"
            )
        try:
            yield
        finally:
            left = [path.name for path in workdir.iterdir()] if workdir.exists() else []
            if left == [".lock"]:  # nothing came of the run
                path.unlink()
                workdir.rmdir()


def set_aside(workdir: Path) -> Path | None:
    """Renames the folder of a run, or of a pipeline's, by the time of now and returns its new place;
    None if there is no run.

    Raises:
      UserError: a process writes it.
    """
    if not any((*workdir.glob("config.json"), *workdir.glob("*/*/config.json"))):
        return None
    with workdir_lock(workdir):
        now = time.strftime("%Y-%m-%dT%H-%M-%S")
        names = [f"{workdir.name}.before-{now}{more}" for more in ("", *"bcdefgh")]
        aside = next(p for name in names if not (p := workdir.with_name(name)).exists())
        workdir.rename(aside)
    return aside


def _temporary(path: Path) -> Path:
    """A name beside `path`; what is made under it gets the user's umask, as `tempfile`'s does not."""
    return path.with_name(f".{path.name}.{secrets.token_hex(4)}{TEMPORARY}")
