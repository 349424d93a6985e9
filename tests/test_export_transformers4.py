"""What `test_export` asks of transformers 5 holds under version 4 too: the same tests, that version in front."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGES = ("transformers==4.57.6", "huggingface_hub==0.36.0", "tokenizers==0.22.2")
VERSION = "import transformers; print(transformers.__version__)"


@pytest.mark.slow
def test_exports_serve_transformers_4(tmp_path):
    pip = ("-m", "pip", "install", "-q", "--no-deps", "--target", str(tmp_path), *PACKAGES)
    subprocess.run([sys.executable, *pip], check=True)

    def run(*arguments):
        own = {**os.environ, "PYTHONPATH": str(tmp_path)}
        root = Path(__file__).parents[1]
        return subprocess.run(
            [sys.executable, *arguments], cwd=root, env=own, capture_output=True, text=True
        )

    assert run("-c", VERSION).stdout.startswith("4.57.")
    tests = run("-m", "pytest", "-q", "-p", "no:xdist", "-p", "no:cacheprovider", "tests/test_export.py")  # fmt: skip
    assert tests.returncode == 0, tests.stdout[-3000:]
    assert " passed" in tests.stdout and "skipped" not in tests.stdout
