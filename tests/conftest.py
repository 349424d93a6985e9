"""Eight simulated devices for every test; set before JAX starts its backend."""

import os
import tempfile

import pytest

from bigjax.core import compilers
from tests.long import LONG

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ["XLA_FLAGS"] = (
    os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
).strip()
# More collective threads than cores: see "Many simulated devices" in the README.
os.environ.setdefault("NPROC", "16")
# Started processes read each other's compiled sources, too, even where the caller writes none.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
# What one worker or started process has compiled, the others read; it goes with this process.
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    COMPILED = tempfile.TemporaryDirectory(prefix="bigjax-compiled-")
    os.environ["JAX_COMPILATION_CACHE_DIR"] = COMPILED.name
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.3"


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    for item in items:
        if item.nodeid in LONG:
            item.add_marker(pytest.mark.slow)


@pytest.fixture(autouse=True, scope="module")
def room_for_programs():
    """A file of tests leaves room for the programs of the next, so that no test meets a forgetting run."""
    yield
    compilers.make_room(15_000)
