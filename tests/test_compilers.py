"""The compiler's known faults are mended, and huge pages asked for, however a process starts."""

import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import pytest

from bigjax.core import compilers

ROOT = Path(__file__).resolve().parent.parent

# 40,000 rows of 3 numbers through a sum of squares (jax issue 39103), against NumPy in float64.
SUMS = """
import {first}
import {second}
import jax, numpy as np
rng = np.random.default_rng(0)
rows, W = rng.normal(size=(40_000, 3)), rng.normal(size=(3, 3))
given = [np.float32(x) for x in (rows, W)]
sums = jax.jit(lambda X, W: jax.vmap(lambda r: jax.numpy.sum((W @ r) ** 2))(X))
right = np.sum((np.float64(given[0]) @ np.float64(given[1]).T) ** 2, axis=1)
print(np.max(np.abs(np.asarray(sums(*given)) / right - 1)))
"""


def largest_error(*, first, second, flags):
    code = SUMS.format(first=first, second=second)
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env={**os.environ, "XLA_FLAGS": flags},
        capture_output=True,
        text=True,
        check=True,
    )
    return float(done.stdout)


@pytest.mark.parametrize("order", [("bigjax", "jax"), ("jax", "bigjax")])
def test_reductions_over_many_rows_are_right_in_a_process_that_imports_bigjax(order):
    assert largest_error(first=order[0], second=order[1], flags="") < 1e-5


@pytest.mark.skipif(not compilers.remedies(), reason="this jaxlib needs no remedy")
def test_they_are_wrong_without_the_remedy():
    flags = compilers.remedies()[0].replace("-reduce", "+reduce")
    assert largest_error(first="bigjax", second="jax", flags=flags) > 1


@pytest.mark.parametrize("version", ["0.9.2", "0.10.1", "0.10.2.1", "0.11.2", "0.12.0.1", None])
def test_no_other_version_gets_a_flag_that_it_may_not_know(monkeypatch, version):
    def installed(name):
        if version is None:
            raise compilers.metadata.PackageNotFoundError
        return version

    monkeypatch.setattr(compilers.metadata, "version", installed)
    monkeypatch.setenv("XLA_FLAGS", "--mine")
    compilers.mend()
    assert os.environ["XLA_FLAGS"] == "--mine"


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("", "--xla_cpu_experimental_ynn_fusion_type=-reduce"),
        ("--a=1 --b", "--a=1 --b --xla_cpu_experimental_ynn_fusion_type=-reduce"),
        ("--xla_cpu_experimental_ynn_fusion_type=x", "--xla_cpu_experimental_ynn_fusion_type=x"),
    ],
)
def test_the_remedy_is_added_once_and_leaves_the_users_flags(monkeypatch, given, expected):
    monkeypatch.setattr(compilers.metadata, "version", lambda name: "0.10.2")
    monkeypatch.setenv("XLA_FLAGS", given)
    compilers.mend()
    compilers.mend()
    assert os.environ["XLA_FLAGS"] == expected


ASKED = (
    "glibc.malloc.hugetlb=1:glibc.malloc.arena_max=1:glibc.malloc.mmap_max=0:"
    "glibc.malloc.trim_threshold=17179869184"
)


@pytest.mark.parametrize("accelerator", [False, True])
@pytest.mark.parametrize(
    ("kernel", "given", "expected"),
    [
        ("always [madvise] never", {}, {"GLIBC_TUNABLES": ASKED}),
        (
            "always [madvise] never",
            {"GLIBC_TUNABLES": "glibc.malloc.check=3"},
            {"GLIBC_TUNABLES": f"glibc.malloc.check=3:{ASKED}"},
        ),
        (
            "always [madvise] never",
            {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=0"},
            {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=0"},
        ),
        ("[always] madvise never", {}, {}),
        ("always madvise [never]", {}, {}),
        (None, {}, {}),
    ],
)
def test_huge_pages_are_asked_for_where_the_kernel_offers_them(
    monkeypatch, tmp_path, kernel, given, expected, accelerator
):
    device = tmp_path / "device"
    monkeypatch.setattr(compilers, "HUGE_PAGES", tmp_path / "enabled")
    monkeypatch.setattr(compilers, "ACCELERATORS", (str(device),))
    if accelerator:
        device.touch()
        kept = ASKED.removeprefix("glibc.malloc.hugetlb=1")
        expected = {name: value.removesuffix(kept) for name, value in expected.items()}
    if kernel is not None:
        (tmp_path / "enabled").write_text(kernel)
    assert compilers.for_children({"HOME": "/x", **given}) == {"HOME": "/x", **expected}
    if kernel is not None:  # scripts/setup.sh says the same, for processes that no Python starts
        shell = (ROOT / "scripts/setup.sh").read_text()
        function = shell[shell.index("ask_for_huge_pages() {") :].partition("\n}\n")[0] + "\n}\n"
        done = subprocess.run(
            [
                "bash",
                "-euc",
                function + 'ask_for_huge_pages "$0" "$1"; env',
                str(tmp_path / "enabled"),
                str(device),
            ],
            env={"PATH": os.environ["PATH"], **given},
            capture_output=True,
            text=True,
            check=True,
        )
        lines = [line for line in done.stdout.splitlines() if line.startswith("GLIBC_TUNABLES=")]
        assert lines == [f"GLIBC_TUNABLES={value}" for value in expected.values()]


FAULTS = """
import resource, threading
import numpy as np

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    np.empty(100 << 20, np.uint8)[::4096] = 1
    found.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)

found = []
for _ in range(3):
    thread = threading.Thread(target=faults)
    thread.start()
    thread.join()
print(*found)
"""


@pytest.mark.skipif(not compilers.offers_huge_pages(), reason="the kernel offers no huge pages")
def test_a_large_buffer_is_faulted_in_once_whichever_thread_asks_for_it(monkeypatch):
    monkeypatch.setattr(compilers, "ACCELERATORS", ())

    def faults(environment):
        command = [sys.executable, "-c", FAULTS]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
        return [int(each) for each in done.stdout.split()]

    alone = {"PATH": os.environ["PATH"]}
    assert (
        min(faults(alone)) >= 50
    )  # each time, were they all of 2 MiB, for which NumPy asks itself
    first, *later = faults(compilers.for_children(alone))
    assert first >= 50
    assert max(later) < 10


def test_what_resolves_a_config_imports_no_orbax():
    code = "import sys, bigjax.verbs.launch, bigjax.loop.stages; assert 'orbax' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


def test_importing_bigjax_imports_no_jax_and_stays_cheap():
    code = "import sys, json; import bigjax; print(json.dumps('jax' in sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, check=True)
    assert json.loads(done.stdout) is False


COMPILE = """
from bigjax.core import compilers
compilers.keep_compiled()
import jax, time
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
start = time.perf_counter()
print(float(jax.jit(lambda x: jax.lax.fori_loop(0, 9, lambda i, y: y @ y, x).sum())(jax.numpy.eye(4))))
"""


@pytest.mark.parametrize(
    ("where", "kept"),
    [
        ("{folder}/mine", "mine"),
        ("", "home/bigjax/compiled"),
        ("off", None),
        ("/proc/nowhere", None),
    ],
)
def test_compiled_programs_are_kept_unless_told_otherwise(tmp_path, where, kept):
    env = {k: v for k, v in os.environ.items() if k != "JAX_COMPILATION_CACHE_DIR"}
    env |= {"JAX_ENABLE_COMPILATION_CACHE": "true", "XDG_CACHE_HOME": str(tmp_path / "home")}
    env |= {"BIGJAX_COMPILED": where.format(folder=tmp_path)}
    for _ in range(2):
        done = subprocess.run(
            [sys.executable, "-c", COMPILE], cwd=ROOT, env=env, capture_output=True, text=True
        )
        assert done.stdout.strip() == "4.0", done.stderr
        assert all(
            path.is_relative_to(tmp_path / (kept or "")) for path in tmp_path.rglob("*-cache")
        )
        assert bool([*tmp_path.rglob("*-cache")]) == (kept is not None)


def test_programs_are_forgotten_before_the_process_runs_out_of_memory_mappings():
    double = jax.jit(lambda x: 2 * x)
    assert double(3) == 6
    compilers.make_room()
    assert double._cache_size() == 1
    compilers.make_room(most=0)
    assert double._cache_size() == 0
    assert double(3) == 6
