"""The resume contract: what is promised, what is listed, what is refused. And one writer at a time."""

import copy
import json
import os
import subprocess
import sys

import pytest

from bigjax.core.errors import UserError
from bigjax.loop.train import train
from bigjax.run import manifest
from bigjax.run.files import workdir_lock
from tests.small import small

ABOUT = {
    "code": {"revision": "r", "modified": False, "source": "a" * 64},
    "versions": {"python": "3.11", "jax": "0.10"},
    "devices": {"platform": "cpu", "kind": "cpu", "count": 1, "processes": 1, "mesh": {}},
    "flags": {},
    "data": {"train": {"examples": 3, "fingerprint": "d"}},
}


def again(tmp_path, config_changes=(), allowed=(), **changes):
    """The session of a second start, a dict of `ABOUT` per changed part."""
    manifest.record(tmp_path, small(), manifest.begin(tmp_path, ABOUT, []), 0, {})
    about = copy.deepcopy(ABOUT)
    for part, values in changes.items():
        about[part].update(values)
    return manifest.begin(tmp_path, about, list(config_changes), allowed)


def test_nothing_changed_promises_the_same_bits(tmp_path):
    session = again(tmp_path)
    assert session.changed == []
    assert session.contract == f"same mesh; {manifest.BITWISE}"


def test_another_mesh_promises_stated_tolerances(tmp_path):
    devices = {"count": 8, "mesh": {"data": 2, "fsdp": 4}}
    session = again(tmp_path, devices=devices, flags={
        "XLA_FLAGS": "--xla_force_host_platform_device_count=8"})  # fmt: skip
    assert session.contract == f"data 2 x fsdp 4 instead of one device; {manifest.OTHER_MESH}"
    assert session.changed == []


def test_other_code_and_versions_are_listed_and_weaken_the_promise(tmp_path):
    session = again(tmp_path, code={"source": "b" * 64}, versions={"jax": "0.11"})
    assert session.changed == [
        "code.source: aaaaaaaaaaaa -> bbbbbbbbbbbb",
        "versions.jax: 0.10 -> 0.11",
    ]
    assert session.contract.endswith(manifest.UNLESS)


def test_other_data_is_refused_unless_allowed(tmp_path):
    changed = {"train": {"examples": 4, "fingerprint": "e"}}
    with pytest.raises(UserError, match=r"data is not the run's.*data.train.fingerprint: d -> e"):
        again(tmp_path, data=changed)
    session = again(tmp_path, data=changed, allowed=("data",))
    assert session.contract == manifest.NOT_THE_SAME


def test_the_manifest_of_the_first_start_stays_and_resumes_are_added(tmp_path):
    session = again(tmp_path, versions={"jax": "0.11"})
    manifest.record(tmp_path, small(), session, 4, {})
    third = manifest.begin(
        tmp_path, {**ABOUT, "versions": {**ABOUT["versions"], "jax": "0.11"}}, []
    )
    assert (
        third.run == session.run and third.changed == []
    )  # against the start before, not the first
    written = json.loads((tmp_path / "manifest.json").read_text())
    assert written["versions"]["jax"] == "0.10"
    (resumed,) = written["resumes"]
    assert resumed["step"] == 4 and resumed["versions"]["jax"] == "0.11"
    assert resumed["contract"] == session.contract and resumed["changed"] == session.changed


def stop_after(calls):
    asked = iter(range(10**9))
    return lambda: next(asked) >= calls


def test_an_allowed_learning_rate_is_used_from_the_resume_on(tmp_path):
    folder = tmp_path / "run"
    with pytest.raises(Exception, match="stopped"):
        train(small(), folder, stop=stop_after(3))
    faster = small("optimizer.learning_rate=0.5")
    with pytest.raises(UserError, match=r"optimizer.learning_rate: 0.01 -> 0.5.*allow_changed"):
        train(faster, folder)
    train(faster, folder, allow_changed=("optimizer.learning_rate",))
    rates = {}
    for line in (folder / "metrics.jsonl").read_text().splitlines():
        line = json.loads(line)
        rates[line["step"]] = line.get("train/learning_rate", rates.get(line["step"]))
    assert rates[1] == pytest.approx(0.01) and rates[12] == pytest.approx(0.5)
    assert json.loads((folder / "manifest.json").read_text())["resumes"][-1]["changed"] == [
        "optimizer.learning_rate: 0.01 -> 0.5"
    ]


def test_a_stop_during_the_evaluation_saves_and_the_evaluation_is_made_up_for(tmp_path):
    whole = train(small(), tmp_path / "whole")
    folder = tmp_path / "run"
    with pytest.raises(Exception, match="stopped on request after step 6"):
        train(small(), folder, stop=stop_after(5 + 3))  # five steps, then batches of the first one
    assert "eval/test/loss" not in (folder / "metrics.jsonl").read_text()
    again = train(small(), folder)
    assert again["fingerprint"] == whole["fingerprint"] and again["metrics"] == whole["metrics"]
    lines = [(tmp_path / r / "metrics.jsonl").read_text().splitlines() for r in ("run", "whole")]
    assert sorted(lines[0]) == sorted(lines[1])


def test_a_run_that_died_before_its_result_is_finished_without_a_step(tmp_path):
    whole = train(small(), tmp_path)
    (tmp_path / "result.json").unlink()
    again = train(small(), tmp_path)
    assert again["fingerprint"] == whole["fingerprint"]
    assert repr(again["metrics"]) == repr(whole["metrics"])


def test_a_second_process_is_refused_and_told_who_holds_the_folder(tmp_path):
    program = (
        "import sys; from pathlib import Path; from bigjax.run.files import workdir_lock\n"
        "with workdir_lock(Path(sys.argv[1])): print('mine')"
    )

    def other():
        return subprocess.run(
            [sys.executable, "-c", program, str(tmp_path)], capture_output=True, text=True
        )

    (tmp_path / "kept").touch()
    with workdir_lock(tmp_path):
        refused = other()
        with pytest.raises(UserError), workdir_lock(tmp_path):
            pass
    assert f"is being written by process {os.getpid()} on " in refused.stderr
    assert other().stdout == "mine\n"


def test_a_refused_start_leaves_no_folder(tmp_path):
    with pytest.raises(UserError), workdir_lock(tmp_path / "new"):
        raise UserError("wrong")
    assert not (tmp_path / "new").exists()


def test_ids_of_runs_differ():
    assert len({manifest._new_id() for _ in range(100)}) == 100
