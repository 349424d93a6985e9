"""MNIST-1D: ten hand-drawn lines from PyPI's package, drawn anew as its paper says.

Greydanus & Kobak 2024, "Scaling down deep learning with MNIST-1D", section 3: a line of 12 points is padded,
stretched, scaled, moved, disturbed and sheared, then read at 40 places. The package's ten lines are read from its
source as numbers; what is drawn of them here is other than what the package draws, from the same distribution.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import tensorflow_datasets as tfds

from bigjax.core.errors import UserError
from bigjax.data.builders import ArraysBuilder, prepare
from bigjax.data.sources import TFDS, default_data_dir
from scripts.fetch.packages import Package, member, obtain, workspace

PACKAGE = Package(
    registry="wheel",
    name="mnist1d",
    version="0.0.2.post1",
    file="mnist1d-0.0.2.post1-py3-none-any.whl",
    sha256="e780fadc12ab6e45994dcb02bbe728b347243e0a5d13790f2a86992500eceb86",
)
CLASSES, POINTS, LENGTH = 10, 12, 40
PADDING = (36, 60)  # zeros behind the line
FARTHEST = 48  # places, of 72, by which a line is moved
SCALE, SHEAR = 0.4, 0.75  # widths of the uniform distributions
SMOOTH_NOISE, NOISE = 0.25, 0.02  # standard deviations, of the first before it is smoothed


class Mnist1D(ArraysBuilder, skip_registration=True):
    """5,000 signals of 40 numbers, ten classes alike often; the first 4,000 train."""

    name = "bigjax_mnist1d"
    about = "MNIST-1D (Greydanus & Kobak 2024), drawn anew with seed 42."

    def __init__(self, *, lines: np.ndarray | None = None, **kwargs):
        self._lines = lines
        super().__init__(**kwargs)

    def feature_dict(self) -> dict:
        return {
            "signal": tfds.features.Tensor(shape=(LENGTH,), dtype=np.float32),
            "label": tfds.features.ClassLabel(num_classes=CLASSES),
        }

    def splits(self) -> dict[str, dict[str, np.ndarray]]:
        if self._lines is None:
            raise UserError("mnist1d is not here yet: run scripts/fetch_data mnist1d")
        numbers = np.random.default_rng(42)
        labels = numbers.permutation(np.repeat(np.arange(CLASSES), 500))
        signals = np.stack([drawn(self._lines[label], numbers) for label in labels])
        signals = ((signals - signals.mean()) / signals.std()).astype(np.float32)
        return {
            name: {"signal": signals[rows], "label": labels[rows]}
            for name, rows in (("train", slice(4000)), ("test", slice(4000, None)))
        }


def fetch(folder: str | None, data_dir: str | None) -> str:
    """Prepares it unless it is there, and says what is."""
    root = Path(default_data_dir(data_dir))
    if not (root / Mnist1D.name / str(Mnist1D.VERSION)).exists():
        with workspace(root) as private:
            lines = lines_of(member(obtain(PACKAGE, private, folder), "mnist1d/data.py").decode())
        prepare(Mnist1D, root, lines=lines)
    return f"{len(TFDS('mnist1d', data_dir=data_dir).open('train'))} to train"


def lines_of(source: str) -> np.ndarray:
    """The ten lines (10, 12) in the package's source: lists of 12 numbers, read and not run.

    They begin at 0, and vary by 1/6 about their mean.

    Raises:
      UserError: there are not ten.
    """
    lines = np.array(list(_lists(ast.parse(source))), np.float64)
    if lines.shape != (CLASSES, POINTS):
        raise UserError(
            f"{PACKAGE.file}: its data.py holds {len(lines)} lines of 12 points, not 10"
        )
    lines = lines / (6 * lines.std(axis=1, keepdims=True))
    return lines - lines[:, :1]


def _lists(tree: ast.AST) -> Iterator[list[float]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.List) and len(node.elts) == POINTS:
            values = [getattr(one, "value", None) for one in node.elts]
            if all(isinstance(value, int | float) for value in values):
                yield values


def drawn(line: np.ndarray, numbers: np.random.Generator) -> np.ndarray:
    """One signal (40,) of a line (12,), not yet standardized."""
    from scipy.ndimage import gaussian_filter

    padding = np.zeros(numbers.integers(PADDING[0], PADDING[1] + 1))
    wide = resampled(np.concatenate([line + 1e-8, padding]), POINTS + PADDING[1])
    wide *= 1 + SCALE * (numbers.random() - 0.5)
    wide = np.roll(wide, numbers.integers(FARTHEST))
    around = gaussian_filter(SMOOTH_NOISE * numbers.standard_normal(len(wide)), 2)
    wide = np.where(wide == 0, around, wide) + NOISE * numbers.standard_normal(len(wide))
    wide -= SHEAR * (numbers.random() - 0.5) * np.linspace(-0.5, 0.5, len(wide))
    return resampled(wide, LENGTH)


def resampled(values: np.ndarray, length: int) -> np.ndarray:
    """Read off at `length` places, with straight lines between the values."""
    return np.interp(np.linspace(0, 1, length), np.linspace(0, 1, len(values)), values)
