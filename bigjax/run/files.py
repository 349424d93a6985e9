"""Files that are whole or not there: atomic writes, and JSON that any strict parser reads.

Knows nothing of runs, models or JAX.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np

from bigjax.core.errors import UserError


def write_atomic(path: str | Path, text: str) -> None:
    """Replaces `path` by `text` in one move: a reader, or a crash, sees the old file or the new."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)  # mkstemp makes files that only the owner can read
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def publish(final: Path, write: Callable[[Path], None]) -> bool:
    """Makes the folder `final`, whole or not at all: `write(private)` fills one that is renamed.

    Of several processes the first to finish wins. Returns False if `final` was there already.
    """
    if final.exists():
        return False
    try:
        final.parent.mkdir(parents=True, exist_ok=True)
        private = Path(tempfile.mkdtemp(prefix=f".{final.name}.", dir=final.parent))
    except OSError as error:
        raise UserError(f"cannot write {final.parent}: {error.strerror}") from None
    try:
        write(private)
        private.chmod(0o755)  # mkdtemp's is for the owner alone
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
