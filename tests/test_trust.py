"""A stranger's run folder never makes the program import what it names."""

import json
import shutil
import sys

import pytest

from bigjax.config import resolve as configs
from bigjax.core.errors import UserError
from bigjax.data.sources import TFDS
from bigjax.loop.open import open_run
from bigjax.loop.train import train
from bigjax.run.checkpoint import Checkpoints
from bigjax.sweep.__main__ import main as sweep_main
from bigjax.verbs import launch
from tests.small import small, small_config

EVIL = """
from pathlib import Path
Path({mark!r}).touch()
def MLP(**keywords): raise SystemExit
"""


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run") / "run"
    train(small("train.steps=4"), folder)
    return folder


@pytest.fixture
def stranger(run, tmp_path, monkeypatch):
    """A copy of the run whose config names a module; (folder, a file that tells of its import)."""
    shutil.copytree(run, tmp_path / "run")
    (tmp_path / "code").mkdir()
    mark = tmp_path / "executed"
    (tmp_path / "code" / "evil_module.py").write_text(EVIL.format(mark=str(mark)))
    monkeypatch.syspath_prepend(str(tmp_path / "code"))
    path = tmp_path / "run" / "config.json"
    values = json.loads(path.read_text())
    values["model"] = {"type": "evil_module:MLP"}
    path.write_text(json.dumps(values))
    yield tmp_path / "run", mark
    sys.modules.pop("evil_module", None)


def execute(*arguments, config=None):
    return launch.execute("experiments.x", lambda: config or small_config(), list(arguments))


VERBS = {
    "train": (),
    "evaluate": (),
    "predict": ("--input=rows.npz",),
    "export": (),
    "replay": ("--from=0",),
}


@pytest.mark.parametrize("verb", VERBS)
def test_no_verb_imports_what_a_folder_names(verb, stranger, capsys):
    folder, mark = stranger
    assert execute(verb, f"--workdir={folder}", *VERBS[verb]) == 2
    said = capsys.readouterr().err
    assert "names 'evil_module:MLP'" in said and "--trust" in said
    assert not mark.exists()


def test_checkpoints_are_listed_and_nothing_is_constructed(stranger, capsys):
    folder, mark = stranger
    assert execute("checkpoints", f"--workdir={folder}", "--verify") == 0
    assert "verified" in capsys.readouterr().out and not mark.exists()


def test_weights_are_taken_and_nothing_is_constructed(stranger, tmp_path):
    folder, mark = stranger
    init = dict(source=str(folder), rules=((".*", r"\g<0>"),))
    train(small("train.steps=1", init=init), tmp_path / "new")
    assert not mark.exists()


def test_a_teacher_is_not_constructed(stranger, tmp_path):
    folder, mark = stranger
    config = small("train.steps=1", method=dict(type="distill", teacher=str(folder)))
    with pytest.raises(UserError, match="evil_module:MLP"):
        train(config, tmp_path / "new")
    assert not mark.exists()


def test_a_run_is_not_reproduced(stranger, tmp_path, capsys):
    folder, mark = stranger
    arguments = ["reproduce", str(folder), f"--workdir={tmp_path / 'again'}"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["sweep", *arguments])
        assert sweep_main(arguments) == 2
    assert "evil_module:MLP" in capsys.readouterr().err and not mark.exists()


def test_trust_and_the_users_own_words_open_the_door(stranger):
    folder, mark = stranger
    with pytest.raises(UserError, match="evil_module"):
        open_run(folder)
    with pytest.raises(SystemExit):  # the module's own doing
        open_run(folder, trust=True)
    assert mark.exists()
    mark.unlink()
    sys.modules.pop("evil_module")
    with pytest.raises(SystemExit):
        open_run(folder, ["model.type=evil_module:MLP"])
    assert mark.exists()


def test_every_depth_of_a_config_is_looked_at():
    values = {"a": ({"b": {"type": "x:Y"}},), "type": "z:W", "model": {"type": "mlp"}}
    assert configs.targets(values) == {"x:Y", "z:W"}


@pytest.mark.parametrize("depth", ["features", "text"])
def test_a_data_set_whose_features_name_code_imports_nothing(stranger, tmp_path, depth):
    _, mark = stranger
    prepared = tmp_path / "data" / "theirs" / "1.0.0"
    shutil.copytree(TFDS("digits").builder().data_path, prepared)
    evil = {"type": "evil_module.Feature", "content": {}}
    if depth == "text":
        evil = {"jsonFeature": {"json": json.dumps({"\u0074ype": evil})}}
    (prepared / "features.json").write_text(json.dumps({**evil, "content": {}}))
    with pytest.raises(UserError, match=r"evil_module\.Feature"):
        TFDS("theirs", data_dir=str(tmp_path / "data")).open("train")
    assert not mark.exists()
    (prepared / "features.json").write_text("{")
    with pytest.raises(UserError, match="not a readable TFDS data set"):
        TFDS("theirs", data_dir=str(tmp_path / "data")).open("train")


@pytest.mark.parametrize(
    "pointer",
    [
        "../../somewhere",
        "/tmp/photographs",
        "",
        "0123456789abcdef/..",
        "\udcff",
        "\0/0123456789abcdef",
    ],
)
def test_a_pointer_that_is_not_this_runs_is_refused(run, tmp_path, pointer):
    (tmp_path / "checkpoints_at.txt").write_bytes(pointer.encode(errors="surrogateescape"))
    with pytest.raises(UserError, match="not where this run keeps checkpoints"):
        Checkpoints(tmp_path)
