"""Eight simulated devices for every test; set before JAX starts its backend."""

import gc
import os
from pathlib import Path

import jax
import pytest

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ["XLA_FLAGS"] = (
    os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
).strip()
# More collective threads than cores: see "Many simulated devices" in the README.
os.environ.setdefault("NPROC", "16")

# Every compiled program takes memory mappings of its process; one that has used up what Linux allows
# (vm.max_map_count, 65,530 by default) dies of a segmentation fault within the next compilation.
MANY_MAPPINGS = 30_000


@pytest.fixture(autouse=True, scope="module")
def room_for_programs():
    """After a file of tests, forgets the compiled programs where they have become too many."""
    yield
    mappings = Path("/proc/self/maps")
    if mappings.exists() and len(mappings.read_bytes().splitlines()) > MANY_MAPPINGS:
        jax.clear_caches()
        gc.collect()
