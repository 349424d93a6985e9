"""A sweep run again from its manifest: equal where nothing changed, and what changed is named."""

import json
import shutil

import numpy as np
import pytest

from bigjax.core.errors import UserError
from bigjax.sweep import drive, record, reproduce
from bigjax.sweep.__main__ import main
from bigjax.sweep.trials import expand
from tests.sweep.test_run import Here
from tests.sweep.toy import rates, temperatures

HOW = {"workers": None, "devices": 1, "vectorize": None}


def run(sweep, workdir, **how):
    """The sweep's manifest, after a start of it."""
    workdir.mkdir(exist_ok=True)
    trials, start = expand(sweep), record.new_start(HOW)
    drive.run_trials(trials, drive.Plan(Here(), workdir, lambda: False, **how))
    return record.record(sweep, trials, workdir, start)


def again(path, new):
    """(verdict by trial, "why" by trial, what changed) of a reproduction into the folder `new`."""
    folder, old = reproduce.read(path)
    trials = reproduce.recorded_trials(old)
    reproduce.check_workdir(new, folder, trials)
    new.mkdir(exist_ok=True)
    plan = drive.Plan(Here(), new, lambda: False)
    found = reproduce.run(old, trials, plan, record.new_start(HOW))
    rows, _ = reproduce.verdict_rows(old, found)
    by_trial = {row["trial"]: row["result"] for row in rows}
    why = [row["first difference"] for row in rows]
    return by_trial, why, reproduce.changes(old, found, folder)


def edit(path, change):
    """The manifest at `path`, changed by a function of what it holds."""
    found = json.loads(path.read_text())
    change(found)
    path.write_text(json.dumps(found))
    return path


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A folder of train.npz and test.npz: 300 and 100 examples, from a fixed seed."""
    folder, rng = tmp_path_factory.mktemp("data"), np.random.default_rng(0)
    for split, count in (("train", 300), ("test", 100)):
        image = rng.integers(0, 17, (count, 8, 8, 1), np.uint8)
        label = (image.sum((1, 2, 3)) // 10 % 10).astype(np.int32)
        np.savez(folder / f"{split}.npz", image=image, label=label)
    return folder


def sweep_of(data):
    return rates(
        1e-2, 1e-3, seeds=1, overrides={"data.source": {"type": "npz", "directory": str(data)}}
    )


@pytest.fixture(scope="module")
def original(data, tmp_path_factory):
    """The folder of a finished sweep of two trials."""
    folder = tmp_path_factory.mktemp("sweep") / "s"
    run(sweep_of(data), folder)
    return folder


@pytest.fixture
def manifest(original, tmp_path):
    """A copy of its manifest, without its runs."""
    return shutil.copy(original / "manifest.json", tmp_path / "manifest.json")


def test_a_sweep_reproduces_as_equal_from_its_manifest_alone(manifest, original, tmp_path):
    verdicts, _, changed = again(manifest, tmp_path / "new")
    assert set(verdicts.values()) == {"equal"} and len(verdicts) == 2 and changed == []
    for name in ("sweep.csv", "sweep.md", "manifest.json"):
        assert (tmp_path / "new" / name).exists()
    again(tmp_path / "new/manifest.json", tmp_path / "newer")  # what it wrote can be reproduced too
    tables = [(tmp_path / name / "sweep.md").read_text() for name in ("new", "newer")]
    assert tables[0] == tables[1]


def test_the_manifest_says_what_every_trial_was_made_of(original):
    found = json.loads((original / "manifest.json").read_text())
    (start,) = found["starts"]
    assert start["packages"]["jax"] and start["packages"]["numpy"] == np.__version__
    assert {"revision", "modified", "source", "diff", "diff_complete"} <= start["code"].keys()
    began = [row["started"] for row in found["trials"]]
    assert start["time"] <= began[0] <= began[1]
    for row in found["trials"]:
        folder = original / "trials" / row["name"]
        result = json.loads((folder / "result.json").read_text())
        assert row["fingerprint"] == result["fingerprint"] and row["metrics"] == result["metrics"]
        assert row["config"] == json.loads((folder / "config.json").read_text())
        assert row["environment"]["data"].keys() == {"train", "validation", "test"}


def test_a_trial_keeps_the_start_that_it_was_run_in(original, data, tmp_path):
    shutil.copytree(original, tmp_path / "s")
    assert len(run(sweep_of(data), tmp_path / "s")["starts"]) == 1  # nothing was missing
    more = rates(1e-2, 1e-3, 1e-4, seeds=1, overrides=sweep_of(data).overrides)
    found = run(more, tmp_path / "s")
    assert [row["start"] for row in found["trials"]] == [0, 0, 1] and len(found["starts"]) == 2


@pytest.mark.parametrize("split", ["train", "test"])
def test_one_flipped_bit_in_the_data_is_found_and_its_split_named(original, data, tmp_path, split):
    path = data / f"{split}.npz"
    whole = path.read_bytes()
    arrays = dict(np.load(path))
    arrays["image"][7, 3, 3, 0] ^= 1
    np.savez(path, **arrays)
    try:
        verdicts, why, changed = again(original, tmp_path / "new")
    finally:
        path.write_bytes(whole)
    (line,) = changed
    assert line.startswith(f"data.{split}.fingerprint: ") and line.endswith("(2 of 2 trials)")
    assert "equal" not in verdicts.values() and all(why)


def test_a_changed_version_is_named_and_changes_no_verdict(manifest, tmp_path):
    def older(found):
        found["starts"][0]["packages"]["absl-py"] = "0.1"
        for row in found["trials"]:
            row["environment"]["versions"]["jax"] = "0.1.2"

    verdicts, _, changed = again(edit(manifest, older), tmp_path / "new")
    assert set(verdicts.values()) == {"equal"}
    assert [line.split(" ->")[0] for line in changed] == [
        "versions.jax: 0.1.2",
        "packages.absl-py: 0.1",
    ]


def test_edited_config_values_are_run_found_and_named(manifest, original, tmp_path):
    def others(found):
        found["trials"][0]["config"]["optimizer"]["learning_rate"] = 0.5
        found["trials"][1]["config"]["seed"] = 3

    verdicts, why, changed = again(edit(manifest, others), tmp_path / "new")
    assert set(verdicts.values()) == {"different"}
    assert all(line.startswith("eval/") and "->" in line for line in why)
    assert changed == [
        "config.optimizer.learning_rate: 0.01 -> 0.5 (edited in the manifest) (1 of 2 trials)",
        "config: not the one that was run, by its fingerprint (edited in the manifest) "
        "(1 of 2 trials)",
    ]
    _, old = reproduce.read(manifest)
    new = json.loads((tmp_path / "new/manifest.json").read_text())
    lines = reproduce.changes(old, new, original)  # beside its runs, every key is known
    assert lines[1] == "config.seed: 0 -> 3 (edited in the manifest) (1 of 2 trials)"
    folder, true = reproduce.read(original)
    with pytest.raises(UserError, match="another config"):  # a finished run is not taken for it
        reproduce.check_workdir(tmp_path / "new", folder, reproduce.recorded_trials(true))
    with pytest.raises(UserError, match="choose a new folder"):
        reproduce.check_workdir(original, folder, reproduce.recorded_trials(true))


def test_teachers_are_reproduced_and_a_single_run_with_them(data, tmp_path):
    found = run(temperatures(2.0, seeds=1, overrides=sweep_of(data).overrides), tmp_path / "s")
    verdicts, _, changed = again(tmp_path / "s", tmp_path / "new")
    assert list(verdicts.values()) == ["equal"] * 3 and changed == []
    student = next(row["name"] for row in found["trials"] if row["needs"])
    verdicts, _, changed = again(tmp_path / "s/trials" / student, tmp_path / "one")
    assert list(verdicts.values()) == ["equal"] * 2 and changed == []


def test_a_trial_that_failed_fails_again(data, tmp_path):
    run(rates(1e30, seeds=1, overrides=sweep_of(data).overrides), tmp_path / "s")
    verdicts, _, _ = again(tmp_path / "s", tmp_path / "new")
    assert list(verdicts.values()) == ["equal"]


def test_tolerance_is_of_every_final_scalar_metric():
    old = {"status": "done", "fingerprint": "a", "losses": "l", "metrics": {"x": 2.0, "y": 0.5}}
    for x, rtol, word in ((2.001, 1e-3, "within tolerance"), (2.01, 1e-3, "different")):
        new = {**old, "fingerprint": "b", "metrics": {"x": x, "y": 0.5}}
        found = reproduce.verdict(old, new, rtol)
        assert found == (word, f"x: 2.0 -> {x}")
    assert reproduce.verdict(old, {**old, "losses": "m"}, 0.0)[0] == "within tolerance"
    broken = {**old, "metrics": {"x": "NaN", "y": 0.5}}
    assert reproduce.verdict(old, broken, 1e-3)[0] == "different"
    assert reproduce.verdict(broken, dict(broken), 0.0) == ("equal", "")
    lacks = {**old, "metrics": {"x": 2.0}}
    assert reproduce.verdict(old, lacks, 1e-3) == ("different", "y: 0.5 -> None")


@pytest.mark.parametrize("spoil", ["truncated", "garbage", "list", "no trials", "a path", "absent"])
def test_a_manifest_that_is_none_is_refused_with_code_2(manifest, tmp_path, capsys, spoil):
    text = manifest.read_text()
    if spoil == "a path":
        text = text.replace('"name": "', '"name": "../')
    elif spoil == "no trials":
        text = '{"format": 1, "sweep": null, "starts": [], "trials": []}'
    else:
        text = {"truncated": text[: len(text) // 2], "garbage": "\x00\xff{", "list": "[1]"}.get(
            spoil, text
        )
    manifest.write_text(text)
    path = tmp_path / "nothing.json" if spoil == "absent" else manifest
    assert main(["reproduce", str(path), f"--workdir={tmp_path / 'new'}"]) == 2
    assert capsys.readouterr().err.count("\n") == 1 and not (tmp_path / "new").exists()


def test_the_command_line_reproduces_with_code_0_and_1(original, manifest, tmp_path, capsys):
    def worse(found):
        found["trials"][0]["metrics"]["eval/test/loss"] += 1

    flags = [f"--workdir={tmp_path / 'new'}", "--workers=1"]
    assert main(["reproduce", str(original), *flags]) == 0
    said = capsys.readouterr().out
    assert "2 trials: 2 equal" in said and "changed: nothing" in said
    # The folder is finished: against another manifest, nothing is run.
    assert main(["reproduce", str(edit(manifest, worse)), *flags]) == 1
    said = capsys.readouterr().out
    assert "1 different" in said and "eval/test/loss" in said
