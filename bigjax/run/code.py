"""Which code runs here: bigjax's revision and hash, and the versions of what it stands on."""

from __future__ import annotations

import hashlib
import platform
import subprocess
from importlib import metadata
from typing import Any

from bigjax.run.public import PROJECT

PACKAGES = (
    "jax",
    "jaxlib",
    "flax",
    "optax",
    "orbax-checkpoint",
    "numpy",
    "tensorflow-datasets",
)


def code_revision() -> dict[str, Any]:
    """The git revision of bigjax's checkout, whether files differ from it, and the hash of the code.

    The first two are None outside of git.
    """
    revision, changed = _git("rev-parse", "HEAD"), code_diff()
    return {
        "revision": revision and revision.strip(),
        "modified": bool(changed) if changed is not None else None,
        "source": source_hash(),
    }


def code_diff() -> str | None:
    """What `git apply` turns the revision into the tracked files with; None outside of git."""
    return _git("diff", "HEAD", "--binary")


def source_hash() -> str:
    """sha256 over the path and text of every Python file of bigjax."""
    folder, digest = PROJECT / "bigjax", hashlib.sha256()
    for path in sorted(folder.rglob("*.py")):
        digest.update(f"{path.relative_to(folder)}\n".encode() + path.read_bytes())
    return digest.hexdigest()


def _git(*arguments: str) -> str | None:
    """What git says of bigjax's checkout; None if it is none, or git is not there."""
    command = ["git", "-C", str(PROJECT), *arguments]
    try:
        done = subprocess.run(command, capture_output=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.decode(errors="replace") if done.returncode == 0 else None


def versions() -> dict[str, str]:
    """Package -> version of what decides the numbers of a run; "python" too."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found
