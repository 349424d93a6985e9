"""One process writes a run's folder at a time. The lock goes with its process, however that ends."""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
from collections.abc import Iterator
from pathlib import Path

import jax

from bigjax.core.errors import UserError


@contextlib.contextmanager
def workdir_lock(workdir: Path) -> Iterator[None]:
    """Holds `workdir/.lock` while the block runs; of several processes of one run, the first does.

    Raises:
      UserError: another process holds it; its number and host are named.
    """
    if jax.process_index() != 0:
        yield
        return
    workdir.mkdir(parents=True, exist_ok=True)
    with open(workdir / ".lock", "a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            holder = file.read().strip() or "another process"
            raise UserError(f"{workdir} is being written by {holder}") from None
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
        file.flush()
        try:
            yield
        finally:
            if [path.name for path in workdir.iterdir()] == [".lock"]:  # nothing came of the run
                (workdir / ".lock").unlink()
                workdir.rmdir()
