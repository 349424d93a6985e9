"""Pipelines of runs: order, folders, references, overrides, the final table."""

import json

import pytest

from bigjax.config.resolve import load
from bigjax.core.errors import UserError
from bigjax.loop import stages
from bigjax.loop.stages import pipeline
from tests.small import small_config


def teacher_and_student(**options):
    student = small_config(distill=dict(teacher="../teacher", temperature=3.0, alpha=0.5))
    teacher = small_config(model=dict(type="mlp", widths=(16,), outputs=10))
    options = {"seeds": 2, "table": ("eval/test/errors",), **options}
    return pipeline(dict(teacher=teacher, a_student=student), **options)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pipeline") / "run"
    text = stages.train_pipeline(teacher_and_student(), ["train.steps=3"], folder, lambda: False)
    return folder, text


def test_stages_run_in_the_order_given_not_in_that_of_their_names():
    found, _, _ = stages.resolve(teacher_and_student(), [])
    assert list(found) == ["teacher", "a_student"]


def test_every_stage_is_an_ordinary_run_in_its_own_folder(finished):
    folder, text = finished
    for seed in range(2):
        for stage in ("teacher", "a_student"):
            run = folder / f"seed{seed}" / stage
            assert (run / "result.json").exists()
            assert load(run / "config.json").seed == seed
    errors = [
        json.loads((folder / f"seed{i}/teacher/result.json").read_text())["metrics"][
            "eval/test/errors"
        ]
        for i in range(2)
    ]
    row = next(line for line in text.splitlines() if line.startswith("teacher"))
    mean, spread = (float(word) for word in row.removeprefix("teacher").split("±"))
    assert mean == pytest.approx(sum(errors) / 2, abs=0.5)
    assert spread == pytest.approx(abs(errors[0] - errors[1]) / 2**0.5, rel=0.05)
    assert (folder / "report.html").exists()


def test_a_pipeline_run_again_trains_nothing_again(finished):
    folder, text = finished
    before = (folder / "seed1/a_student/metrics.jsonl").stat().st_mtime_ns
    again = stages.train_pipeline(teacher_and_student(), ["train.steps=3"], folder, lambda: False)
    assert again == text
    assert (folder / "seed1/a_student/metrics.jsonl").stat().st_mtime_ns == before


def test_overrides_reach_one_stage_or_all():
    found, seeds, _ = stages.resolve(
        teacher_and_student(), ["train.steps=3", "stages.teacher.train.steps=5", "seeds=4"]
    )
    assert found["teacher"].get("train.steps") == 5
    assert found["a_student"].get("train.steps") == 3
    assert seeds == 4


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["stages.techer.train.steps=3"], "did you mean 'teacher'"),
        (["seeds=0"], "config.seeds"),
        (["seeds=many"], "config.seeds"),
        (["stages.a_student.distill.teacher=../a_student"], "names no earlier stage"),
        (["stages.teacher.model.widhts=(3,)"], "did you mean 'widths'"),
    ],
)
def test_wrong_pipelines_are_refused(overrides, message):
    with pytest.raises(UserError, match=message):
        stages.resolve(teacher_and_student(), overrides)


def test_unknown_keys_of_a_pipeline_are_refused():
    raw = teacher_and_student()
    raw.seds = 3
    with pytest.raises(UserError, match=r"config.seds.*did you mean 'seeds'"):
        stages.resolve(raw, [])


@pytest.mark.parametrize(
    ("teacher", "message"),
    [
        (
            dict(source="../teacher", precision=dict(polcy="bfloat16")),
            "config.method.teacher: .*'polcy'",
        ),
        ("/nowhere/run", "config.method.teacher: .*/nowhere/run"),
    ],
)
def test_a_teacher_that_cannot_be_is_refused_before_the_first_stage_trains(
    teacher, message, tmp_path
):
    raw = teacher_and_student()
    raw.stages.a_student.distill = dict(teacher=teacher)
    with pytest.raises(UserError, match=message):
        stages.train_pipeline(raw, ["train.steps=3"], tmp_path / "run", lambda: False)
    assert not (tmp_path / "run").exists()
