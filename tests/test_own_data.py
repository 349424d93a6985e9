"""Whole runs on files of a user's own: train, evaluate, predict on the same file and on another."""

import json

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from small import small_config

from bigjax.build.assemble import assemble
from bigjax.config import resolve as configs
from bigjax.core.errors import UserError
from bigjax.loop.open import open_run
from bigjax.loop.train import train
from bigjax.verbs import launch


def run(config, folder, *overrides):
    return train(configs.resolve(config, overrides), folder / "run")


def predict(folder, path):
    out = folder / "out.jsonl"
    arguments = ["predict", f"--workdir={folder / 'run'}", f"--input={path}", f"--output={out}"]
    assert launch.execute("experiments.mine", lambda: None, arguments) == 0
    return [json.loads(line) for line in out.read_text().splitlines()]


def write_table(folder, split, rows, names=("pay", "town", "seen", "label")):
    draw = np.random.default_rng(len(split))
    lines = [",".join(names)]
    for _ in range(rows):
        rich = draw.random() < 0.5
        cells = dict(
            pay="" if draw.random() < 0.1 else f"{draw.normal(5 if rich else 1):.2f}",
            town=draw.choice(["Rome", "Oslo"] if rich else ["Lima", "Oslo"]),
            seen=f"2024-01-{draw.integers(1, 29):02}",
            label="rich" if rich else "poor",
        )
        lines.append(",".join(cells[name] for name in names))
    (folder / f"{split}.csv").write_text("\n".join(lines) + "\n")


def table_config(folder, **source):
    return small_config(
        train=dict(epochs=20, batch_size=40),
        data=dict(
            source=dict(type="table", path=str(folder), **source),
            splits=dict(train="train", test="test"),
            preprocess=(dict(type="standardize"),),
        ),
        model=dict(type="mlp", widths=(8,), outputs=2),
        task=dict(type="classification", input="features"),
        evaluate=dict(splits=("test",), every="end", batch_size=40),
        checkpoint=dict(every="end"),
        log=dict(every=100, tensorboard=False),
    )


def test_a_table_with_real_columns_is_learned_and_predicted(tmp_path):
    write_table(tmp_path, "train", 400)
    write_table(tmp_path, "test", 80)
    result = run(table_config(tmp_path), tmp_path)
    assert result["metrics"]["eval/test/accuracy"] > 0.9
    assert len(open_run(tmp_path / "run").setup.sources["train"].feature_names) == 2 + 4 + 1
    rows = predict(tmp_path, tmp_path / "train.csv")  # its own train file, label and all
    truth = [line.split(",")[-1] for line in (tmp_path / "train.csv").read_text().splitlines()[1:]]
    assert np.mean([row["name"] == label for row, label in zip(rows, truth, strict=True)]) > 0.9
    write_table(tmp_path, "other", 40, ("seen", "town", "pay"))  # another order, no label
    assert [row["row"] for row in predict(tmp_path, tmp_path / "other.csv")] == list(range(40))
    opened = open_run(tmp_path / "run")
    frame = pd.read_csv(tmp_path / "other.csv")  # rows in memory, as a notebook has them
    for held in (frame, frame.to_dict("records"), frame.to_dict("list")):
        assert opened.predict(held) == opened.predict(tmp_path / "other.csv")
    with pytest.raises(UserError, match=r"predict: lacks town; the model reads pay, town, seen"):
        opened.predict(frame.drop(columns="town"))
    # Another train split under the run: what is fitted to it would read predictions wrongly.
    text = (tmp_path / "train.csv").read_text()
    (tmp_path / "train.csv").write_text(text.replace("Rome", "Bern"))
    with pytest.raises(UserError, match="train split is not the run's"):
        open_run(tmp_path / "run")


@pytest.mark.parametrize(
    ("labels", "task", "said"),
    [
        (
            "$1.50 $2.00",
            "regression",
            r"'label' is words \(\$1.50, \$2.00\), and numbers are needed",
        ),
        ("-1 1", "classification", r"'label' holds numbers that are no classes .*'category'"),
        ("0.0 1.0", "classification", r"'label' holds numbers that are no classes"),
    ],
)
def test_labels_that_do_not_go_with_the_task_are_told(tmp_path, labels, task, said):
    rows = "".join(f"{i},{label}\n" for i, label in enumerate(labels.split()))
    for split in ("train", "test"):
        (tmp_path / f"{split}.csv").write_text("x,label\n" + rows)
    config = table_config(tmp_path)
    config.task.type, config.model = task, dict(type="mlp", widths=(4,))
    with pytest.raises(UserError, match=said):
        run(config, tmp_path)
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


@pytest.mark.parametrize("order", ["sorted", "shuffled"])
def test_a_part_of_a_file_in_order_of_its_labels_is_told(tmp_path, order, caplog):
    labels = np.repeat(["a", "b", "c"], 50)
    if order == "shuffled":
        labels = np.random.default_rng(0).permutation(labels)
    rows = "".join(f"{i},{label}\n" for i, label in enumerate(labels))
    (tmp_path / "train.csv").write_text("x,label\n" + rows)
    config = table_config(tmp_path)
    config.data.splits = dict(train="train[:80%]", test="train[80%:]")
    config.model.outputs = 3
    caplog.set_level("WARNING", "bigjax")
    assemble(configs.resolve(config), tmp_path / "run")
    told = "split 'test' (train[80%:]) holds no example of class a, which is 42 % of train"
    assert (told in caplog.text) == (order == "sorted")


@pytest.mark.parametrize("cache_mb", [0, 1024])
def test_a_folder_of_pictures_is_learned_and_predicted(tmp_path, cache_mb):
    draw = np.random.default_rng(0)
    for split, count in (("train", 80), ("test", 20)):
        for i in range(count):
            name, grey = (("dark", 60), ("light", 190))[i % 2]
            path = tmp_path / "set" / split / name / f"{i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            pixels = draw.normal(grey, 20, (9, 7 + i % 3)).clip(0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(path)
    config = small_config(
        train=dict(steps=60, batch_size=40),
        data=dict(
            source=dict(
                type="folder", directory=str(tmp_path / "set"), size=(6, 6), cache_mb=cache_mb
            ),
            splits=dict(train="train", test="test"),
            preprocess=(dict(type="normalize", mean=0.5, std=0.25, scale=255.0),),
        ),
        model=dict(type="mlp", widths=(8,), outputs=2),
        evaluate=dict(splits=("test",), every="end", batch_size=40),
        checkpoint=dict(every="end"),
        log=dict(every=100, tensorboard=False),
    )
    assert run(config, tmp_path)["metrics"]["eval/test/accuracy"] == 1.0
    rows = predict(tmp_path, tmp_path / "set" / "test")
    assert len(rows) == 20 and all(row["row"].split("/")[0] == row["name"] for row in rows)


def test_classes_beyond_the_outputs_are_refused_before_training(tmp_path):
    labels = np.array([0, 1, 2] * 15 + [3] * 45)
    for split in ("train", "test"):
        np.savez(tmp_path / f"{split}.npz", features=np.zeros((90, 2)), label=labels)
    config = table_config(tmp_path)
    config.data.source = dict(type="npz", directory=str(tmp_path))
    config.model.outputs = 3
    with pytest.raises(UserError, match=r"'train', example 45: 'label' is 3, .*model.outputs"):
        run(config, tmp_path)
    assert not (tmp_path / "run").exists()
