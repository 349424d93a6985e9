"""The commands of bigjax/mesh/README.md run as they are written there, on the experiments they name."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SHORT = ("--config.train.steps=2", "--config.optimizer.schedule.warmup_steps=0")
README = (ROOT / "bigjax" / "mesh" / "README.md").read_text()


def run(command, *more):
    words = [sys.executable if word == "python" else word for word in shlex.split(command)]
    environment = {**os.environ, "XLA_FLAGS": "", "JAX_PLATFORMS": "cpu"}
    return subprocess.run(
        [*words, *more], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=550
    )


def test_the_sharding_line_works():
    (command,) = re.findall(r"`(python -m experiments\.\w+ sharding [^`]*)`", README)
    done = run(command)
    assert done.returncode == 0, done.stderr
    assert "all-reduce" in done.stdout or "all-gather" in done.stdout


@pytest.mark.slow
def test_the_local_launch_works_and_no_process_tells_of_its_sockets(tmp_path):
    (command,) = re.findall(r"`(scripts/launch/local [^`]*)`", README)
    done = run(command, f"--workdir={tmp_path / 'run'}", *SHORT)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Gloo" not in done.stdout and (tmp_path / "run" / "result.json").exists()
