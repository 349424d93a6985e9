"""Sweeps on a scheduler: what they have in common, here; real Ray and SLURM clusters, slow."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from bigjax.core.errors import UserError
from bigjax.run.files import write_json
from bigjax.sweep import flags, worker
from bigjax.sweep.executors import Executor
from bigjax.sweep.trials import expand, status
from tests.sweep.test_run import run, tables
from tests.sweep.toy import rates

ROOT = Path(__file__).resolve().parents[2]


class AtOnce(Executor):
    """A scheduler that runs a task when it is handed over, but loses some, before or after they began."""

    jobs_each = 1

    def __init__(self, lost=(), begun=()):
        super().__init__()
        self.lost, self.begun, self.cancelled = lost, begun, []

    def start(self, commands):
        for command in commands:
            number, workers, most = map(int, command[4:])
            if number in self.begun:
                worker._take(self.room, number, workers, [])
            elif number not in self.lost:
                worker.work(self.room, number, workers, most, worker.Closed(self.room))
        return [int(command[4]) for command in commands]

    def ended(self, handles):
        return dict.fromkeys(handles, "the node burned down")

    def cancel(self, handles):
        self.cancelled += handles


@pytest.mark.parametrize("how", ["lost", "begun"])
def test_a_scheduler_gives_the_same_table_and_what_it_loses_is_run_again_when_asked(tmp_path, how):
    sweep = rates(1e-2, 1e-3)
    run(sweep, tmp_path / "here")
    found, _ = run(sweep, tmp_path / "s", executor=AtOnce(**{how: (1,)}))
    statuses = [row.status for row in found.rows]
    assert sorted(statuses) == ["done", "done", "done", "failed"]
    assert found.rows[statuses.index("failed")].reason == "the node burned down"
    _, started = run(sweep, tmp_path / "s", executor=AtOnce(), retry_failed=True)
    assert started == 1 and tables(tmp_path / "s") == tables(tmp_path / "here")


def test_when_a_sweep_stops_what_waits_is_taken_back_and_not_failed(tmp_path):
    jobs = [(trial,) for trial in expand(rates(1e-2))]

    class Busy(AtOnce):
        def ended(self, handles):
            return {}

    asked = []
    with Busy(lost=(0, 1)) as cluster:
        events = []
        for event in cluster.run(jobs, tmp_path, lambda: bool(asked)):
            if event is None:
                asked.append("stop")
            else:
                events.append(event)
        assert cluster.cancelled == [0, 1]
    assert [event.status for event in events] == ["stopped", "stopped"]
    assert status(jobs[0][0].folder(tmp_path)) == "missing"


def test_a_task_whose_end_is_told_late_fails_no_job_of_the_next_wave(tmp_path, monkeypatch):
    class Late(AtOnce):
        told = ()

        def ended(self, handles):
            known, self.told = self.told, handles
            return {handle: "it ended" for handle in handles if handle in known}

    def done(job, stop):
        result = {"step": 1, "fingerprint": "0", "metrics": {}}
        write_json(Path(job["trials"][0]["folder"]) / "result.json", result)

    monkeypatch.setattr(worker, "run_job", done)
    with Late() as cluster:
        for trial in expand(rates(1e-2)):
            events = list(filter(None, cluster.run([(trial,)], tmp_path, lambda: False)))
            assert [event.status for event in events] == ["started", "done"]


def test_workers_of_an_earlier_start_stop(tmp_path):
    earlier, later = AtOnce(lost=(0,)), AtOnce()
    earlier._open(tmp_path)
    closed = worker.Closed(earlier.room)
    assert not closed()
    later._open(tmp_path)
    time.sleep(worker.LOOK)
    assert closed() and not worker.Closed(later.room)()


def test_a_worker_stays_with_its_programs_and_then_helps_the_others(tmp_path):
    for folder in ("waiting", "taken"):
        (tmp_path / folder).mkdir()
    for job in ("000000-0", "000001-1", "000002-2", "000003-0", "000004-1"):
        (tmp_path / "waiting" / job).touch()
    seen = []
    taken = [worker._take(tmp_path, 1, 2, seen) for _ in range(2)]
    assert taken == ["000001-1.1", "000004-1.1"]
    assert worker._take(tmp_path, 0, 2, []) == "000000-0.0"  # which the first has seen, too
    taken = [worker._take(tmp_path, 1, 2, seen) for _ in range(3)]
    assert taken == ["000003-0.1", "000002-2.1", None]


def test_a_flag_of_another_executor_is_refused():
    for words in (["--slurm_time=9"], ["--executor=ray", "--workers=2"]):
        options, _ = flags.parse(["tests.sweep.toy", *words])
        with pytest.raises(UserError, match="is for --executor"):
            flags.executor_of(options)


@pytest.mark.parametrize(("name", "package"), [("ray", "ray"), ("slurm", "submitit")])
def test_a_missing_package_is_named_with_the_command_that_installs_it(monkeypatch, name, package):
    monkeypatch.setitem(sys.modules, package, None)
    options, _ = flags.parse(["tests.sweep.toy", f"--executor={name}"])
    with pytest.raises(UserError, match=rf"bin/python\S* -m pip install {package}$"):
        flags.executor_of(options)()


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
