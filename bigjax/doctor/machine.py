"""The machine around the devices: huge pages, compilation cache, disk, memory, clock. Notes, mostly."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import jax

from bigjax.core.compilers import TUNABLE, offers_huge_pages
from bigjax.doctor.finding import Finding

MIB = 2**20
SLOW_DISK, SLOW_FSYNC = 50, 1.0  # MiB/s, seconds
LITTLE_MEMORY = 2 * 2**30  # bytes


def huge_pages() -> Iterator[Finding]:
    """Whether XLA's buffers get huge pages."""
    if not offers_huge_pages():
        yield Finding("huge pages", "ok", "not offered on request by this kernel")
    elif f"{TUNABLE}=1" in os.environ.get("GLIBC_TUNABLES", ""):
        yield Finding("huge pages", "ok", "asked for")
    else:
        yield Finding(
            "huge pages",
            "note",
            "offered, but not asked for: steps with large buffers are up to a third slower",
            f"start through scripts/run, or with GLIBC_TUNABLES={TUNABLE}=1",
        )


def compilation_cache() -> Iterator[Finding]:
    """Whether compiled programs are kept between processes."""
    folder = jax.config.jax_compilation_cache_dir
    if not folder:
        remedy = "JAX_COMPILATION_CACHE_DIR=FOLDER keeps what was compiled"
        yield Finding("compilation cache", "note", "none: every process compiles anew", remedy)
    elif os.path.isdir(folder) and not os.access(folder, os.W_OK):
        yield Finding("compilation cache", "note", f"{folder} cannot be written to")
    else:
        yield Finding("compilation cache", "ok", folder)


def disk(folder: Path | None = None) -> Iterator[Finding]:
    """How fast 64 MiB are written and made to last in a folder (default: the current one)."""
    folder = folder or Path.cwd()
    data = os.urandom(MIB)
    with tempfile.NamedTemporaryFile(dir=folder) as file:
        start = time.monotonic()
        for _ in range(64):
            file.write(data)
        file.flush()
        os.fsync(file.fileno())
        speed = 64 / (time.monotonic() - start)
        file.seek(0)
        file.write(b"1")
        file.flush()
        start = time.monotonic()
        os.fsync(file.fileno())
        waited = time.monotonic() - start
    good = speed >= SLOW_DISK and waited <= SLOW_FSYNC
    detail = f"{folder}: {speed:.0f} MiB/s written and synced, fsync {waited * 1e3:.1f} ms"
    remedy = "" if good else "saves will be slow: point --workdir at a faster disk"
    yield Finding("disk", "ok" if good else "note", detail, remedy)


def memory() -> Iterator[Finding]:
    """Free memory of the host, and of each device that tells."""
    free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    for line in _lines("/proc/meminfo"):
        if line.startswith("MemAvailable:"):  # counts what caches would give back
            free = int(line.split()[1]) * 1024
    status = "ok" if free >= LITTLE_MEMORY else "note"
    yield Finding("free memory, host", status, f"{free / 2**30:.1f} GiB")
    for device in jax.local_devices():
        stats = device.memory_stats() or {}
        if "bytes_limit" in stats:
            left = stats["bytes_limit"] - stats.get("bytes_in_use", 0)
            yield Finding(f"free memory, {device}", "ok", f"{left / 2**30:.1f} GiB")


def clock() -> Iterator[Finding]:
    """Whether the wall clock keeps pace, and does not stand before bigjax was written here."""
    wall, steady = time.time(), time.monotonic()
    time.sleep(0.05)
    drift = abs((time.time() - wall) - (time.monotonic() - steady))
    behind = Path(__file__).stat().st_mtime - time.time()
    if behind > 60:
        yield Finding(
            "clock", "wrong", f"{behind / 3600:.1f} hours before bigjax's own files were written",
            "set the clock: files by age, certificates and start times depend on it",
        )  # fmt: skip
    elif drift > 0.01:
        yield Finding("clock", "note", f"the wall clock jumped by {drift * 1e3:.0f} ms in 50 ms")
    else:
        yield Finding("clock", "ok", time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()))


def _lines(path: str) -> list[str]:
    try:
        return Path(path).read_text().splitlines()
    except OSError:  # not Linux
        return []
