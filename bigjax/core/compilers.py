"""What a process must be told before JAX starts in it: remedies for compilers, and huge pages.

`import bigjax` calls `mend`, so that every way to start gets the remedy: scripts, `python -m`, workers,
notebooks. Standard library only; nothing here imports JAX. What was set is in the run's manifest.
"""

from __future__ import annotations

import gc
import hashlib
import os
import platform
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path

# jaxlib version -> XLA flags without which it computes wrong numbers. Other versions may not know a
# flag, and an unknown one aborts the process: never set for a version that is not in this table.
REMEDIES = {
    # Some float32 reductions over more than 32,768 rows on a CPU (jax issue 39103).
    "0.10.2": ("--xla_cpu_experimental_ynn_fusion_type=-reduce",),
}
HUGE_PAGES = Path("/sys/kernel/mm/transparent_hugepage/enabled")
TUNABLE = "glibc.malloc.hugetlb"
# With huge pages, XLA's buffers are also kept from one step to the next, where the C library would give them
# back to the kernel and ask for them again, zeroed: one arena for all threads, no mappings of their own, no
# trimming below 16 GiB. Only where the CPU computes: with an accelerator nothing is known to be gained, and memory that is
# never given back is felt.
KEPT = "glibc.malloc.arena_max=1:glibc.malloc.mmap_max=0:glibc.malloc.trim_threshold=17179869184"
ACCELERATORS = ("/dev/nvidiactl", "/dev/kfd", "/dev/accel0", "/dev/vfio/0")  # NVIDIA, AMD, TPU
MOST_COMPILED = 4 << 30  # bytes kept on disk; the least used go first
# Where train steps are kept (`build.kept`), once `keep_compiled` has said so.
KEPT_STEPS: Path | None = None
MAPPINGS = Path("/proc/self/maps")
MOST_MAPPINGS = 30_000  # of a process; Linux allows 65,530 (vm.max_map_count)


def mend() -> None:
    """Adds the remedies of the installed jaxlib to XLA_FLAGS; JAX reads them when its backend starts.

    A flag that the user has set stays as it is.
    """
    given = os.environ.get("XLA_FLAGS", "").split()
    known = {flag.partition("=")[0] for flag in given}
    missing = [flag for flag in remedies() if flag.partition("=")[0] not in known]
    if missing:
        os.environ["XLA_FLAGS"] = " ".join([*given, *missing])


def remedies() -> tuple[str, ...]:
    """The XLA flags that the installed jaxlib needs."""
    try:
        return REMEDIES.get(metadata.version("jaxlib"), ())
    except metadata.PackageNotFoundError:  # JAX says it better when it is imported
        return ()


def keep_compiled() -> None:
    """Keeps compiled programs on this machine's disk, so that a second start need not compile.

    In `~/.cache/bigjax/compiled`, or BIGJAX_COMPILED=FOLDER ("off": not at all), one folder for each kind
    of processor, as a program is compiled for its instructions; bounded, and safe with many processes
    (both are JAX's own work). Where the folder cannot be made, nothing is kept.
    """
    import jax

    global KEPT_STEPS
    where = os.environ.get("BIGJAX_COMPILED") or _cache_home() / "bigjax" / "compiled"
    if where == "off" or jax.config.jax_compilation_cache_dir:
        return
    machine = hashlib.sha256(_processor().encode()).hexdigest()[:12]
    folder = Path(where).expanduser() / machine
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return
    KEPT_STEPS = folder / "steps"
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_compilation_cache_max_size", MOST_COMPILED)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.3)


def _cache_home() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()


def make_room(most: int = MOST_MAPPINGS) -> None:
    """Forgets the compiled programs of this process where they have become too many.

    On a CPU a compiled program takes about three memory mappings of its process; one that has used up
    what Linux allows dies of a segmentation fault within the next compilation, or as the program is
    written to disk (seen with jaxlib 0.10.2 after 22,000 programs). What is still used is compiled again.
    """
    import jax

    try:
        mappings = MAPPINGS.read_bytes().count(b"\n")
    except OSError:  # not Linux
        return
    if mappings > most:
        jax.clear_caches()
        gc.collect()


def _processor() -> str:
    """What programs are compiled for: the kind of processor, and how many cores share a product."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:  # not Linux
        lines = [f"model name {platform.processor() or platform.machine()}"]
    kind = {x for x in lines if x.startswith(("model name", "flags", "Features"))}
    return "\n".join([*sorted(kind), os.environ.get("NPROC") or str(len(cores()))])


def cores() -> list[int]:
    """The CPU cores that this process may use."""
    try:
        return sorted(os.sched_getaffinity(0))
    except AttributeError:  # not Linux
        return list(range(os.cpu_count() or 1))


def offers_huge_pages() -> bool:
    """Whether the kernel gives huge pages to the programs that ask for them."""
    try:
        return "[madvise]" in HUGE_PAGES.read_text()
    except OSError:  # not Linux
        return False


def for_children(environment: Mapping[str, str]) -> dict[str, str]:
    """`environment`, with huge pages asked for where the kernel offers them, and on a CPU memory kept.

    XLA's large buffers are then a page fault for each 2 MB instead of each 4 KB, and at their first use alone. The C library reads
    it as a process starts, so a parent must say it: scripts/setup.sh does, and whoever starts workers.
    """
    given = environment.get("GLIBC_TUNABLES", "")
    if TUNABLE in given or not offers_huge_pages():
        return dict(environment)
    kept = "" if any(os.path.exists(device) for device in ACCELERATORS) else KEPT
    tunables = ":".join(filter(None, [given, f"{TUNABLE}=1", kept]))
    return {**environment, "GLIBC_TUNABLES": tunables}
