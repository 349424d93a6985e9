"""The doctor's short form: once per environment, at the first launch."""

from __future__ import annotations

import hashlib
import json
import os
import platform
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import jax

from bigjax.core.errors import UserError
from bigjax.doctor import answers, finding, versions

QUICK = ("sums of 40,000 products of 3 x 3", "product 257 x 129 x 65", "softmax")


def trusted() -> dict[str, Any]:
    """The verdict on this environment.

    Raises:
      UserError: it computes wrong numbers.
    """
    found = verdict()
    if not found["ok"]:
        raise UserError(
            f"this machine cannot be trusted: {found['said']} (python -m bigjax.doctor)"
        )
    return found


def verdict(folder: Path | None = None) -> dict[str, Any]:
    """What a short look at this environment found: {"ok", "said", "environment"}; for the manifest.

    Looks once; later calls, of other processes too, read what was found. Touches the devices.

    Args:
      folder: where verdicts are kept; default `bigjax/doctor` in the user's cache folder.
    """
    environment = fingerprint()
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    path = (folder or base / "bigjax" / "doctor") / f"{environment}.json"
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError):
        pass
    findings = list(finding.run([versions.known_faults, _quick_answers]))
    found = {
        "ok": all(one.status != "wrong" for one in findings),
        "said": finding.verdict(findings),
        "environment": environment,
    }
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        own = path.with_suffix(f".{os.getpid()}")
        own.write_text(json.dumps(found))
        own.replace(path)
    except OSError:
        pass  # a home that cannot be written to: the next process looks again
    return found


def fingerprint() -> str:
    """A hash of what may change the numbers: versions, flags, devices, processor."""
    parts = [
        *(metadata.version(package) for package in ("jax", "jaxlib")),
        os.environ.get("XLA_FLAGS", ""),
        *(f"{device.platform} {device.device_kind}" for device in jax.devices()),
        platform.machine(),
        platform.processor(),
        platform.node(),
    ]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]


def _quick_answers() -> Iterator[finding.Finding]:
    for name in QUICK:
        yield answers.check_answer(name)
