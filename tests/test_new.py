"""`python -m bigjax new`: every source and task gives a file that resolves and names real parts."""

import json

import numpy as np
import pytest
from PIL import Image

from bigjax.config import resolve as configs
from bigjax.core.errors import UserError
from bigjax.verbs import new
from tests import stand_ins

PAIRS = [(source, task) for source, (_, tasks, _) in new.SOURCES.items() for task in tasks]


def write_data(folder, source, task):
    for i, split in enumerate(("train", "test")):
        if source == "table":
            kinds = {"classification": "abc", "regression": ("0.5", "1.5", "2"), "binary": "010"}
            rows = [f"{n},{label}" for n, label in enumerate(kinds[task])]
            (folder / f"{split}.csv").write_text("\n".join(["x,label", *rows]) + "\n")
        elif source == "folder":
            for name in ("cat", "dog"):
                (folder / split / name).mkdir(parents=True)
                Image.new("RGB", (40, 40)).save(folder / split / name / "1.png")
        elif source == "npz":
            label = np.array([0, 1, 1])
            label = {"multilabel": np.eye(3), "regression": label / 2}.get(task, label)
            np.savez(folder / f"{split}.npz", features=np.zeros((3, 2)), label=label)
        elif source == "labelled_text":
            lines = enumerate(stand_ins.sentences(i, 40))
            kind = {"classification": lambda n: "ab"[n % 2], "regression": lambda n: n / 2}[task]
            rows = [json.dumps({"text": text, "label": kind(n)}) for n, text in lines]
            (folder / f"{split}.jsonl").write_text("\n".join(rows) + "\n")
        elif source == "documents":
            (folder / f"{split}.txt").write_text("\n".join(stand_ins.sentences(i, 40)) + "\n")


@pytest.mark.parametrize(("source", "task"), PAIRS)
def test_what_is_written_resolves(source, task, tmp_path, monkeypatch):
    (tmp_path / "data").mkdir()
    write_data(tmp_path / "data", source, task)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "tfds"))
    names = {"__name__": "mine"}
    exec(new.text("mine", source, task), names)
    found = configs.resolve(names["get_config"]())
    derived = {path for path, origin in found.origins.items() if origin == "data"}
    assert derived and derived <= {"model.outputs", "model.vocab"}


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "give a name"),
        (["a-b"], "give a name"),
        (["mine", "--source=tabel"], "did you mean 'table'"),
        (["mine", "--source=folder", "--task=regression"], "not with folder"),
        (["mine", "--sorce=x"], "did you mean '--source'"),
    ],
)
def test_wrong_words_are_one_line_and_nothing_is_written(arguments, said, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=said):
        new.main(arguments)
    assert not list(tmp_path.iterdir())
