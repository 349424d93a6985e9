"""Sizes of the model that follow from the data: which, from where, and that nothing is opened in vain."""

import numpy as np
import pytest

from bigjax.build import sizes
from bigjax.config import resolve as configs
from bigjax.core.errors import UserError
from bigjax.verbs import launch
from tests.small import small_config


def write(folder, **columns):
    for split in ("train", "test"):
        np.savez(folder / f"{split}.npz", features=np.zeros((6, 4), np.float32), **columns)


def config(folder, task, **model):
    return small_config(
        data=dict(
            source=dict(type="npz", directory=str(folder)), splits=dict(train="train", test="test")
        ),
        model=dict(type="mlp", widths=(3,), **model),
        task=dict(type=task, input="features"),
    )


@pytest.mark.parametrize(
    ("task", "label", "outputs"),
    [
        ("classification", np.array([0, 1, 2, 4, 0, 1]), 5),
        ("binary", np.array([0, 1, 0, 1, 0, 1]), 1),
        ("multilabel", np.zeros((6, 7), np.int32), 7),
        ("regression", np.zeros((6, 3), np.float32), 3),
        ("regression", np.zeros(6, np.float32), 1),
    ],
)
def test_outputs_follow_from_task_and_train_split(tmp_path, task, label, outputs):
    write(tmp_path, label=label)
    found = configs.resolve(config(tmp_path, task))
    assert found.get("model.outputs") == outputs
    assert found.origins["model.outputs"] == "data"
    assert found.origins["model.widths"] == "experiment"


def test_the_vocabulary_is_the_tokenizer_s_and_the_tags_are_counted(tmp_path, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "data"))
    (tmp_path / "train.jsonl").write_text(
        '{"words": ["a", "b"], "tags": ["x", "y"]}\n{"words": ["b"], "tags": ["z"]}\n'
    )
    raw = small_config(
        data=dict(
            source=dict(type="tagged_text", path=str(tmp_path), tokenizer="wordpiece-40", length=4),
            splits=dict(train="train"),
        ),
        model=dict(type="bert", layers=1, width=8, heads=2, head="tokens"),
        task=dict(type="token_tagging"),
        evaluate=dict(splits=()),
    )
    found = configs.resolve(raw)
    source = sizes.open_splits(found.section("data"), ["train"])["train"]
    assert found.get("model.vocab") == source.vocab_size
    assert found.get("model.outputs") == 3


@pytest.mark.parametrize(
    ("shape", "preprocess", "side"),
    [
        ((12, 12, 3), (), 12),
        ((12, 20, 3), (dict(type="resize", size=24), dict(type="center_crop", size=16)), 16),
        ((12, 20, 3), (), None),
    ],
)
def test_the_side_of_a_vit_s_images_is_what_preprocessing_leaves(tmp_path, shape, preprocess, side):
    images = np.zeros((6, *shape), np.uint8)
    np.savez(tmp_path / "train.npz", image=images, label=np.arange(6))
    raw = config(tmp_path, "classification")
    raw.data.preprocess = preprocess
    raw.task.input = "image"
    raw.model = dict(type="vit", patch=4, layers=1, width=8, heads=2)
    if side is None:
        with pytest.raises(UserError, match=r"config.model.image: .* 12x20, and squares are"):
            configs.resolve(raw)
        return
    found = configs.resolve(raw)
    assert (found.get("model.image"), found.origins["model.image"]) == (side, "data")
    assert found.get("model.outputs") == 6


def test_nothing_is_opened_where_nothing_is_missing(tmp_path):
    found = configs.resolve(config(tmp_path / "absent", "classification", outputs=3))
    assert found.origins["model.outputs"] == "experiment"
    with pytest.raises(UserError, match="absent"):
        configs.resolve(config(tmp_path / "absent", "classification"))


def test_what_the_data_does_not_say_is_still_missing(tmp_path):
    write(tmp_path, label=np.zeros(6, np.float32))
    with pytest.raises(UserError, match=r"'label' holds numbers that are no classes"):
        configs.resolve(config(tmp_path, "classification"))


def test_the_verb_config_says_where_a_size_came_from(capsys):
    raw = small_config(model=dict(type="mlp", widths=(8,)))
    assert launch.execute("experiments.small", lambda: raw, ["config"]) == 0
    lines = {line.split()[0]: line.split()[1:] for line in capsys.readouterr().out.splitlines()}
    assert lines["model.outputs"] == ["10", "data"]
    given = '--config.model={"type": "mlp", "widths": (8,)}'  # says no outputs
    assert launch.execute("experiments.small", lambda: raw, ["config", given]) == 0
    lines = {line.split()[0]: line.split()[1:] for line in capsys.readouterr().out.splitlines()}
    assert lines["model.outputs"] == ["10", "data"] and lines["model.dropout"] == ["0.0", "default"]
    assert lines["model.widths"][-1] == "line"
