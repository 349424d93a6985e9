"""What a run was made of: code revision, versions, devices, flags, data. Written to `manifest.json`."""

from __future__ import annotations

import hashlib
import os
import platform
import subprocess
import sys
import time
from importlib import metadata
from pathlib import Path
from typing import Any

import jax

PACKAGES = (
    "jax",
    "jaxlib",
    "flax",
    "optax",
    "orbax-checkpoint",
    "grain",
    "numpy",
    "tensorflow-datasets",
)
FLAGS = ("XLA_FLAGS", "JAX_PLATFORMS", "LIBTPU_INIT_ARGS", "JAX_DEFAULT_MATMUL_PRECISION")


def describe(config: Any, mesh: Any, sources: dict[str, Any]) -> dict[str, Any]:
    """The manifest of a run that starts now.

    Args:
      config: the run's `Config`.
      mesh: the run's mesh.
      sources: split name -> data source.
    """
    devices = mesh.devices.flatten()
    return {
        "command": " ".join(sys.argv),
        "started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "seed": config.seed,
        "config_fingerprint": config.fingerprint,
        "code": code_revision(),
        "versions": {"python": platform.python_version(), **_versions()},
        "devices": {
            "platform": devices[0].platform,
            "kind": devices[0].device_kind,
            "count": len(devices),
            "processes": jax.process_count(),
            "mesh": {axis: size for axis, size in mesh.shape.items() if size > 1},
        },
        "flags": {name: os.environ[name] for name in FLAGS if name in os.environ},
        "data": {
            split: {"examples": len(source), "fingerprint": source.fingerprint()}
            for split, source in sources.items()
        },
        "class_names": sources["train"].class_names,
    }


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
    folder, digest = Path(__file__).resolve().parents[1], hashlib.sha256()
    for path in sorted(folder.rglob("*.py")):
        digest.update(f"{path.relative_to(folder)}\n".encode() + path.read_bytes())
    return digest.hexdigest()


def _git(*arguments: str) -> str | None:
    """What git says of bigjax's checkout; None if it is none, or git is not there."""
    command = ["git", "-C", str(Path(__file__).resolve().parents[2]), *arguments]
    try:
        done = subprocess.run(command, capture_output=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.decode(errors="replace") if done.returncode == 0 else None


def _versions() -> dict[str, str]:
    found = {}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found
