"""Sweeps on a scheduler: what they have in common, here; real Ray and SLURM clusters, slow."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from bigjax.core.errors import UserError
from bigjax.sweep.__main__ import choose_executor, describe, parse
from bigjax.sweep.clusters import _Cluster, work
from bigjax.sweep.executors import Job
from bigjax.sweep.trials import expand, status
from tests.sweep.test_run import run, tables
from tests.sweep.toy import rates

ROOT = Path(__file__).resolve().parents[2]


class AtOnce(_Cluster):
    """A scheduler that does the work when it is handed over, but loses some."""

    def __init__(self, lost=()):
        self.lost, self.cancelled = lost, []

    def submit(self, arguments, room):
        for number, each in enumerate(arguments):
            if number not in self.lost:
                work(*json.loads(json.dumps(each)))
        return list(range(len(arguments)))

    def ended(self, handles):
        return {handle: "the node burned down" for handle in handles if handle in self.lost}

    def cancel(self, handles):
        self.cancelled += handles


def test_a_scheduler_gives_the_same_table_and_what_it_loses_is_run_again_when_asked(tmp_path):
    sweep = rates(1e-2, 1e-3)
    run(sweep, tmp_path / "here")
    found, _ = run(sweep, tmp_path / "s", executor=AtOnce(lost=(1,)))
    assert [row.status for row in found.rows] == ["done", "failed", "done", "done"]
    assert found.rows[1].reason == "the node burned down"
    _, started = run(sweep, tmp_path / "s", executor=AtOnce(), retry_failed=True)
    assert started == 1 and tables(tmp_path / "s") == tables(tmp_path / "here")


def test_when_a_sweep_stops_what_waits_is_taken_back_and_not_failed(tmp_path):
    jobs = [Job((trial,)) for trial in expand(rates(1e-2))]
    cluster = AtOnce(lost=(0, 1))
    events = [event for event in cluster.run(jobs, tmp_path, lambda: True) if event]
    assert [event.status for event in events] == ["stopped", "stopped"]
    assert cluster.cancelled == [0, 1]
    assert status(jobs[0].trials[0].folder(tmp_path)) == "missing"


def test_a_task_of_an_earlier_start_stops(tmp_path):
    job = Job((expand(rates(1e-2))[0],))
    (tmp_path / "owner").write_text("later")
    work(job.message(tmp_path), str(tmp_path / "events"), str(tmp_path / "owner"), "earlier")
    assert json.loads((tmp_path / "events").read_text())["status"] == "stopped"
    assert not (job.trials[0].folder(tmp_path) / "result.json").exists()


def test_a_flag_of_another_executor_is_refused():
    for words in (["--slurm_time=9"], ["--executor=ray", "--workers=2"]):
        options, _ = parse(["tests.sweep.toy", *words])
        with pytest.raises(UserError, match="is for --executor"):
            choose_executor(options)


@pytest.mark.parametrize(("name", "package"), [("ray", "ray"), ("slurm", "submitit")])
def test_a_missing_package_is_named_with_the_command_that_installs_it(monkeypatch, name, package):
    monkeypatch.setitem(sys.modules, package, None)
    options, overrides = parse(["tests.sweep.toy", f"--executor={name}"])
    describe(options, overrides)
    with pytest.raises(UserError, match=rf"pip install 'bigjax\[{name}\]'"):
        choose_executor(options)


GRID = [
    "tests.sweep.toy", "--grid", "config.optimizer.learning_rate=1e-2,1e-3", "--seeds=2",
    "--config.train.steps=3000", "--config.evaluate.every=end", "--config.log.every=50",
    "--config.checkpoint.every=500",
]  # fmt: skip


def start(workdir, *arguments):
    return subprocess.Popen(
        [sys.executable, "-m", "bigjax.sweep", *GRID, f"--workdir={workdir}", *arguments],
        cwd=ROOT,
        env={**os.environ, "XLA_FLAGS": ""},  # one device: a sweep's processes have their own
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def finish(sweep, code):
    output, _ = sweep.communicate(timeout=400)
    assert sweep.returncode == code, output


def wait_for(condition, sweep):
    deadline = time.monotonic() + 300
    while not (found := condition()):
        assert time.monotonic() < deadline
        assert sweep.poll() is None, sweep.communicate()[0]
        time.sleep(0.05)
    return found


def saved(workdir, besides=()):
    """Folders of trials that run and have a checkpoint."""
    paths = workdir.glob("trials/*/checkpoints/[0-9]*")
    return [
        path.parents[1]
        for path in paths
        if path.parents[1] not in besides and not (path.parents[1] / "result.json").exists()
    ]


def kill_a_trial_stop_the_sweep_and_run_it_again(workdir, *arguments):
    """The table is the local one's, and the killed trial went on where it was."""
    finish(start(workdir / "local", "--workers=1"), 0)
    ours = workdir / "ours"
    sweep = start(ours, *arguments)
    victim = wait_for(lambda: saved(ours), sweep)[0]
    os.kill(int((victim / ".lock").read_text().split()[1]), signal.SIGKILL)
    wait_for((victim / "failure.json").exists, sweep)
    wait_for(lambda: saved(ours, besides=[victim]), sweep)
    sweep.send_signal(signal.SIGTERM)
    finish(sweep, 75)
    assert status(victim) == "failed"
    assert any(status(path) == "missing" for path in ours.glob("trials/*"))
    finish(start(ours, *arguments, "--retry_failed"), 0)
    assert tables(ours) == tables(workdir / "local")
    return victim


@pytest.mark.slow
def test_on_a_real_ray_cluster(tmp_path):
    pytest.importorskip("ray", reason="pip install 'bigjax[ray]'")
    kill_a_trial_stop_the_sweep_and_run_it_again(tmp_path, "--executor=ray")


@pytest.mark.slow
def test_on_a_real_slurm_cluster(tmp_path, monkeypatch):
    pytest.importorskip("submitit", reason="pip install 'bigjax[slurm]'")
    if os.geteuid() != 0 or not (shutil.which("apt-get") or shutil.which("slurmctld")):
        pytest.skip("needs root and SLURM's Debian packages")
    cluster = ROOT / "scripts" / "dev" / "local_slurm"
    subprocess.run([cluster, "start"], check=True)
    monkeypatch.setenv("SLURM_CONF", "/tmp/bigjax_slurm/slurm.conf")
    try:
        kill_a_trial_stop_the_sweep_and_run_it_again(
            tmp_path, "--executor=slurm", "--slurm_time=10"
        )
    finally:
        subprocess.run([cluster, "stop"], check=True)
