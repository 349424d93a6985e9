"""From a sweep to its trials: names, needs, and everything that is refused before a run starts."""

import dataclasses

import pytest

from bigjax.core.errors import UserError
from bigjax.sweep import Search, Sweep, over
from bigjax.sweep.trials import check_data, describe, expand, status, why_failed
from tests.sweep.toy import SPLITS, rates, temperatures


def test_trials_are_points_times_seeds_and_their_names_are_readable_unique_and_stable():
    trials = expand(rates(1e-2, 1e-3, seeds=3))
    assert [(t.point["optimizer.learning_rate"], t.seed) for t in trials] == [
        (rate, seed) for rate in (1e-2, 1e-3) for seed in range(3)
    ]
    assert [t.config.get("optimizer.learning_rate") for t in trials] == 3 * [1e-2] + 3 * [1e-3]
    assert trials[1].name.startswith("learning_rate=0.01,seed=1-")
    assert len({t.name for t in trials}) == 6
    assert [t.name for t in expand(rates(1e-2, 1e-3, seeds=3))] == [t.name for t in trials]


def test_a_sweep_that_is_extended_keeps_the_folders_it_has():
    small, large = expand(rates(1e-2)), expand(rates(1e-3, 1e-2, seeds=(0, 1, 7)))
    assert {t.name for t in small} < {t.name for t in large}


def test_a_trial_is_named_by_all_of_its_config():
    (a, _), (b, _) = expand(rates(1e-2)), expand(rates(1e-2, overrides={"train.steps": 13}))
    assert a.name != b.name


def test_points_that_compute_the_same_are_one_trial():
    points = [{"optimizer.learning_rate": 1e-2}, {"optimizer.learning_rate": 1e-2}]
    assert len(expand(rates(points=points))) == 2


def test_trials_of_a_pipeline_share_the_runs_that_they_need():
    trials = expand(temperatures(1.0, 4.0))
    shown = [t for t in trials if t.in_table]
    teachers = [t for t in trials if not t.in_table]
    assert len(shown) == 6 and len(teachers) == 2
    for trial in shown:
        if trial.point["stage"] == "alone":
            assert trial.needs == ()
        else:
            (teacher,) = (t for t in teachers if t.seed == trial.seed)
            assert trial.needs == (teacher.name,)
            assert trial.config.references == {"method.teacher": f"../{teacher.name}"}


def test_another_teacher_makes_other_students():
    changed = temperatures(1.0, overrides={"stages.teacher.train.steps": 13})
    before = {t.name for t in expand(temperatures(1.0)) if t.needs}
    after = {t.name for t in expand(changed) if t.needs}
    assert before and not before & after


@pytest.mark.parametrize(
    ("sweep", "says"),
    [
        (lambda: rates(1e-2, metric="eval/test/accuracy"), "test data"),
        (
            lambda: rates(
                1e-2,
                metric="eval/valid/accuracy",
                overrides={
                    "data.splits": dict(train="train", valid="test[:50%]"),
                    "evaluate.splits": ("valid",),
                },
                test_metric=None,
            ),
            "test data",
        ),
        (lambda: rates(1e-2, metric="eval/validatoin/accuracy"), "did you mean 'validation'"),
        (lambda: rates(1e-2, metric="accuracy"), "eval/SPLIT/NAME"),
        (lambda: rates(points=over("optimizer.learning_rat", [1])), "did you mean 'learning_rate'"),
        (lambda: rates(points=over("stage", ["alone"])), "no pipeline"),
        (lambda: rates(points=over("seed", [1])), "seeds"),
        (lambda: rates(1e-2, seeds=0), "at least 1"),
        (lambda: rates(), "no points"),
        (lambda: rates(1e-2, experiment="tests.sweep.nothing"), "no experiment"),
        (lambda: rates(1e-2, experiment="experiments.digits_rn"), "did you mean 'experiments.dig"),
        (lambda: rates(1e-2, experiment="tests.small"), "get_config"),
        (lambda: temperatures(1.0, points=over("stage", ["aloen"])), "did you mean 'alone'"),
        (lambda: rates(search=Search({"a": ("log", 0, 1)}, 3)), "no range"),
    ],
)
def test_what_is_wrong_is_said_before_anything_runs(sweep, says):
    with pytest.raises(UserError, match=says):
        expand(sweep())


def test_choosing_on_test_data_is_allowed_to_those_who_say_so():
    assert expand(rates(1e-2, metric="eval/test/accuracy", select_on_test=True))


def test_a_split_named_latest_is_no_test_split():
    overrides = {
        "data.splits": dict(train="train[:50%]", latest="train[50%:]"),
        "evaluate.splits": ("latest",),
    }
    assert expand(rates(1e-2, metric="eval/latest/loss", test_metric=None, overrides=overrides))


def test_missing_data_is_found_before_anything_runs():
    bad = rates(1e-2, overrides={"data.splits": {**SPLITS, "train": "trian"}})
    with pytest.raises(UserError, match="did you mean 'train'"):
        check_data(bad, expand(bad))
    check_data(rates(1e-2), expand(rates(1e-2)))


def test_points_are_described_by_the_last_part_of_their_keys_unless_two_are_alike():
    assert describe({"optimizer.learning_rate": 1e-3, "stage": "alone"}) == (
        "learning_rate=0.001 stage=alone"
    )
    assert describe({"model.type": "mlp", "optimizer.type": "sgd"}) == (
        "model.type=mlp optimizer.type=sgd"
    )


def test_a_sweep_does_not_change_when_its_trials_are_made():
    sweep = rates(1e-2)
    before = repr(dataclasses.asdict(sweep))
    expand(sweep)
    assert repr(dataclasses.asdict(sweep)) == before
    assert isinstance(sweep, Sweep)


@pytest.mark.parametrize(
    "text", ["", "[1]", '{"metrics": {}}', '{"step": 1, "fingerprint": "0"}', "\x80"]
)
def test_a_trial_whose_result_is_damaged_is_run_again(text, tmp_path):
    (tmp_path / "result.json").write_bytes(text.encode("latin1"))
    assert status(tmp_path) == "missing"
    (tmp_path / "failure.json").write_text(text.replace("\x80", "{"))
    assert status(tmp_path) == "failed" and why_failed(tmp_path) == ""
