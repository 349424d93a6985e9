"""Checkpoints that are verified: what is kept, what is found out, what is used instead."""

import json
import os
import shutil
import zlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from bigjax.core import settings
from bigjax.core.errors import UserError
from bigjax.loop.open import open_run
from bigjax.loop.train import train
from bigjax.run.checkpoint import (
    CheckpointError,
    Checkpoints,
    Origin,
    hashes,
    manager,
    restore_leaves,
)
from bigjax.run.checkpoint.folder import begin_save, clean_up
from bigjax.run.checkpoint.hashes import BadCheckpoint, host_blocks, read_manifest
from bigjax.run.files import TEMPORARY
from tests.small import small

ORIGIN = Origin(run="abc", config_fingerprint="f", batch_size=32, versions={"jax": "1"})


def mesh(*sizes):
    axis_types = (AxisType.Auto,) * len(sizes)
    return jax.make_mesh(sizes, tuple("xyz"[: len(sizes)]), axis_types=axis_types)


def place(tree, grid, **specs):
    """A copy of `tree`, each leaf laid out as the spec of its name says."""
    return {
        name: jax.device_put(np.array(x), NamedSharding(grid, PartitionSpec(*specs.get(name, ()))))
        for name, x in tree.items()
    }


def values(step):
    return {
        "kernel": np.random.default_rng(step).normal(size=(64, 24)).astype(np.float32),
        "half": (np.arange(16) * step).astype(jnp.bfloat16),
        "count": np.int32(step),
    }


def abstract(tree):
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), tree)


def saved(folder, steps=(1, 2, 3), metrics=None, **options):
    state = place(values(0), mesh(8), kernel=("x",))
    checkpoints = Checkpoints(folder, settings.Checkpoint(**{"keep": 9, **options}), ORIGIN)
    for step in steps:
        state = place(values(step), mesh(8), kernel=("x",))
        checkpoints.save(step, state, (metrics or {}).get(step, {}))
    checkpoints.wait()
    return checkpoints, abstract(state)


def assert_is_state_of(step, state):
    for name, expected in values(step).items():
        np.testing.assert_array_equal(np.asarray(state[name]), expected)


def data_file(folder, step):
    """The file that holds most of a checkpoint's numbers."""
    files = [p for p in (folder / "checkpoints" / str(step)).rglob("*") if p.is_file()]
    return max(files, key=lambda p: p.stat().st_size)


def flip(path, position=None):
    content = bytearray(path.read_bytes())
    content[len(content) // 2 if position is None else position] ^= 8
    path.write_bytes(content)


def rot(folder, step):
    """One bit of every data file."""
    for path in (folder / "checkpoints" / str(step)).rglob("d/*"):
        flip(path)


def test_the_manifest_holds_the_hash_of_every_array_and_file(tmp_path):
    saved(tmp_path, steps=(7,))
    folder = tmp_path / "checkpoints" / "7"
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["step"] == 7 and manifest["sample_position"] == 7 * 32
    assert manifest["config_fingerprint"] == "f" and manifest["versions"] == {"jax": "1"}
    kernel = manifest["arrays"]["kernel"]
    assert kernel["shape"] == [64, 24] and kernel["dtype"] == "float32"
    expected = {
        f"{i}:{i + 8},0:24": f"{zlib.crc32(values(7)['kernel'][i : i + 8].tobytes()):08x}"
        for i in range(0, 64, 8)
    }
    assert kernel["blocks"] == expected
    assert manifest["arrays"]["half"]["dtype"] == "bfloat16"
    files = {str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()}
    assert set(manifest["files"]) == files - {"manifest.json"}
    for name, found in manifest["files"].items():
        content = (folder / name).read_bytes()
        assert found == {"size": len(content), "crc32": f"{zlib.crc32(content):08x}"}


def test_a_state_donated_right_after_the_save_is_saved_as_it_was(tmp_path):
    checkpoints = Checkpoints(tmp_path, settings.Checkpoint(keep=9), ORIGIN)
    advance = jax.jit(lambda s: jax.tree.map(lambda x: x + 1, s), donate_argnums=0)
    state = {"kernel": jnp.zeros((300, 1000))}
    for step in range(1, 6):
        state = advance(state)
        checkpoints.save(step, state, {})
        state = advance(state)
    checkpoints.wait()
    for step in range(1, 6):
        restored = checkpoints.restore(abstract(state), step)
        assert np.unique(np.asarray(restored["kernel"])) == 2 * step - 1


@pytest.mark.parametrize("sizes", [(1,), (2,), (8,), (2, 4)])
def test_any_mesh_restores_and_verifies_what_another_one_saved(tmp_path, sizes):
    checkpoints, _ = saved(tmp_path)
    axes = tuple(reversed("xyz"[: len(sizes)]))
    wanted = abstract(place(values(0), mesh(*sizes), kernel=axes))
    step, state = checkpoints.restore_newest(wanted)
    assert step == 3 and state["kernel"].sharding == wanted["kernel"].sharding
    assert_is_state_of(3, state)


def test_every_file_is_watched_and_the_newest_good_checkpoint_is_used(tmp_path):
    _, wanted = saved(tmp_path / "whole", steps=(1, 2))
    newest = tmp_path / "whole" / "checkpoints" / "2"
    names = [p.relative_to(newest) for p in newest.rglob("*") if p.is_file()]
    for number, name in enumerate(names):
        folder = tmp_path / str(number)
        shutil.copytree(tmp_path / "whole", folder)
        flip(folder / "checkpoints" / "2" / name)
        step, state = Checkpoints(folder, settings.Checkpoint(), ORIGIN).restore_newest(wanted)
        assert step == 1
        assert_is_state_of(1, state)
        assert name.name in (folder / "checkpoints" / "bad" / "2-1" / "why.txt").read_text()


def test_a_bad_checkpoint_names_its_arrays_and_is_moved_not_deleted(tmp_path, caplog):
    checkpoints, wanted = saved(tmp_path)
    rot(tmp_path, 3)
    before = data_file(tmp_path, 3).read_bytes()
    checkpoints.restore_newest(wanted)
    moved = tmp_path / "checkpoints" / "bad" / "3-1"
    assert before in [p.read_bytes() for p in moved.rglob("*") if p.is_file()]
    assert "kernel" in (moved / "why.txt").read_text()
    assert checkpoints.steps() == [1, 2]


def test_arrays_that_differ_under_true_files_are_found(tmp_path):
    """As if memory had changed between the hash and the disk."""
    checkpoints, wanted = saved(tmp_path)
    folder = epath.Path(tmp_path) / "checkpoints" / "3"
    manifest = read_manifest(folder, step=3, run="abc")
    blocks = manifest["arrays"]["kernel"]["blocks"]
    first, second = sorted(blocks)[:2]
    blocks[first] = blocks[second]
    manager._write_manifest(folder, manifest)
    with pytest.raises(CheckpointError, match=r"arrays differ from what was saved: kernel$"):
        checkpoints.restore(wanted, 3)
    assert checkpoints.restore_newest(wanted)[0] == 2


def test_no_good_checkpoint_says_what_was_tried(tmp_path):
    checkpoints, wanted = saved(tmp_path, steps=(1, 2))
    for step in (1, 2):
        data_file(tmp_path, step).unlink()
    with pytest.raises(CheckpointError, match=r"no good checkpoint; step 2: .*missing.*; step 1: "):
        checkpoints.restore_newest(wanted)
    assert Checkpoints(tmp_path / "new", settings.Checkpoint()).restore_newest(wanted) is None


@pytest.mark.parametrize("run, step", [("other run", 3), ("abc", 4)])
def test_a_manifest_of_another_run_or_step_does_not_count(tmp_path, run, step):
    saved(tmp_path)
    with pytest.raises(BadCheckpoint, match=f"not {step if run == 'abc' else run}"):
        read_manifest(epath.Path(tmp_path) / "checkpoints" / "3", step=step, run=run)


def test_a_folder_without_a_manifest_never_counts(tmp_path):
    checkpoints, wanted = saved(tmp_path)
    (tmp_path / "checkpoints" / "3" / "manifest.json").unlink()
    assert checkpoints.steps() == [1, 2]
    assert checkpoints.restore_newest(wanted)[0] == 2


def test_leftovers_of_a_killed_save_are_removed_and_only_by_a_writer(tmp_path):
    saved(tmp_path)
    partial = tmp_path / "checkpoints" / "4" / "default.orbax-checkpoint-tmp"
    partial.mkdir(parents=True)
    mark = tmp_path / "checkpoints" / ".saving-4"
    mark.write_text("abc\n")
    Checkpoints(tmp_path, settings.Checkpoint())
    assert partial.exists()
    Checkpoints(tmp_path, settings.Checkpoint(), ORIGIN)
    assert not partial.parent.exists() and not mark.exists()


@pytest.mark.parametrize("mark", [None, "", "of another run"])
def test_half_a_save_without_this_runs_mark_is_set_aside_and_not_removed(tmp_path, mark):
    saved(tmp_path)
    partial = tmp_path / "checkpoints" / "4" / "default.orbax-checkpoint-tmp"
    partial.mkdir(parents=True)
    (partial / "data").write_text("something")
    if mark is not None:
        (tmp_path / "checkpoints" / ".saving-4").write_text(mark)
    checkpoints, _ = saved(tmp_path, steps=(4,))
    aside = tmp_path / "checkpoints" / "bad" / "4-1" / partial.name / "data"
    assert checkpoints.steps() == [1, 2, 3, 4] and aside.read_text() == "something"


def test_a_first_save_killed_before_its_manifest_is_no_damage(tmp_path, monkeypatch):
    """All arrays lie there under their final name; nothing but the manifest is missing."""
    checkpoints = Checkpoints(tmp_path, settings.Checkpoint(), ORIGIN)
    state = place(values(1), mesh(8))

    def killed(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises((KeyboardInterrupt, CheckpointError)):
        patch.setattr(manager, "_write_manifest", killed)
        checkpoints.save(1, state, {})
        checkpoints.wait()
    folder = tmp_path / "checkpoints"
    assert (folder / "1" / "default").exists() and not (folder / "1" / "manifest.json").exists()
    again = Checkpoints(tmp_path, settings.Checkpoint(), ORIGIN)
    assert again.restore_newest(state) is None and list(folder.iterdir()) == []
    again.save(1, state, {})
    again.wait()
    (folder / "1" / "manifest.json").unlink()  # damage: that save was finished
    with pytest.raises(CheckpointError, match="no good checkpoint"):
        Checkpoints(tmp_path, settings.Checkpoint(), ORIGIN).restore_newest(state)


def test_the_mark_of_a_save_under_way_survives_a_loss_of_power(tmp_path, monkeypatch):
    """Without it the rest of a first save would count as a lost checkpoint, and the run be refused."""
    synced, sync = set(), os.fsync
    monkeypatch.setattr(os, "fsync", lambda f: (synced.add(os.fstat(f).st_ino), sync(f)))
    begin_save(epath.Path(tmp_path), 4, ORIGIN.run)
    (mark,) = tmp_path.glob(".saving-4")
    assert {mark.stat().st_ino, tmp_path.stat().st_ino} <= synced
    (tmp_path / f".{mark.name}.0123abcd{TEMPORARY}").write_text("")  # killed while it was written
    clean_up(epath.Path(tmp_path), ORIGIN.run)
    assert not list(tmp_path.iterdir())


def test_reading_only_moves_nothing(tmp_path):
    _, wanted = saved(tmp_path)
    flip(data_file(tmp_path, 3))
    assert Checkpoints(tmp_path, settings.Checkpoint()).restore_newest(wanted)[0] == 2
    assert not (tmp_path / "checkpoints" / "bad").exists()


def test_the_newest_and_the_best_are_kept_also_over_restarts(tmp_path):
    scores = {1: 0.5, 2: 0.9, 3: 0.1}
    options = {"keep": 2, "best": "score"}
    saved(tmp_path, metrics={step: {"score": x} for step, x in scores.items()}, **options)
    checkpoints, _ = saved(tmp_path, steps=(4, 5), metrics={5: {"score": 0.2}}, **options)
    assert checkpoints.steps() == [2, 4, 5]


def test_a_failed_save_is_told_at_the_next_check_and_the_last_good_one_stays(tmp_path, monkeypatch):
    checkpoints, wanted = saved(tmp_path)

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(manager, "_write_manifest", full)
    checkpoints.save(4, place(values(4), mesh(8)), {})
    while not checkpoints._saving.done():
        pass
    with pytest.raises(CheckpointError, match=r"step 4 was not saved .*No space.*is of step 3"):
        checkpoints.check()
    assert checkpoints.restore_newest(wanted)[0] == 3


def test_a_disk_too_full_for_the_state_is_told_before_anything_is_written(tmp_path, monkeypatch):
    checkpoints, wanted = saved(tmp_path)
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1000))
    said = r"step 4 was not saved .*full: .* kB are needed, 1 kB"
    with pytest.raises(CheckpointError, match=said):
        checkpoints.save(4, place(values(4), mesh(8)), {})
    assert not (tmp_path / "checkpoints" / "4").exists()
    assert checkpoints.restore_newest(wanted)[0] == 3


def test_a_state_of_another_config_is_refused_and_left_in_place(tmp_path):
    checkpoints, wanted = saved(tmp_path)
    other = {**wanted, "kernel": jax.ShapeDtypeStruct((2, 2), np.float32)}
    with pytest.raises(UserError, match=r"'kernel' is float32 \(64, 24\), not float32 \(2, 2\)"):
        checkpoints.restore_newest(other)
    assert checkpoints.steps() == [1, 2, 3]


def test_the_listing_says_what_is_wrong(tmp_path):
    checkpoints, _ = saved(tmp_path, metrics={2: {"score": 0.5}}, best="score")
    flip(data_file(tmp_path, 2))
    states = {row["step"]: row["state"] for row in checkpoints.listing(verify_files=True)}
    assert states[1] == states[3] == "verified"
    assert states[2].startswith("BAD") and data_file(tmp_path, 2).name in states[2]
    assert {row["step"]: row["metric"] for row in checkpoints.listing(False)}[2] == "score 0.5"


def test_single_arrays_are_verified_and_there_is_no_falling_back(tmp_path):
    _, wanted = saved(tmp_path)
    found = restore_leaves(tmp_path, {"kernel": wanted["kernel"]})
    np.testing.assert_array_equal(np.asarray(found["kernel"]), values(3)["kernel"])
    with pytest.raises(UserError, match="did you mean 'kernel'"):
        restore_leaves(tmp_path, {"kernal": wanted["kernel"]})
    rot(tmp_path, 3)
    with pytest.raises(CheckpointError):
        restore_leaves(tmp_path, {"kernel": wanted["kernel"]})


def test_a_folder_may_be_an_epath(tmp_path):
    checkpoints, wanted = saved(epath.Path(tmp_path) / "run")
    assert checkpoints.restore_newest(wanted)[0] == 3


def test_blocks_cover_an_array_once(tmp_path):
    grid = mesh(2, 4)
    array = place({"a": np.arange(32.0).reshape(8, 4)}, grid, a=("x",))["a"]
    blocks = host_blocks(array)
    assert sorted(blocks) == ["0:4,0:4", "4:8,0:4"]
    np.testing.assert_array_equal(np.concatenate([blocks[k] for k in sorted(blocks)]), array)


def test_a_run_may_keep_its_checkpoints_elsewhere_and_everyone_finds_them(tmp_path):
    elsewhere = tmp_path / "elsewhere"
    config = small(f"checkpoint.folder={elsewhere}", train=dict(steps=4, batch_size=40))
    result = train(config, tmp_path / "run")
    assert not (tmp_path / "run" / "checkpoints").exists()
    assert [p.name for p in elsewhere.glob("*/*")] == ["4"]
    (tmp_path / "run" / "result.json").unlink()
    assert train(config, tmp_path / "run")["fingerprint"] == result["fingerprint"]
    assert open_run(tmp_path / "run").step == 4
    train(config, tmp_path / "other")  # another run under the same parent
    assert len(list(elsewhere.glob("*/*"))) == 2


def test_a_checkpoint_of_another_version_is_refused_and_left_in_place(tmp_path):
    checkpoints, wanted = saved(tmp_path)
    for step in (1, 2, 3):
        manifest = tmp_path / "checkpoints" / str(step) / "manifest.json"
        content = json.loads(manifest.read_text())
        del content["sha256"]
        manifest.write_text(hashes.sealed({**content, "format": 1}))
    with pytest.raises(UserError, match="format 1, this bigjax reads 2"):
        checkpoints.restore_newest(wanted)
    assert len(list((tmp_path / "checkpoints").glob("*/manifest.json"))) == 3
    assert "format 1" in checkpoints.listing(False)[0]["state"]
