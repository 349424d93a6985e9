"""Eight simulated devices for every test; set before JAX starts its backend."""

import os
import shutil
import tempfile

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ["XLA_FLAGS"] = (
    os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
).strip()
# More collective threads than cores: see "Many simulated devices" in the README.
os.environ.setdefault("NPROC", "16")

# What one test has compiled, the others of this run find; its workers inherit the folder's name.
_CACHE = os.path.join(tempfile.gettempdir(), f"bigjax-tests-{os.getpid()}")
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", _CACHE)
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.2")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")


def pytest_unconfigure(config):
    shutil.rmtree(_CACHE, ignore_errors=True)
