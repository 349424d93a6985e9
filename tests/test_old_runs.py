"""Run folders of the code before the rooms (revision acfab75, jax 0.10.2) still resume, evaluate and predict.

One of each family, stopped half-way; `expected.json` has what the old code reached from there.
"""

import json
import tarfile
from pathlib import Path

import jax
import pytest

from bigjax.config.resolve import load
from bigjax.loop.open import open_run
from bigjax.loop.train import train

FOLDER = Path(__file__).parent / "fixtures" / "old_runs"
FAMILIES = sorted(path.name.partition(".")[0] for path in FOLDER.glob("*.tar.gz"))


def test_every_family_is_kept():
    assert len(FAMILIES) == 13


# Always; the others, in a form that these have too, with `scripts/test --slow`, and opened always.
WHOLE = ("distill", "gpt2", "mlp", "resnet")
OPENED = [family for family in FAMILIES if family not in WHOLE]


def old_run(family, tmp_path, monkeypatch):
    """Its folder, on the one device that it was made on."""
    monkeypatch.chdir(FOLDER.parents[2])  # the runs name their data from there
    one = jax.devices()[:1]
    monkeypatch.setattr(jax, "devices", lambda *arguments: one)
    for name in {family, "mlp"} if family == "distill" else {family}:
        with tarfile.open(FOLDER / f"{name}.tar.gz") as archive:
            archive.extractall(tmp_path, filter="data")
    return tmp_path / family


@pytest.mark.parametrize("family", OPENED)
def test_an_old_run_opens_with_every_leaf_that_it_saved(family, tmp_path, monkeypatch):
    run = open_run(old_run(family, tmp_path, monkeypatch))
    assert 0 < run.step < 4
    (manifest,) = (tmp_path / family).glob(f"checkpoints/{run.step}/manifest.json")
    saved = json.loads(manifest.read_text())["arrays"]
    sizes = [shape["shape"] for path, shape in saved.items() if path.startswith("params/")]
    assert sizes
    assert sorted(map(list, map(jax.numpy.shape, jax.tree.leaves(run.variables["params"])))) == (
        sorted(sizes)
    )


@pytest.mark.parametrize(
    "family", [pytest.param(f, marks=[pytest.mark.slow] * (f in OPENED)) for f in FAMILIES]
)
def test_an_old_run_goes_on_to_the_same_end(family, tmp_path, monkeypatch):
    folder = old_run(family, tmp_path, monkeypatch)
    before = open_run(folder)
    assert before.step < 4
    assert before.evaluate("test")["loss"] > 0
    result = train(load(folder / "config.json"), folder)
    expected = json.loads((folder / "expected.json").read_text())
    # Not the same bits: the remedy for jaxlib 0.10.2's reductions (core/compilers.py) rounds otherwise.
    for name, value in expected["metrics"].items():
        assert result["metrics"][name] == pytest.approx(value, rel=1e-2, abs=1e-3)
    after = open_run(folder)
    rows = list(after.answers(after.setup.sources["test"]))
    assert len(rows) == 13
