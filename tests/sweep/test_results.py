"""From finished folders to the table: grouping, choice on validation, comparison, pages."""

import csv
import json
import re
import time

import numpy as np
import pytest
from scipy import stats

from bigjax.core.errors import UserError
from bigjax.sweep import over, product, results
from bigjax.sweep.drive import conclude
from bigjax.sweep.trials import Trial, expand
from tests.sweep.toy import rates


def finish(sweep, workdir, value):
    """Writes each trial's result: value(point, seed) -> (validation, test), or None to leave it out."""
    trials = expand(sweep)
    for trial in trials:
        found = value(trial.point, trial.seed)
        folder = trial.folder(workdir)
        folder.mkdir(parents=True)
        if found is not None:
            metrics = {"eval/validation/accuracy": found[0], "eval/test/accuracy": found[1]}
            metrics["eval/test/confusion_matrix"] = [[1, 0], [0, 1]]
            result = {"step": 1, "fingerprint": "0", "metrics": metrics}
            (folder / "result.json").write_text(json.dumps(result))
    return trials


RATE = "optimizer.learning_rate"
NOISE = np.random.default_rng(0).normal(0, 0.01, (4, 5)).round(4)


def score(point, seed):
    row = [1e-3, 1e-2, 1e-1].index(point[RATE])
    validation = [0.90, 0.95, 0.92][row] + NOISE[row, seed] + NOISE[3, seed]
    return float(validation), float(validation - 0.05)


def test_the_choice_is_made_on_validation_and_the_test_metric_shown_for_it_alone(tmp_path):
    # The point that is best on test data is not the one that is best on validation data.
    def misleading(point, seed):
        return (0.9, 0.1) if point[RATE] == 1e-3 else (0.8, 0.99)

    sweep = rates(1e-3, 1e-2)
    found = conclude(sweep, finish(sweep, tmp_path, misleading), tmp_path)
    assert [g.point[RATE] for g in found.groups if g.best] == [1e-3]
    text = (tmp_path / "sweep.md").read_text()
    assert "best: learning_rate=0.001: eval/test/accuracy 0.1 " in text and "0.99" not in text


def test_the_table_holds_means_intervals_and_paired_differences(tmp_path):
    sweep = rates(1e-3, 1e-2, 1e-1, seeds=5, baseline={RATE: 1e-3})
    found = conclude(sweep, finish(sweep, tmp_path, score), tmp_path)
    base, good, middle = ([score({RATE: r}, s)[0] for s in range(5)] for r in (1e-3, 1e-2, 1e-1))
    group = {g.point[RATE]: g for g in found.groups}[1e-2]
    assert group.best and group.summary.n == 5
    assert group.summary.mean == pytest.approx(np.mean(good))
    assert group.difference.mean == pytest.approx(np.mean(np.subtract(good, base)))
    p = [stats.ttest_rel(x, base).pvalue for x in (good, middle)]
    assert group.difference.p == pytest.approx(p[0])
    assert group.p_holm == pytest.approx(min(p) * 2 if p[0] < p[1] else max(p[0], 2 * p[1]))
    assert found.baseline.point == {RATE: 1e-3} and found.baseline.difference is None
    row = next(r for r in results.table_rows(found) if r["learning_rate"] == "0.01")
    low, high = map(float, re.findall(r"[\d.]+", row["95 % interval"]))
    assert low < group.summary.mean < high and row[""] == "best"
    assert "Holm" in (tmp_path / "sweep.md").read_text()


def test_within_each_method_the_best_point_is_chosen_and_compared(tmp_path):
    points = product(over("optimizer.type", ["adam", "sgd"]), over(RATE, [1e-3, 1e-2, 1e-1]))
    sweep = rates(
        points=points, seeds=5, by=("optimizer.type",), baseline={"optimizer.type": "sgd"}
    )

    def value(point, seed):
        shift = 0.02 * (point["optimizer.type"] == "adam")
        return tuple(x + shift for x in score(point, seed))

    found = conclude(sweep, finish(sweep, tmp_path, value), tmp_path)
    chosen = {g.point["optimizer.type"]: g for g in found.groups if g.chosen}
    assert {kind: g.point[RATE] for kind, g in chosen.items()} == {"adam": 1e-2, "sgd": 1e-2}
    assert found.baseline is chosen["sgd"] and chosen["adam"].best
    assert chosen["adam"].difference.mean == pytest.approx(0.02)
    text = (tmp_path / "sweep.md").read_text()
    assert "eval/test/accuracy, type=adam against the baseline: 0.02 " in text


def test_less_is_better_where_the_sweep_says_so(tmp_path):
    sweep = rates(1e-3, 1e-2, 1e-1, seeds=5, mode="min")
    found = conclude(sweep, finish(sweep, tmp_path, score), tmp_path)
    assert [g.point[RATE] for g in found.groups if g.best] == [1e-3]


@pytest.mark.parametrize("mode", ["max", "min"])
@pytest.mark.parametrize("bad", ["NaN", "Infinity", "-Infinity"])
@pytest.mark.parametrize("place", range(3))
def test_what_is_no_number_is_never_best_in_any_mode_at_any_place(tmp_path, mode, bad, place):
    lost = [1e-3, 1e-2, 1e-1][place]

    def value(point, seed):
        found = score(point, seed)
        return (bad if seed == 1 else found[0], found[1]) if point[RATE] == lost else found

    sweep = rates(1e-3, 1e-2, 1e-1, mode=mode, seeds=3, baseline={RATE: lost})
    found = conclude(sweep, finish(sweep, tmp_path, value), tmp_path)
    others = {
        rate: np.mean([score({RATE: rate}, s)[0] for s in range(3)]) for rate in (1e-3, 1e-2, 1e-1)
    }
    del others[lost]
    best = (max if mode == "max" else min)(others, key=others.get)
    assert [g.point[RATE] for g in found.groups if g.best] == [best]
    rows = results.table_rows(found)
    assert rows[0][""] == "best" and rows[-1]["learning_rate"] == results.number(lost)


def test_where_nothing_is_a_number_nothing_is_best(tmp_path):
    sweep = rates(1e-3, 1e-2)
    found = conclude(sweep, finish(sweep, tmp_path, lambda p, s: ("NaN", 0.5)), tmp_path)
    assert not any(g.best or g.chosen for g in found.groups)
    assert [row["mean"] for row in results.table_rows(found)] == ["nan", "nan"]


def test_the_interval_of_an_accuracy_stays_within_0_and_1(tmp_path):
    sweep = rates(1e-3)
    values = {0: 0.9, 1: 1.0}
    found = conclude(sweep, finish(sweep, tmp_path, lambda p, s: (values[s], values[s])), tmp_path)
    assert (found.groups[0].summary.high, found.groups[0].summary.low) == (
        1.0,
        pytest.approx(0.3147, abs=1e-4),
    )
    assert "95 % [0.3147, 1]" in (tmp_path / "sweep.md").read_text()


def test_a_point_with_missing_seeds_is_not_the_best(tmp_path):
    sweep = rates(1e-3, 1e-2, 1e-1, seeds=5)
    trials = finish(
        sweep, tmp_path, lambda p, s: None if p[RATE] == 1e-2 and s == 4 else score(p, s)
    )
    found = conclude(sweep, trials, tmp_path)
    assert [g.point[RATE] for g in found.groups if g.best] == [1e-1]
    assert "1 missing" in (tmp_path / "sweep.md").read_text()


def test_csv_holds_every_trial_with_every_scalar_metric(tmp_path):
    sweep = rates(1e-3, 1e-2, seeds=5)
    conclude(sweep, finish(sweep, tmp_path, score), tmp_path)
    lines = list(csv.DictReader((tmp_path / "sweep.csv").open()))
    assert len(lines) == 10
    for line in lines:
        point = {RATE: float(line[RATE])}
        assert float(line["eval/validation/accuracy"]) == score(point, int(line["seed"]))[0]
    assert "eval/test/confusion_matrix" not in lines[0]


def test_the_page_is_whole_by_itself_and_shows_every_kind_of_value(tmp_path):
    points = product(over("optimizer.type", ["adam", "sgd"]), over(RATE, [1e-3, 1e-2, 1e-1]))
    sweep = rates(points=points, seeds=5)
    conclude(sweep, finish(sweep, tmp_path, score), tmp_path)
    text = (tmp_path / "sweep.html").read_text()
    assert "<svg" in text and text.count("<polyline") >= 6
    assert not re.search(r"(src|href)=.?https?:|<script", text)
    assert "nan" not in text.lower()


def test_one_point_of_one_seed_draws_no_axes_and_claims_no_spread(tmp_path):
    sweep = rates(1e-3, seeds=1)
    conclude(sweep, finish(sweep, tmp_path, score), tmp_path)
    page = (tmp_path / "sweep.html").read_text()
    assert "Points</h2>" not in page and "Results</h2>" in page
    assert "[0, 0]" not in page  # of one number there is no interval
    mean = f"{score({RATE: 1e-3}, 0)[1]:.4g}"
    assert f"best: learning_rate=0.001: eval/test/accuracy {mean} (one seed)" in page


def test_nothing_finished_is_a_table_too(tmp_path):
    sweep = rates(1e-3, 1e-2, baseline={RATE: 1e-3})
    found = conclude(sweep, expand(sweep), tmp_path)
    assert found.baseline is None and "2 missing" in (tmp_path / "sweep.md").read_text()


def test_a_metric_or_baseline_that_is_not_there_is_named(tmp_path):
    sweep = rates(1e-3, 1e-2, metric="eval/validation/acuracy")
    with pytest.raises(UserError, match="did you mean 'eval/validation/accuracy'"):
        conclude(sweep, finish(sweep, tmp_path, score), tmp_path)
    sweep = rates(1e-3, 1e-2, baseline={RATE: 5.0})
    with pytest.raises(UserError, match="no points match"):
        conclude(sweep, expand(rates(1e-3, 1e-2)), tmp_path)


def test_ten_thousand_finished_trials_load_in_seconds(tmp_path):
    sweep = rates(1e-3)
    config = expand(sweep)[0].config
    trials = [
        Trial(f"t{i}", config, {RATE: (i // 5) * 1e-6, "b": i // 500}, i % 5) for i in range(2000)
    ]
    for trial in trials:
        folder = trial.folder(tmp_path)
        folder.mkdir(parents=True)
        value = 0.5 + (hash(trial.name) % 100) / 1000
        metrics = {"eval/validation/accuracy": value, "eval/test/accuracy": value}
        result = {"step": 1, "fingerprint": "0", "metrics": metrics}
        (folder / "result.json").write_text(json.dumps(result))
    started = time.perf_counter()
    found = conclude(sweep, trials, tmp_path)
    assert len(found.groups) == 400
    assert (
        time.perf_counter() - started < 10
    )  # a fifth of them; scripts/benchmarks/sweep.py has all
