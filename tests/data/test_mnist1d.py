"""MNIST-1D: lines read from the package's source as numbers, and drawn as the paper says."""

import zipfile

import numpy as np
import pytest

from bigjax.core.errors import UserError
from bigjax.data import builders
from bigjax.data.sources import TFDS
from scripts.fetch import mnist1d

LINES = np.random.default_rng(0).uniform(2, 7, (10, 12)).round(2)


def source(lines):
    body = "\n".join(f"d{i} = np.asarray({line.tolist()})" for i, line in enumerate(lines))
    return f"raise SystemExit('this is not to be run')\n{body}\nother = [1, 2, 3]\n"


def test_the_lines_are_read_and_nothing_is_run():
    lines = mnist1d.lines_of(source(LINES))
    np.testing.assert_allclose(lines.std(axis=1), 1 / 6)
    assert (lines[:, 0] == 0).all()
    for line, found in zip(LINES, lines, strict=True):
        np.testing.assert_allclose(np.corrcoef(line, found)[0, 1], 1)
    with pytest.raises(UserError, match="9 lines of 12 points, not 10"):
        mnist1d.lines_of(source(LINES[:9]))


def test_a_line_without_noise_is_stretched_and_moved(monkeypatch):
    for name in ("SCALE", "SHEAR", "SMOOTH_NOISE", "NOISE"):
        monkeypatch.setattr(mnist1d, name, 0.0)
    line = np.full(12, 1.0)
    for seed in range(20):
        signal = mnist1d.drawn(line, np.random.default_rng(seed))
        share = 12 * 40 / (12 + np.random.default_rng(seed).integers(36, 61))  # of 40 places
        assert abs(signal.sum() - share) < 1.6


def test_the_set_is_prepared_from_the_wheel(tmp_path, monkeypatch):
    wheel = tmp_path / mnist1d.PACKAGE.file
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("mnist1d/data.py", source(LINES))
    with pytest.raises(UserError, match="its sha256 is"):
        mnist1d.fetch(str(tmp_path), str(tmp_path / "data"))
    lines = mnist1d.lines_of(source(LINES))
    builders.prepare(mnist1d.Mnist1D, tmp_path / "data", lines=lines)
    said = mnist1d.fetch(str(tmp_path), str(tmp_path / "data"))
    assert said == "4000 to train"
    train, test = (TFDS("mnist1d", str(tmp_path / "data")).open(s) for s in ("train", "test"))
    rows = train.read(np.arange(4000))
    assert len(test) == 1000
    assert rows["signal"].shape == (4000, 40)
    assert (
        np.bincount(np.r_[rows["label"], test.read(np.arange(1000))["label"]]).tolist()
        == [500] * 10
    )
    assert abs(rows["signal"].mean()) < 0.02
    assert abs(rows["signal"].std() - 1) < 0.02
