"""The fault harness at a small scale: real runs are broken and end as if nothing had happened."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


def faults(kinds, times):
    done = subprocess.run(
        [sys.executable, "-m", "scripts.fault_injection", f"--kind={kinds}", f"--times={times}"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    rows = [line.split() for line in done.stdout.splitlines()[2:]]
    assert [row[0] for row in rows] == kinds.split(",")
    assert all(row[1] == row[2] == str(times) and row[3] == "0" for row in rows)


def test_broken_runs_end_as_whole_ones_and_no_corruption_is_silent():
    faults("kill,sighup,bitflip,stale", times=1)


@pytest.mark.slow
def test_no_kind_of_corruption_is_silent():
    faults("bitflip,truncate,delete,swap,stale", times=5)


@pytest.mark.slow
def test_every_kind_of_fault_that_needs_no_root():
    faults("kill,sigterm,sighup,exception,save_kill,save_kill_pair,mesh,nan,spike,config", times=10)
