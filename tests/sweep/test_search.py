"""Drawn points and early stopping, with optuna's real journal file."""

import json
import random

import pytest

from bigjax.core.errors import UserError
from bigjax.loop.train import Stopped
from bigjax.sweep import Search, drive, search
from bigjax.sweep.describe import How
from bigjax.sweep.drive import Plan, conclude, run_trials
from bigjax.sweep.trials import status
from tests.sweep.test_run import Here, run, stop_after, tables
from tests.sweep.toy import rates

SPACE = {"optimizer.learning_rate": ("log", 1e-4, 1e-1), "optimizer.weight_decay": [0.0, 1e-3]}


def drawn(workdir, *, stop=lambda: False, **more):
    workdir.mkdir(exist_ok=True)
    sweep = rates(points=[{}], seeds=1, search=Search(SPACE, **{"trials": 6, **more}))
    search.check_search(sweep)
    plan = Plan(Here(stop), workdir, stop)
    trials = search.run_search(sweep, workdir, lambda drawn: run_trials(drawn, plan))
    conclude(sweep, trials, workdir)
    return trials


@pytest.mark.parametrize("sampler", ["random", "tpe"])
def test_a_search_interrupted_at_random_draws_the_same_points(tmp_path, sampler):
    pytest.importorskip("optuna")
    whole = drawn(tmp_path / "whole", sampler=sampler)
    assert len(whole) == 6 == len({t.name for t in whole})
    for trial in whole:
        assert 1e-4 <= trial.point["optimizer.learning_rate"] <= 1e-1
    chance, stops = random.Random(3), 0
    while True:
        stop = stop_after(chance.randrange(5, 90))
        try:
            drawn(tmp_path / "cut", stop=stop, sampler=sampler)
            break
        except Stopped:
            stops += 1
    assert stops > 0 and tables(tmp_path / "cut") == tables(tmp_path / "whole")


def test_what_failed_before_is_run_again_once_and_not_with_every_batch(tmp_path, monkeypatch):
    pytest.importorskip("optuna")
    asked = []
    monkeypatch.setattr(drive, "run_trials", lambda trials, plan: asked.append(plan.retry_failed))

    def two_batches(sweep, workdir, run):
        run([]), run([])
        return []

    monkeypatch.setattr(search, "run_search", two_batches)
    sweep = rates(points=[{}], seeds=1, search=Search(SPACE, 6))
    drive.run(sweep, tmp_path / "s", How(retry_failed=True), executor=Here)
    assert asked == [True, False]


def test_another_seed_draws_other_points(tmp_path):
    pytest.importorskip("optuna")
    a = drawn(tmp_path / "a", trials=2, sampler="random")
    b = drawn(tmp_path / "b", trials=2, sampler="random", seed=1)
    assert not {t.name for t in a} & {t.name for t in b}


def test_a_space_that_is_no_config_is_refused_before_anything_is_drawn():
    pytest.importorskip("optuna")
    sweep = rates(points=[{}], search=Search({"optimizer.learning_rat": ("log", 1, 2)}, 3))
    with pytest.raises(UserError, match="did you mean 'learning_rate'"):
        search.check_search(sweep)


def test_weak_trials_are_stopped_early_and_the_others_are_not(tmp_path):
    pytest.importorskip("optuna")
    workdir = tmp_path / "s"
    # Good rates first: the median of five finished trials is what the sixth is held against.
    sweep = rates(3e-2, 2e-2, 1e-2, 9e-3, 8e-3, 0.0, seeds=1, overrides={"evaluate.every": 2})
    pruning = dict(
        rule="median", metric=sweep.metric, mode=sweep.mode, journal=str(tmp_path / "journal")
    )
    found, _ = run(sweep, workdir, pruning=pruning)
    assert [row.status for row in found.rows] == 5 * ["done"] + ["pruned"]
    folder = found.rows[-1].trial.folder(workdir)
    assert json.loads((folder / "pruned.json").read_text())["step"] < 12
    assert found.groups[-1].summary.n == 0 and "1 pruned" in (workdir / "sweep.md").read_text()
    _, started = run(sweep, workdir, pruning=pruning)
    assert started == 0 and status(folder) == "pruned"


@pytest.mark.parametrize("rule", ["median", "halving"])
@pytest.mark.parametrize("mode", ["max", "min"])
def test_a_trial_whose_metric_is_no_number_is_never_preferred(tmp_path, rule, mode):
    optuna = pytest.importorskip("optuna")
    pruning = dict(rule=rule, metric="m", mode=mode, journal=str(tmp_path / "journal"))

    def watched(name, values):
        folder = tmp_path / name
        folder.mkdir()
        lines = [json.dumps({"step": step, "m": v}) for step, v in enumerate(values[:4], 1)]
        (folder / "metrics.jsonl").write_text("\n".join(lines) + "\n")
        watch = search.Watch(folder, **pruning)  # goes on after four evaluations
        for step, value in enumerate(values[3:], 4):
            watch(step, {"m": float(value)})
        watch.close()
        return watch

    for i in range(6):
        watched(f"good{i}", [0.5] * 8)
    for bad in ("NaN", "Infinity", "-Infinity"):
        assert watched(f"bad{bad}", [bad] * 8).pruned
    study = search.open_study(optuna, pruning["journal"], "pruning", mode)
    assert study.best_value == 0.5


@pytest.mark.parametrize("mode", ["max", "min"])
def test_a_point_whose_metric_is_no_number_guides_no_draw(tmp_path, mode):
    optuna = pytest.importorskip("optuna")
    values = [0.9, "NaN", "Infinity", "-Infinity", 0.5, 0.7]
    sweep = rates(points=[{}], seeds=1, mode=mode, search=Search(SPACE, 6))

    def run(trials):
        for trial, value in zip(trials, values, strict=False):
            trial.folder(tmp_path).mkdir(parents=True, exist_ok=True)
            metrics = {sweep.metric: value, sweep.test_metric: 0.5}
            text = json.dumps({"step": 1, "fingerprint": "0", "metrics": metrics})
            (trial.folder(tmp_path) / "result.json").write_text(text)

    search.run_search(sweep, tmp_path, run)
    study = search.open_study(optuna, tmp_path / "search.journal", "search", mode)
    told = [t.value for t in study.trials if t.state == optuna.trial.TrialState.COMPLETE]
    assert told == [0.9, 0.5, 0.7]
