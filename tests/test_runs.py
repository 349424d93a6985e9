"""`python -m experiments runs DIR`: every run below a folder, and how it stands."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from bigjax.core.errors import UserError
from bigjax.report import runs
from bigjax.run.files import workdir_lock

ROOT = Path(__file__).parents[1]


def make(folder, *, config=None, steps=(), result=None, age=0.0, **files):
    folder.mkdir(parents=True)
    train = {"steps": None, "epochs": 2.0, "examples": None, "batch_size": 50}
    config = {"train": train, "checkpoint": {"best": None}} | (config or {})
    manifest = {"data": {"train": {"examples": 1000}}}
    parts = {"config": config, "manifest": manifest, "result": result, **files}
    for name, value in parts.items():
        if value is not None:
            (folder / f"{name}.json").write_text(json.dumps(value))
    lines = [{"step": s, "eval/validation/accuracy": s / 100, "eval/test/loss": 1.0} for s in steps]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    for path in folder.iterdir():
        os.utime(path, (time.time() - age, time.time() - age))


@pytest.fixture
def folder(tmp_path):
    done = {
        "step": 40,
        "fingerprint": "0",
        "metrics": {"eval/test/accuracy": 0.5, "eval/test/f1": [1]},
    }
    make(tmp_path / "a/teacher", steps=(20, 40), result=done, age=7200)
    best = {"checkpoint": {"best": "eval/test/loss"}}
    make(tmp_path / "a/student", config=best, steps=(10,), age=600)
    make(tmp_path / "b", failure={"reason": "x"}, age=60)
    (tmp_path / "b/checkpoints/5").mkdir(parents=True)
    (tmp_path / "exported").mkdir()  # is no run
    (tmp_path / "exported/config.json").write_text('{"model": {"type": "mlp"}}')
    (tmp_path / "exported/model.safetensors").write_bytes(b"")
    return tmp_path


def test_every_run_below_the_folder_with_its_state_step_and_metric(folder):
    with workdir_lock(folder / "a/student"):
        found = {row["run"]: row for row in runs.find(folder)}
    assert [found[name]["state"] for name in ("a/student", "a/teacher", "b")] == [
        "running",
        "done",
        "failed",
    ]
    assert {row["run"]: row["state"] for row in runs.find(folder)}["a/student"] == "stopped"
    for step, state in ((9, "stopped"), (10, "failed")):  # bad numbers at the last step known
        (folder / "a/student/bad_step.json").write_text(json.dumps({"step": step}))
        assert {row["run"]: row["state"] for row in runs.find(folder)}["a/student"] == state
    assert [(r["step"], r["steps"]) for r in found.values()] == [(10, 40), (40, 40), (5, 40)]
    assert [(r["metric"], r["value"]) for r in found.values()] == [
        ("eval/test/loss", 1.0),
        ("eval/test/accuracy", 0.5),
        (None, None),
    ]
    sizes = sum(path.stat().st_size for path in (folder / "a/teacher").iterdir())
    assert found["a/teacher"]["size"] == sizes
    assert found["a/teacher"]["age"] == pytest.approx(7200, abs=60)


@pytest.mark.parametrize(
    ("sort", "order"),
    [
        ("run", ["a/student", "a/teacher", "b"]),
        ("-run", ["b", "a/teacher", "a/student"]),
        ("metric", ["a/teacher", "a/student", "b"]),
        ("-metric", ["a/student", "a/teacher", "b"]),  # without one: last, either way
        ("age", ["b", "a/student", "a/teacher"]),
        ("-step", ["a/teacher", "a/student", "b"]),
    ],
)
def test_table_is_sorted_by_any_column(folder, sort, order):
    lines = runs.text(runs.find(folder), sort).splitlines()[2:]
    assert [line.split()[0] for line in lines] == order


def test_text_is_for_people(folder):
    (line,) = [x for x in runs.text(runs.find(folder)).splitlines() if x.startswith("a/teacher")]
    assert line.split()[:5] == ["a/teacher", "done", "40/40", "eval/test/accuracy", "0.5"]
    assert line.endswith("2h00m")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["{}", "--sort=agee"], "did you mean 'age'"),
        (["{}/nope"], "no such folder"),
        (["{}/b/checkpoints"], "holds no run"),
        (["{}", "--srot=age"], "did you mean '--sort'"),
    ],
)
def test_wrong_arguments_are_one_line(folder, capsys, arguments, words):
    assert runs.main([a.format(folder) for a in arguments]) == 2
    error = capsys.readouterr().err
    assert words in error and error.count("\n") == 1


def test_damaged_files_do_not_hide_a_run(folder):
    (folder / "b/config.json").write_text('{"train": 3')
    (folder / "b/manifest.json").write_text("[]")
    (row,) = [row for row in runs.find(folder) if row["run"] == "b"]
    assert (row["state"], row["steps"]) == ("failed", None)
    assert "5/?" in runs.text([row])


def test_command_line(folder):
    done = subprocess.run(
        [sys.executable, "-m", "experiments", "runs", str(folder), "--sort=-step"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert [line.split()[0] for line in done.stdout.splitlines()[2:]] == [
        "a/teacher",
        "a/student",
        "b",
    ]
    with pytest.raises(UserError, match="no such column"):
        runs.text([], "x")
