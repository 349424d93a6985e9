"""Nothing of others is removed, nothing is lost, nothing starts again in silence, whatever is damaged."""

import itertools
import json
import logging
import math
import os
import shutil

import numpy as np
import pytest
from etils import epath

from bigjax.core import settings
from bigjax.core.errors import UserError
from bigjax.loop.train import Stopped, train
from bigjax.run import files, manifest, public
from bigjax.run.checkpoint import (
    CheckpointError,
    Checkpoints,
    hashes,
    leaves,
    manager,
    restore_leaves,
)
from bigjax.run.clock import Clock
from bigjax.run.result import read_result
from bigjax.run.writers import read_metrics
from bigjax.verbs import launch
from tests.small import small, small_config
from tests.test_checkpoint import ORIGIN, abstract, mesh, place, saved, values


@pytest.fixture(scope="module")
def halves(tmp_path_factory):
    """(a run stopped after step 8, the whole run, its result); checkpoints every 4 steps."""
    folder = tmp_path_factory.mktemp("runs")
    whole, eight = train(small(), folder / "whole"), folder / "half" / "checkpoints" / "8"
    with pytest.raises(Stopped):
        train(small(), folder / "half", stop=eight.exists)
    return folder / "half", folder / "whole", whole


@pytest.fixture
def half(halves, tmp_path):
    return shutil.copytree(halves[0], tmp_path / "run")


def content(folder):
    return {p.relative_to(folder): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


# What is of others.


def test_a_folder_of_notes_named_by_a_number_stays(half, halves):
    notes = half / "checkpoints" / "2024"
    (notes / "letters").mkdir(parents=True)
    (notes / "letters" / "may.txt").write_text("dear")
    (half / "checkpoints" / "7").mkdir()
    assert train(small(), half)["fingerprint"] == halves[2]["fingerprint"]
    assert content(notes) == dict.fromkeys(content(notes), b"dear") and content(notes)
    assert not (half / "checkpoints" / "bad").exists()


def test_a_save_never_goes_into_a_folder_of_others(half):
    notes = half / "checkpoints" / "12"
    notes.mkdir()
    (notes / "notes.txt").write_text("mine")
    with pytest.raises(CheckpointError, match=r"12 is there already and is no checkpoint"):
        train(small(), half)
    assert content(notes) == content(notes) and (notes / "notes.txt").read_text() == "mine"


def test_a_checkpoint_with_a_file_of_others_in_it_is_not_pruned(tmp_path, caplog):
    saved(tmp_path, steps=(1, 2), keep=2)
    (tmp_path / "checkpoints" / "1" / "notes.txt").write_text("mine")
    checkpoints, _ = saved(tmp_path, steps=(3, 4, 5), keep=2)
    assert checkpoints.steps() == [1, 4, 5]
    assert (tmp_path / "checkpoints" / "1" / "notes.txt").read_text() == "mine"


def test_leavings_of_another_run_stay(tmp_path):
    saved(tmp_path)
    folder = tmp_path / "checkpoints"
    (folder / ".deleting-0123456789abcdef-9").mkdir()
    (folder / ".deleting-abc-8" / "d").mkdir(parents=True)
    (folder / ".saving-9").write_bytes(b"another \xff\n")
    (folder / "9" / "default").mkdir(parents=True)
    checkpoints, _ = saved(tmp_path, steps=())
    assert (folder / ".deleting-0123456789abcdef-9").exists() and (folder / "9").exists()
    assert not (folder / ".deleting-abc-8").exists()
    assert checkpoints.steps() == [1, 2, 3]


def test_a_linked_checkpoint_is_unlinked_when_it_is_pruned_and_what_it_names_stays(tmp_path):
    saved(tmp_path, steps=(1, 2))
    elsewhere = tmp_path / "elsewhere"
    shutil.move(tmp_path / "checkpoints" / "1", elsewhere)
    (tmp_path / "checkpoints" / "1").symlink_to(elsewhere)
    before = content(elsewhere)
    checkpoints, _ = saved(tmp_path, steps=(3, 4), keep=2)
    assert checkpoints.steps() == [3, 4] and content(elsewhere) == before


def test_a_run_may_only_keep_its_checkpoints_where_its_own_id_says(half):
    away = half.parent / "0123456789abcdef"
    shutil.move(half / "checkpoints", away)
    (half / "checkpoints_at.txt").write_text(str(away))
    before = content(away)
    with pytest.raises(UserError, match="not where this run keeps checkpoints"):
        train(small(), half)
    assert content(away) == before


# What was lost.


def test_a_run_whose_checkpoints_are_all_bad_never_starts_again(half):
    for path in (half / "checkpoints").glob("*/manifest.json"):
        path.write_text("")
    before = (half / "metrics.jsonl").read_text()
    for _ in range(3):
        with pytest.raises(CheckpointError, match=r"no good checkpoint.*another --workdir"):
            train(small(), half)
    assert (half / "metrics.jsonl").read_text() == before
    assert len(list((half / "checkpoints" / "bad").iterdir())) == 3  # 4, 8, where it stopped


@pytest.mark.parametrize("gone", [(), (".saved",), (".saved", "manifest.json")])
def test_a_run_whose_checkpoints_are_gone_never_starts_again(halves, tmp_path, gone):
    run = shutil.copytree(halves[1], tmp_path / "run")
    for name in ("checkpoints", *gone):
        path = run / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    before = content(run)
    with pytest.raises(CheckpointError, match="does not start again"):
        train(small(), run)
    assert {p: b for p, b in content(run).items() if p.name != ".lock"} == {
        p: b for p, b in before.items() if p.name != ".lock"
    }


def test_a_run_killed_before_its_first_checkpoint_starts_again(half, halves):
    shutil.rmtree(half / "checkpoints")
    (half / ".saved").unlink()
    lines = [line for line in read_metrics(half / "metrics.jsonl") if line["step"] <= 3]
    (half / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert train(small(), half)["fingerprint"] == halves[2]["fingerprint"]


def test_a_lost_manifest_is_made_anew_and_the_run_goes_on(half, halves, caplog):
    before = json.loads((half / "manifest.json").read_text())["run"]
    (half / "manifest.json").unlink()
    assert train(small(), half)["fingerprint"] == halves[2]["fingerprint"]
    assert json.loads((half / "manifest.json").read_text())["run"] == before
    assert not (half / "checkpoints" / "bad").exists()
    assert "manifest.json is lost: made anew" in caplog.text


def test_a_lost_config_is_made_anew_if_it_is_the_checkpoints(half, halves):
    (half / "config.json").unlink()
    with pytest.raises(UserError, match=r"config.json is lost.*allow_changed=config"):
        train(small("optimizer.learning_rate=0.5"), half)
    assert train(small(), half)["fingerprint"] == halves[2]["fingerprint"]


DAMAGE = {
    "empty": "",
    "cut": '{"run": "ab',
    "list": "[1, 2]",
    "number": "7",
    "deep": "[" * 100_000,
    "empty object": "{}",
    "binary": "\udcff\x00",
}


@pytest.mark.parametrize("how", DAMAGE)
def test_damaged_bookkeeping_is_mended_and_the_run_goes_on(half, halves, how):
    for name in ("manifest.json", "time.json", ".saved", ".lock", "train_mean.json"):
        (half / name).write_bytes(DAMAGE[how].encode(errors="surrogateescape"))
    assert train(small(), half)["fingerprint"] == halves[2]["fingerprint"]
    assert not (half / "checkpoints" / "bad").exists()
    assert json.loads((half / "manifest.json").read_text())["run"]
    assert set(json.loads((half / "time.json").read_text())) == {"starts", "seconds", "marks"}


@pytest.mark.parametrize("how", [*DAMAGE, "gone"])
def test_a_damaged_result_is_written_again_without_a_step(halves, tmp_path, how):
    run = shutil.copytree(halves[1], tmp_path / "run")
    if how == "gone":
        (run / "result.json").unlink()
    else:
        (run / "result.json").write_bytes(DAMAGE[how].encode(errors="surrogateescape"))
    result = train(small(), run)
    assert result["fingerprint"] == halves[2]["fingerprint"]
    assert json.loads((run / "result.json").read_text())["fingerprint"] == result["fingerprint"]


def test_a_report_lost_between_result_and_end_is_written(halves, tmp_path):
    run = shutil.copytree(halves[1], tmp_path / "run")
    (run / "report.html").unlink()
    train(small(), run)
    assert (run / "report.html").stat().st_size > 1000


def test_a_result_that_is_not_a_number_is_read_as_it_was_and_a_strange_one_is_lost(tmp_path):
    good = {"step": 3, "fingerprint": "f", "metrics": {"a": math.nan, "b": [[1.0, math.inf]]}}
    files.write_json(tmp_path / "result.json", good)
    found = read_result(tmp_path)["metrics"]
    assert math.isnan(found["a"]) and found["b"] == [[1.0, math.inf]]
    strange = {"step": "3", "fingerprint": None, "seconds": math.nan, "metrics": {"a": [1, [2]]}}
    for key, value in strange.items():
        files.write_json(tmp_path / "result.json", {**good, key: value})
        assert read_result(tmp_path) is None
    files.write_json(tmp_path / "result.json", {**good, "time": {"wall": 0, "seconds": {"a": 1}}})
    assert "time" not in read_result(tmp_path)


@pytest.mark.parametrize("name", [".lock", *files.WRITTEN])
def test_a_folder_in_the_place_of_a_file_is_one_line(halves, tmp_path, name, capsys):
    run = shutil.copytree(halves[name == "result.json"], tmp_path / "run")
    (run / name).unlink(missing_ok=True)
    (run / name).mkdir()
    before = sorted(path.name for path in (run / "checkpoints").iterdir())
    assert launch.execute("experiments.x", small_config, [f"--workdir={run}"]) == 2
    said = capsys.readouterr().err.strip().splitlines()
    assert said[-1].startswith("error: ") and name in said[-1]
    assert sorted(path.name for path in (run / "checkpoints").iterdir()) == before


def test_a_true_manifest_over_files_that_orbax_cannot_read_is_one_line(tmp_path):
    _, wanted = saved(tmp_path, steps=(1,))
    folder = epath.Path(tmp_path / "checkpoints" / "1")
    content = json.loads((folder / "manifest.json").read_text())
    for name in content["files"]:
        (folder / name).write_bytes(b"not what Orbax wrote")
    content["files"] = hashes.file_hashes(folder, content["files"])
    content.pop("sha256")
    (folder / "manifest.json").write_text(hashes.sealed(content))
    for read in (
        lambda: Checkpoints(tmp_path, settings.Checkpoint(), ORIGIN).restore_newest(wanted),
        lambda: restore_leaves(tmp_path, {"kernel": wanted["kernel"]}),
    ):
        with pytest.raises(CheckpointError, match="as they were saved, and cannot be read") as told:
            read()
        assert "\n" not in str(told.value) and folder.exists()


@pytest.mark.parametrize("name", ["bad", "checkpoints"])
def test_a_file_in_the_place_of_a_folder_is_one_line(half, name, capsys):
    folder = half / "checkpoints"
    if name == "checkpoints":
        shutil.rmtree(folder)
        folder.write_text("a file")
    else:
        (folder / "bad").write_text("a file")
        newest = max(int(path.name) for path in folder.iterdir() if path.name.isdigit())
        (folder / str(newest) / "manifest.json").write_text("")
    assert launch.execute("experiments.x", small_config, [f"--workdir={half}"]) in (1, 2)
    said = capsys.readouterr().err.strip().splitlines()
    assert said[-1].startswith("error: ") and name in said[-1]


def test_glued_and_torn_lines_of_metrics_are_told(tmp_path, caplog):
    path = tmp_path / "metrics.jsonl"
    path.write_text(
        '{"step": 1, "a": 1.0}{"step": 2, "a": "NaN"}\n'
        '{"step": 3, "a": 3.{"step": 4, "a": 4.0}\n'
        '{"step": 5, "a": "word"}\n{"a": 6.0}\n{"step": 6, "a": null}\n'
        '{"step": 7, "a": 7.0}\n{"step": 8, "a'
    )
    lines = read_metrics(path)
    assert [line["step"] for line in lines] == [1, 2, 4, 7]
    told = [record.message.partition("jsonl: ")[2] for record in caplog.records]
    assert [text[:9] for text in told] == ["line 2 is", "of step 5", "a line wi", "of step 6"]


# What a loss of power leaves.


def test_everything_is_synced_before_the_manifest_and_that_before_anything_is_removed(
    tmp_path, monkeypatch
):
    """Every call is recorded: a file counts as written only with what was synced since."""
    calls, real = [], os.fsync

    def fsync(handle):
        calls.append(("sync", os.readlink(f"/proc/self/fd/{handle}")))
        real(handle)

    rename, remove = type(hashes.epath.Path(".")).replace, manager.remove
    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(manager, "remove", lambda *a: calls.append(("remove", a[1])) or remove(*a))

    def replace(self, target):
        calls.append(("replace", str(target)))
        return rename(self, target)

    monkeypatch.setattr(type(hashes.epath.Path(".")), "replace", replace)
    saved(tmp_path, steps=(1,), keep=1)
    calls.clear()
    saved(tmp_path, steps=(2,), keep=1)
    folder = tmp_path / "checkpoints" / "2"
    counts = calls.index(("replace", str(folder / "manifest.json")))
    before = {path for kind, path in calls[:counts] if kind == "sync"}
    on_disk = {str(p) for p in folder.rglob("*") if p.name != "manifest.json"}
    assert on_disk <= before
    removed = calls.index(("remove", 1))
    between = {path for kind, path in calls[counts:removed] if kind == "sync"}
    assert {str(folder), str(folder.parent)} <= between and removed > counts


def test_what_was_logged_is_synced_before_a_checkpoint_counts(tmp_path, monkeypatch):
    calls, real, write = [], os.fsync, manager._write_manifest
    monkeypatch.setattr(
        os, "fsync", lambda h: calls.append(os.readlink(f"/proc/self/fd/{h}")) or real(h)
    )
    monkeypatch.setattr(
        manager, "_write_manifest", lambda *a: calls.append("manifest") or write(*a)
    )
    train(small("train.steps=4"), tmp_path)
    assert str(tmp_path / "metrics.jsonl") in calls[: calls.index("manifest")]


def test_a_file_written_atomically_is_synced_with_its_folder(tmp_path, monkeypatch):
    synced, real = [], os.fsync
    monkeypatch.setattr(
        os, "fsync", lambda h: synced.append(os.readlink(f"/proc/self/fd/{h}")) or real(h)
    )
    files.write_atomic(tmp_path / "a.json", "1")
    assert len(synced) == 2 and synced[0].endswith(files.TEMPORARY) and synced[1] == str(tmp_path)


# What others may read.


@pytest.mark.parametrize("mask, mode", [(0o077, 0o600), (0o022, 0o644), (0o002, 0o664)])
def test_the_umask_is_respected(tmp_path, mask, mode):
    before = os.umask(mask)
    try:
        files.write_atomic(tmp_path / "file", "text")
        files.publish(tmp_path / "folder", lambda private: (private / "a").touch())
    finally:
        os.umask(before)
    assert (tmp_path / "file").stat().st_mode & 0o777 == mode
    assert (tmp_path / "folder").stat().st_mode & 0o777 == 0o777 & ~mask


def test_temporary_files_of_killed_processes_go_and_no_others(tmp_path, monkeypatch):
    class Killed(BaseException):
        """As a kill: nothing is cleaned up."""

    def kill(*_):
        raise Killed

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(os, "replace", kill)
        patch.setattr(files.Path, "unlink", lambda *_, **__: None)
        files.write_json(tmp_path / "result.json", {})
    (tmp_path / ".mine.tmp").touch()
    assert len(list(tmp_path.glob(".result.json.*"))) == 1
    with files.workdir_lock(tmp_path):
        assert sorted(p.name for p in tmp_path.iterdir()) == [".lock", ".mine.tmp"]


def test_no_secret_and_no_path_outside_the_project_is_shown():
    project = str(public.PROJECT)
    said = public.command(
        [
            f"{project}/experiments/x.py",
            "--workdir=/home/someone/runs/a",
            "--config.log.api_key=hunter2",
            "--config.a.password=abc",
            "--config.a.token=abc",
            "--config.data.source.tokenizer=gpt2",
            "--config.model.pad_token=3",
            "--config.data.source.url=https://me:secret@host/x",
            "--config.b=hf_abcdefghijklmnopqrstuvwx",
            "--config.init.source=../teacher",
        ]
    )
    assert said == (
        "experiments/x.py --workdir=.../a '--config.log.api_key=(secret)' "
        "'--config.a.password=(secret)' '--config.a.token=(secret)' "
        "--config.data.source.tokenizer=gpt2 '--config.model.pad_token=(secret)' "
        "'--config.data.source.url=(secret)' '--config.b=(secret)' --config.init.source=../teacher"
    )
    assert public.shown("flags", "--xla_dump_to=/root/dump --a=1") == "--xla_dump_to=.../dump --a=1"


def test_a_runs_manifest_names_no_place_outside_the_project(halves, tmp_path, monkeypatch):
    monkeypatch.setattr(
        "sys.argv", ["/home/someone/x.py", f"--workdir={tmp_path}", "--config.a_token=t0ps3cret"]
    )
    monkeypatch.setenv(
        "XLA_FLAGS", os.environ.get("XLA_FLAGS", "") + " --xla_dump_to=/home/someone/d"
    )
    about = manifest.describe(small(), mesh(8), {"train": Source()})
    text = json.dumps(about)
    assert "/home" not in text and str(tmp_path) not in text and "t0ps3cret" not in text


class Source:
    class_names = None

    def __len__(self):
        return 1

    def fingerprint(self):
        return "f"


# What counts as best, and what is what it says it is.


@pytest.mark.parametrize("mode, best", [("max", 0.9), ("min", 0.5)])
def test_nan_is_never_best_in_any_order(tmp_path, mode, best):
    scores = [0.9, 0.6, 0.7, float("nan"), 0.5]
    for number, order in enumerate(itertools.islice(itertools.permutations(scores), 0, 120, 7)):
        folder = tmp_path / str(number)
        options = settings.Checkpoint(keep=1, best="score", best_mode=mode)
        checkpoints = Checkpoints(folder, options, ORIGIN)
        for step, score in enumerate(order, 1):
            directory = folder / "checkpoints" / str(step)
            directory.mkdir(parents=True)
            text = {"format": 2, "run": "abc", "step": step, "time": 0.0, "config_fingerprint": ""}
            text |= {"metrics": {"score": score}, "arrays": {}, "files": {}}
            (directory / "manifest.json").write_text(hashes.sealed(text))
            checkpoints._prune()
        kept = {order[step - 1] for step in checkpoints.steps()}
        assert {x for x in kept if x == x} == {x for x in (best, order[-1]) if x == x}
        checkpoints.close()


def test_an_older_step_under_a_newer_number_is_refused(tmp_path):
    checkpoints = Checkpoints(tmp_path, settings.Checkpoint(keep=9), ORIGIN)
    for step in (1, 2):
        state = place({**values(step), "step": np.int32(step)}, mesh(8))
        checkpoints.save(step, state, {})
    checkpoints.wait()
    folder = tmp_path / "checkpoints"
    shutil.copytree(folder / "1", folder / "3")
    forged = json.loads((folder / "3" / "manifest.json").read_text())
    del forged["sha256"]
    (folder / "3" / "manifest.json").write_text(hashes.sealed({**forged, "step": 3}))
    with pytest.raises(CheckpointError, match="its state is of step 1, not 3"):
        checkpoints.restore(abstract(state), 3)
    with pytest.raises(CheckpointError, match="its state is of step 1, not 3"):
        restore_leaves(tmp_path, {"kernel": abstract(state)["kernel"]})
    step, found = checkpoints.restore_newest(abstract(state))
    assert step == 2 and int(found["step"]) == 2


def test_a_block_left_out_of_a_forged_manifest_is_missed(tmp_path):
    checkpoints, wanted = saved(tmp_path)
    path = tmp_path / "checkpoints" / "3" / "manifest.json"
    forged = json.loads(path.read_text())
    del forged["sha256"]
    forged["arrays"]["kernel"]["blocks"].popitem()
    path.write_text(hashes.sealed(forged))
    with pytest.raises(CheckpointError, match="kernel"):
        checkpoints.restore(wanted, 3)


# Readers beside a run that prunes.


@pytest.mark.parametrize("moment", ["manifest", "files", "arrays"])
def test_a_reader_looks_again_when_its_checkpoint_is_pruned(tmp_path, monkeypatch, moment):
    _, wanted = saved(tmp_path, steps=(1, 2))
    reader = Checkpoints(tmp_path)
    folder, done = tmp_path / "checkpoints", []

    def prune(*_):
        if not done:
            done.append(1)
            shutil.copytree(folder / "1", tmp_path / "kept")
            (folder / "2").rename(tmp_path / "gone")

    where = {"manifest": (hashes, "read_manifest"), "files": (hashes, "check_files")}
    holder, name = where.get(moment, (leaves, "read_tree"))
    real = getattr(holder, name)
    monkeypatch.setattr(holder, name, lambda *a, **k: prune() or real(*a, **k))
    step, _ = reader.restore_newest(wanted)
    assert step == 1 and done


def test_listing_and_single_arrays_look_again_too(tmp_path, monkeypatch):
    _, wanted = saved(tmp_path, steps=(1, 2))
    real, folder = hashes.read_manifest, tmp_path / "checkpoints"

    def pruning(path, **options):
        if path.name == "2" and path.exists():
            (folder / "2").rename(tmp_path / "gone")
        return real(path, **options)

    monkeypatch.setattr(hashes, "read_manifest", pruning)
    assert [row["step"] for row in Checkpoints(tmp_path).listing(True)] == [1]
    (tmp_path / "gone").rename(folder / "2")
    found = restore_leaves(tmp_path, {"kernel": wanted["kernel"]})
    np.testing.assert_array_equal(np.asarray(found["kernel"]), values(1)["kernel"])


def test_a_save_under_way_is_invisible_to_readers(tmp_path, monkeypatch):
    checkpoints, wanted = saved(tmp_path, steps=(1,))
    monkeypatch.setattr(manager, "_write_manifest", lambda *_: (_ for _ in ()).throw(OSError("x")))
    checkpoints.save(2, place(values(2), mesh(8), kernel=("x",)), {})
    with pytest.raises(CheckpointError):
        checkpoints.wait()
    assert (tmp_path / "checkpoints" / "2" / "default").exists()
    assert Checkpoints(tmp_path).restore_newest(wanted)[0] == 1
    assert restore_leaves(tmp_path, {"kernel": wanted["kernel"]})


def test_the_clock_of_a_strange_file_starts_anew(tmp_path):
    for text in ('{"seconds": {"step": "x"}, "marks": {}, "starts": 1}', '{"marks": {"a": {}}}'):
        (tmp_path / "time.json").write_text(text)
        assert Clock(tmp_path).starts == 1


def test_a_full_disk_is_one_line(half, monkeypatch, capsys):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files.os, "replace", full)
    assert launch.execute("experiments.x", small_config, [f"--workdir={half}"]) == 1
    said = capsys.readouterr().err.strip().splitlines()
    assert said[-1].startswith("error: ") and "No space left on device" in said[-1]


@pytest.fixture(autouse=True)
def told(caplog):
    logger = logging.getLogger("bigjax")
    logger.propagate = True
    caplog.set_level(logging.INFO, "bigjax")
