"""Running sweeps: what is missing and no more, failures, interruptions, one compilation."""

import contextlib
import itertools
import json
import os
import random
import subprocess
import sys
import threading
import time

import pytest

from bigjax.build import program
from bigjax.core.errors import UserError
from bigjax.loop.train import Stopped
from bigjax.run.files import workdir_lock
from bigjax.sweep import Sweep, describe, drive, flags, worker
from bigjax.sweep.executors import Event, Executor, Local
from bigjax.sweep.trials import expand, status
from tests.sweep.toy import rates, temperatures


class Here(Executor):
    """An executor whose worker runs in this process, before `start` returns."""

    at_once, jobs_each = 1, 1_000_000

    def __init__(self, stop=lambda: False):
        super().__init__()
        self._stop = stop

    def start(self, commands):
        for command in commands:
            number, workers, most = map(int, command[4:])
            worker.work(self.room, number, workers, most, self._stop)
        return [command[4] for command in commands]

    def ended(self, handles):
        return dict.fromkeys(handles, "it ended")

    def cancel(self, handles):
        pass


def run(sweep, workdir, *, stop=lambda: False, executor=None, **how):
    workdir.mkdir(exist_ok=True)
    trials = expand(sweep)
    executor, given = executor or Here(stop), []
    put = executor._put
    executor._put = lambda job, *more: given.extend(job) or put(job, *more)
    try:
        drive.run_trials(trials, drive.Plan(executor, workdir, stop, **how))
    finally:
        found = drive.conclude(sweep, trials, workdir)
    return found, len(given)


def stop_after(calls):
    """A `stop` that is true from so many questions on."""
    asked = itertools.count(1)
    return lambda: next(asked) >= calls


def tables(workdir):
    return (workdir / "sweep.csv").read_text(), (workdir / "sweep.md").read_text()


def test_each_trial_is_an_ordinary_run_and_a_second_start_runs_nothing(tmp_path):
    sweep = rates(1e-2, 1e-3)
    found, started = run(sweep, tmp_path / "s")
    assert started == 4 and {row.status for row in found.rows} == {"done"}
    folder = found.rows[0].trial.folder(tmp_path / "s")
    names = {"config.json", "manifest.json", "metrics.jsonl", "result.json", "report.html"}
    assert names <= {path.name for path in folder.iterdir()}
    before = tables(tmp_path / "s")
    _, started = run(sweep, tmp_path / "s")
    assert started == 0 and tables(tmp_path / "s") == before


def test_only_what_an_extended_sweep_lacks_is_run(tmp_path):
    run(rates(1e-2), tmp_path / "s")
    found, started = run(rates(1e-2, 1e-3), tmp_path / "s")
    assert started == 2 and len(found.rows) == 4


def test_trials_that_differ_in_traced_scalars_share_one_compilation(tmp_path):
    before = set(program._PROGRAMS)
    run(temperatures(1.0, 2.0, 4.0, overrides={"model.widths": (9,)}), tmp_path / "s")
    built = [p for key, p in program._PROGRAMS.items() if key not in before]
    # Teacher and student alone are one program, the distilled student (of either teacher) another.
    assert [p.train_step._cache_size() for p in built] == [1, 1]
    assert all(p.eval_step._cache_size() <= 1 for p in built)


def test_interrupted_at_random_a_sweep_ends_in_the_same_table(tmp_path):
    sweep = temperatures(4.0, overrides={"checkpoint.every": 4})
    run(sweep, tmp_path / "whole")
    chance = random.Random(5)
    for number in range(2):
        workdir, stops = tmp_path / str(number), 0
        while True:
            try:
                run(sweep, workdir, stop=stop_after(chance.randrange(1, 60)))
                break
            except Stopped:
                stops += 1
        assert stops > 0
        assert tables(workdir) == tables(tmp_path / "whole")


def test_a_trial_whose_worker_alone_is_told_to_stop_goes_on_in_another(tmp_path):
    sweep, calls = rates(1e-2, seeds=1, overrides={"checkpoint.every": 4}), []

    def stop():  # as a scheduler that wants its machine back
        calls.append(1)
        return len(calls) == 12

    run(sweep, tmp_path / "whole")
    found, given = run(sweep, tmp_path / "s", executor=Here(stop))
    assert given == 2 and [row.status for row in found.rows] == ["done"]
    assert tables(tmp_path / "s") == tables(tmp_path / "whole")


def test_a_failed_trial_is_reported_stops_no_other_and_is_run_again_only_when_asked(tmp_path):
    sweep = rates(1e30, 1e-2)
    found, _ = run(sweep, tmp_path / "s")
    assert [row.status for row in found.rows] == ["failed", "failed", "done", "done"]
    assert "the loss is" in found.rows[0].reason
    assert found.groups[0].summary.n == 0 and found.groups[1].best
    assert "the loss is" in (tmp_path / "s/sweep.md").read_text()
    folder = found.rows[0].trial.folder(tmp_path / "s")
    assert "BadNumbers" in json.loads((folder / "failure.json").read_text())["traceback"]
    _, started = run(sweep, tmp_path / "s")
    assert started == 0
    _, started = run(sweep, tmp_path / "s", retry_failed=True)
    assert started == 2 and status(folder) == "failed"


def test_what_needs_a_failed_trial_is_not_run(tmp_path, capsys):
    broken = {"stages.teacher.optimizer.learning_rate": 1e30}
    found, started = run(temperatures(1.0, overrides=broken, seeds=1), tmp_path / "s")
    assert started == 2  # the teacher and the student alone
    assert [row.status for row in found.rows] == ["done", "missing"]
    assert "needs stage" not in capsys.readouterr().err
    assert found.groups[1].values == {}


def test_local_workers_compile_once_survive_a_killed_one_and_stop_when_asked(tmp_path):
    sweep = rates(1e-2, 1e-3, overrides={"train.steps": 100_000, "evaluate.every": "end"}, seeds=1)
    trials, asked = expand(sweep), []
    with Local(workers=2) as executor:
        plan = drive.Plan(executor, tmp_path, lambda: bool(asked))
        events = executor.run(drive.jobs(trials, plan), tmp_path, plan.stop)
        running, ended, deadline = set(), {}, time.monotonic() + 120
        for event in events:
            assert time.monotonic() < deadline
            if event and event.status == "started":
                running.add(event.trial)
            elif event:
                ended[event.trial] = event
                asked.append("stop")  # the first is dead: now stop the other
            if not ended and all(
                (trial.folder(tmp_path) / "metrics.jsonl").exists() for trial in trials
            ):
                os.kill(int((trials[0].folder(tmp_path) / ".lock").read_text().split()[1]), 9)
    killed, stopped = (ended[trial.name] for trial in trials)
    assert killed.status == "failed" and "SIGKILL" in killed.reason
    assert stopped == Event(trials[1].name, "stopped")
    assert status(trials[0].folder(tmp_path)) == "failed"
    assert status(trials[1].folder(tmp_path)) == "missing"


@pytest.mark.parametrize("vectorize", [None, 64])
def test_a_folder_that_a_dying_worker_still_writes_is_waited_for(tmp_path, vectorize):
    sweep = rates(1e-2, seeds=1)
    with contextlib.ExitStack() as other:
        other.enter_context(workdir_lock(expand(sweep)[0].folder(tmp_path / "s")))
        threading.Timer(0.5, other.pop_all().close).start()
        found, _ = run(sweep, tmp_path / "s", vectorize=vectorize)
    assert [row.status for row in found.rows] == ["done"]


def test_the_command_line_runs_a_grid_and_refuses_with_code_2(tmp_path):
    def call(*arguments):
        return subprocess.run(
            [sys.executable, "-m", "bigjax.sweep", *arguments],
            env={**os.environ, "XLA_FLAGS": ""},  # one device: a sweep's processes have their own
            capture_output=True,
            text=True,
        )

    workdir = f"--workdir={tmp_path / 's'}"
    good = call(
        "tests.sweep.toy", "--grid", "config.optimizer.learning_rate=1e-2,1e-3", "--seeds=2",
        "--workers=1", workdir,
    )  # fmt: skip
    assert good.returncode == 0, good.stderr
    assert "best" in good.stdout and "trials 4/4" in good.stderr
    assert {"sweep.csv", "sweep.md", "sweep.html", "manifest.json"} <= {
        path.name for path in (tmp_path / "s").iterdir()
    }
    bad = call("tests.sweep.toy", "--metric=eval/test/accuracy", f"--workdir={tmp_path / 'no'}")
    assert bad.returncode == 2 and bad.stderr.count("\n") == 1 and "test data" in bad.stderr
    assert not (tmp_path / "no").exists()


@pytest.mark.parametrize(
    ("word", "says"),
    [
        ("--gird=a=1", "did you mean '--grid'"),
        ("--workers=0", "--workers=0: at least 1"),
        ("--workers=two", "--workers=two will not do"),
        ("--search=a=log:1:2", "--trials=N"),
        ("--seeds=0.5", "--seeds=0.5 will not do"),
        ("--mode=most", "max or min"),
        ("--vectorize=0", "at least 1"),
    ],
)
def test_a_wrong_command_line_is_refused(word, says):
    with pytest.raises(UserError, match=says):
        options, overrides = flags.parse(["tests.sweep.toy", word])
        flags.sweep_of(options, overrides)
        flags.how_of(options)
        flags.executor_of(options)()


def test_the_flags_are_the_attributes_of_the_sweep_and_their_values_its_types():
    options, overrides = flags.parse(
        [
            "tests.sweep.toy", "--grid=config.optimizer.type=adam,sgd", "--seeds=0,3", "--by=optimizer.type",
            "--baseline", "optimizer.type=sgd", "--metric=eval/validation/loss", "--select_on_test",
            "--config.model.widths=(9,)", "--vectorize", "--workers=2",
        ]
    )  # fmt: skip
    assert flags.sweep_of(options, overrides) == Sweep(
        "tests.sweep.toy",
        points=[{"optimizer.type": "adam"}, {"optimizer.type": "sgd"}],
        seeds=(0, 3),
        by=("optimizer.type",),
        baseline={"optimizer.type": "sgd"},
        metric="eval/validation/loss",
        select_on_test=True,
        overrides={"model.widths": (9,)},
    )
    assert flags.how_of(options) == describe.How(vectorize=64)
    assert flags.executor_of(options)().at_once == 2
    one, _ = flags.parse(["tests.sweep.toy", "--seeds=3,", "--vectorize=5"])
    assert flags.sweep_of(one, ()).seeds == (3,) and flags.how_of(one).vectorize == 5
    many, _ = flags.parse(["tests.sweep.toy", "--seeds=3"])
    assert flags.sweep_of(many, ()).seeds == 3
