"""Versions that are known to be wrong, with the issue and the remedy, and what bigjax is tested with."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import metadata

import jax

from bigjax.core.compilers import REMEDIES
from bigjax.doctor.finding import Finding

TESTED = {"jaxlib": ("0.10.2", "0.12.0.1")}


@dataclass(frozen=True)
class Known:
    """A fault of some versions of a package.

    mended: whether this process has the remedy; it is asked only where the version has the fault.
    """

    package: str
    versions: tuple[str, ...]
    fault: str
    issue: str
    remedy: str
    mended: Callable[[], bool]


def _flags_are_set() -> bool:
    given = os.environ.get("XLA_FLAGS", "").split()
    return jax.default_backend() != "cpu" or all(f in given for f in REMEDIES["0.10.2"])


KNOWN = (
    Known(
        "jaxlib",
        ("0.10.2",),
        "some float32 reductions over more than 32,768 rows are wrong on a CPU",
        "jax issue 39103",
        "import bigjax before JAX's backend starts, and leave its XLA flag in XLA_FLAGS",
        _flags_are_set,
    ),
    Known(
        "jaxlib",
        ("0.10.2",),
        "gradients of a kernel split two ways and used in a loop (LSTM, GRU) are wrong by 10 to 120 %",
        "seen on a mesh of 2 x 2 x 2",
        "bigjax.models.rnn gathers such kernels before the loop; do the same in a loop of your own",
        lambda: True,
    ),
    Known(
        "jaxlib",
        ("0.12.0", "0.12.0.1"),
        "a normal draw differs by one ulp with its sharding (a product contracted into log1p)",
        "seen on a CPU",
        "bigjax.core.exact makes initial values that cannot differ",
        lambda: True,
    ),
)
# CUDA release of the installed plugin -> the oldest NVIDIA driver that runs it (JAX's installation page).
DRIVERS = {"jax-cuda13-plugin": 580, "jax-cuda12-plugin": 525}


def known_faults() -> Iterator[Finding]:
    """One finding for each known fault of an installed version, and one for each tested package."""
    for package, tested in TESTED.items():
        version = metadata.version(package)
        if version in tested:
            yield Finding(f"{package} {version}", "ok", "bigjax's tests pass with it")
        else:
            yield Finding(
                f"{package} {version}",
                "note",
                f"not a version that bigjax is tested with ({', '.join(tested)})",
            )
    for known in KNOWN:
        version = metadata.version(known.package)
        if version in known.versions:
            detail = f"{known.fault} ({known.issue})"
            mended = known.mended()
            yield Finding(
                f"{known.package} {version}",
                "ok" if mended else "wrong",
                f"mended here: {detail}" if mended else detail,
                known.remedy,
            )


def driver() -> Iterator[Finding]:
    """Whether NVIDIA's driver is new enough for the CUDA plugin; nothing where there is none."""
    for plugin, oldest in DRIVERS.items():
        try:
            metadata.version(plugin)
        except metadata.PackageNotFoundError:
            continue
        command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
        try:
            found = subprocess.run(command, capture_output=True, text=True, timeout=10).stdout
            version = found.split()[0]
        except (OSError, subprocess.TimeoutExpired, IndexError):
            yield Finding(
                "NVIDIA driver", "note", f"{plugin} is installed, but nvidia-smi shows no GPU"
            )
            continue
        new = int(version.partition(".")[0]) >= oldest
        yield Finding(
            "NVIDIA driver",
            "ok" if new else "wrong",
            f"{version} for {plugin}",
            "" if new else f"install driver {oldest} or newer",
        )
