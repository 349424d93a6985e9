"""The Python API does what the command line does, and the README's own lines run as written."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import flax.linen as nn
import jax
import numpy as np
import pandas
import pytest

import bigjax
from bigjax.verbs import launch
from tests.small import small_config

ROOT = Path(__file__).parent.parent


class Net(nn.Module):
    """A plain Linen module: no `train`, a field of its own."""

    width: int = 4

    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.Dense(self.width)(x.reshape(len(x), -1)))
        return nn.Dense(10)(x)


def short(**changes):
    return small_config(**{"train": dict(steps=4, batch_size=40), **changes})


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    label = dict(name="first", tags=["a"])
    return bigjax.train(short(), tmp_path_factory.mktemp("notebook") / "run", label=label)


@pytest.fixture(scope="module")
def pictures():
    from sklearn.datasets import load_digits

    return load_digits().images[:9].reshape(-1, 8, 8, 1).astype(np.uint8)


def test_train_gives_the_run_opened_and_a_dict_is_as_good(run, tmp_path):
    assert run.step == 4
    assert json.loads((run.workdir / "manifest.json").read_text())["name"] == "first"
    plain = json.loads(short().to_json())
    again = bigjax.train(plain, str(tmp_path / "run"), overrides=["log.every=2"])
    for ours, theirs in zip(*map(jax.tree.leaves, (run.variables, again.variables)), strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_a_run_at_the_end_of_a_cell_is_one_line(run):
    assert repr(run) == f"Opened({str(run.workdir)!r}, step 4)"


def test_metrics_are_a_table_and_evaluate_gives_the_logged_ones(run):
    table = run.metrics()
    assert isinstance(table, pandas.DataFrame) and list(table.index) == [1, 2, 3, 4]
    found = run.evaluate("test")
    assert found["accuracy"] == pytest.approx(table["eval/test/accuracy"].dropna().iloc[-1])
    with pytest.raises(bigjax.UserError, match="did you mean 'test'"):
        run.evaluate("tst")


def test_predict_of_arrays_and_of_a_path_is_what_the_verb_writes(run, pictures, tmp_path):
    np.savez(tmp_path / "in.npz", image=pictures)
    arguments = ["predict", f"--workdir={run.workdir}", f"--input={tmp_path / 'in.npz'}"]
    out = tmp_path / "out.jsonl"
    assert launch.execute("experiments.small", short, [*arguments, f"--output={out}"]) == 0
    expected = [json.loads(line) for line in out.read_text().splitlines()]
    assert run.predict(tmp_path / "in.npz") == expected
    assert run.predict({"image": pictures}) == expected
    with pytest.raises(bigjax.UserError, match="reads arrays by name"):
        run.predict(["a text"])


def test_texts_are_predicted_as_the_lines_of_a_file_are(tmp_path, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "tfds"))
    lines = [f"{word} film number {i}" for i in range(20) for word in ("good", "bad")]
    rows = [json.dumps({"text": line, "label": line.split()[0]}) for line in lines]
    (tmp_path / "train.jsonl").write_text("\n".join(rows) + "\n")
    (tmp_path / "in.txt").write_text("\n".join(lines[:3]) + "\n")
    source = dict(type="labelled_text", path=str(tmp_path), tokenizer="wordpiece-80", length=8)
    config = short(
        data=dict(source=source, splits=dict(train="train")),
        model=dict(type="bert", head="sequence", layers=1, width=8, heads=2, context=8),
        task=dict(type="classification", input=("tokens", "segments", "types")),
        evaluate=dict(splits=()),
    )
    run = bigjax.train(config, tmp_path / "run")
    found = run.predict(lines[:3])
    assert found == [dict(line, row=i) for i, line in enumerate(run.predict(tmp_path / "in.txt"))]
    assert {row["name"] for row in found} <= {"good", "bad"}


def test_the_next_batch_follows_the_last_step(run):
    batch = run.next_batch()
    assert (
        bigjax.open_run(run.workdir, overrides=["evaluate.batch_size=8"]).setup.eval_batch_size == 8
    )
    assert batch["image"].shape == (40, 8, 8, 1)
    seen = np.asarray(bigjax.open_run(run.workdir).next_batch()["sample"])
    np.testing.assert_array_equal(batch["sample"], seen)


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda folder: bigjax.train(dict(short(), trian={}), folder), "config.trian"),
        (lambda folder: bigjax.train(None, folder), "a ConfigDict or a dict is needed"),
        (lambda folder: bigjax.train(short(), folder, callbacks=print), "give a list of functions"),
        (lambda folder: bigjax.train(dict(short(), model=Net), folder), r"instance, Net\(...\)"),
        (lambda folder: bigjax.train(short(), __file__), "is a file, not a folder"),
        (lambda folder: bigjax.open_run(folder), "holds no run"),
        (lambda folder: bigjax.sweep(short, folder, {"optimizer.rate": [1]}), "optimizer.rate"),
        (lambda folder: bigjax.sweep(short, folder, sedes=3), "did you mean 'seeds'"),
        (lambda folder: bigjax.sweep(short, folder, seeds=0), "seeds: 0"),
        (lambda folder: bigjax.sweep(short, folder, workers=0), "at least 1"),
        (
            lambda folder: bigjax.sweep(short, folder, workers="2"),
            "sweep.workers: '2' is not a whole number or None",
        ),
        (
            lambda folder: bigjax.sweep(short, folder, prune="soon"),
            "sweep.prune: 'soon' is not one of 'median', 'halving' or None",
        ),
    ],
)
def test_wrong_input_is_a_user_error_and_leaves_nothing(call, said, tmp_path):
    with pytest.raises(bigjax.UserError, match=said):
        call(tmp_path / "run")
    assert not list(tmp_path.iterdir())


def test_a_sweep_of_a_class_that_no_other_process_can_import_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(Net, "__module__", "__main__")
    with pytest.raises(bigjax.UserError, match="import Net from a file"):
        bigjax.sweep(dict(short().items(), model=Net()), tmp_path / "sweep")


@pytest.mark.parametrize("by_name", [True, False])
def test_a_linen_model_without_train_by_name_and_as_it_is(by_name, tmp_path, pictures):
    model = dict(type=f"{__name__}:Net", width=5) if by_name else Net(width=5)
    config = dict(short().items(), model=model)
    run = bigjax.train(config, tmp_path / "run")
    assert run.variables["params"]["Dense_0"]["kernel"].shape == (64, 5)
    assert len(run.predict({"image": pictures})) == len(pictures)
    with pytest.raises(bigjax.UserError, match="--trust"):
        bigjax.open_run(tmp_path / "run")
    assert bigjax.open_run(tmp_path / "run", trust=True).step == 4


def test_the_readme_s_python_lines_run_as_written(tmp_path, monkeypatch, pictures):
    section = (ROOT / "README.md").read_text().partition("## Python\n")[2]
    code = re.search(r"```python\n(.*?)```", section, re.DOTALL)[1]
    monkeypatch.chdir(tmp_path)
    names = dict(get_config=short, pictures=pictures, x=pictures.astype(np.float32))
    exec(code, names)
    assert names["logits"].shape == (9, 10)
    table = names["table"]
    assert list(table["status"]) == ["done"] * 4
    assert list(zip(table["optimizer.learning_rate"], table["seed"], strict=True)) == [
        (1e-3, 0), (1e-3, 1), (1e-2, 0), (1e-2, 1),
    ]  # fmt: skip


def python(*arguments, folder):
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(
        [sys.executable, *arguments], cwd=folder, env=environment, capture_output=True, text=True
    )


@pytest.mark.parametrize(
    ("words", "line"),
    [
        ("bigjax.doctro", "nothing to run in 'bigjax.doctro' (did you mean 'bigjax.doctor'?)"),
        ("bigjax.verbs.launhc", "nothing to run in 'bigjax.verbs.launhc'"),
        ("bigjax nwe", "unknown command 'nwe' (did you mean 'python -m bigjax new'?)"),
        (
            "bigjax trian",
            "unknown command 'trian' (did you mean 'python -m experiments.NAME train'?)",
        ),
        ("experiments rusn", "no experiment 'rusn' (did you mean runs?)"),
        ("experiments.digits_rn", "no experiment 'digits_rn' (did you mean digits_rnn"),
    ],
)
def test_a_misspelt_module_or_command_is_one_line_and_code_2(words, line, tmp_path):
    done = python("-m", *words.split(), folder=tmp_path)
    assert done.returncode == 2 and done.stderr.startswith(f"error: {line}"), done.stderr
    assert done.stderr.count("\n") == 1


def test_a_package_that_imports_this_one_runs_its_modules(tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "__init__.py").write_text("import bigjax")
    (tmp_path / "mine" / "tool.py").write_text("print('ran')")
    assert python("-m", "mine.tool", folder=tmp_path).stdout == "ran\n"


def test_the_package_says_what_there_is_and_writes_an_experiment_that_trains(tmp_path):
    help = python("-m", "bigjax", "--help", folder=tmp_path)
    assert help.returncode == 0 and "python -m bigjax new NAME" in help.stdout
    assert python("-m", "bigjax", "new", "mine", folder=tmp_path).returncode == 0
    again = python("-m", "bigjax", "new", "mine", folder=tmp_path)
    assert again.returncode == 2 and again.stderr == "error: mine.py: is there already\n"
    draw = np.random.default_rng(0)
    (tmp_path / "data").mkdir()
    for split in ("train", "test"):
        rows = [f"{x:.3f},{'up' if x > 0 else 'down'}" for x in draw.normal(size=64)]
        (tmp_path / "data" / f"{split}.csv").write_text("\n".join(["x,label", *rows]) + "\n")
    done = python("mine.py", "--config.train.epochs=1", folder=tmp_path)
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "runs/mine/config.json").read_text())["model"]["outputs"] == 2
