"""TFDS builders of the data sets bigjax carries, prepared without TensorFlow.

Each writes ArrayRecord files in the order of its origin, so that row 17 here is row 17 there. On disk
they are called `bigjax_NAME`, next to whatever the user's own TFDS has prepared.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from bigjax.core.errors import UserError, first_line
from bigjax.run.files import publish


class ArraysBuilder(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """A builder whose splits are arrays in memory; a subclass gives `feature_dict` and `splits`."""

    VERSION = tfds.core.Version("1.0.0")
    about = ""

    def feature_dict(self) -> dict:
        raise NotImplementedError

    def splits(self) -> dict[str, dict[str, np.ndarray]]:
        raise NotImplementedError

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description=self.about,
            features=tfds.features.FeaturesDict(self.feature_dict()),
            disable_shuffling=True,  # keep the order of the origin
        )

    def _split_generators(self, dl_manager) -> dict[str, Iterator]:
        del dl_manager  # nothing is downloaded here
        return {name: _rows(columns) for name, columns in self.splits().items()}

    def _generate_examples(self) -> Iterator:
        raise NotImplementedError("the splits are generators already")


class Digits(ArraysBuilder, skip_registration=True):
    """1,797 handwritten digits, 8x8, grey levels 0..16; the first 1,000 train, the last 797 test."""

    name = "bigjax_digits"
    about = "Optical recognition of handwritten digits (UCI), as carried by scikit-learn."

    def feature_dict(self) -> dict:
        return {
            "image": tfds.features.Tensor(shape=(8, 8, 1), dtype=np.uint8),
            "label": tfds.features.ClassLabel(num_classes=10),
        }

    def splits(self) -> dict[str, dict[str, np.ndarray]]:
        from sklearn.datasets import load_digits

        raw = load_digits()
        columns = {"image": raw.images.astype(np.uint8)[..., None], "label": raw.target}
        return {"train": _take(columns, slice(1000)), "test": _take(columns, slice(1000, None))}


class BreastCancer(ArraysBuilder, skip_registration=True):
    """569 tumours, 30 measurements, malignant (0) or benign (1); stratified, every fifth is test."""

    name = "bigjax_breast_cancer"
    about = "Breast cancer Wisconsin (diagnostic, UCI), as carried by scikit-learn."

    def feature_dict(self) -> dict:
        return {
            "features": tfds.features.Tensor(shape=(30,), dtype=np.float32),
            "label": tfds.features.ClassLabel(names=["malignant", "benign"]),
        }

    def splits(self) -> dict[str, dict[str, np.ndarray]]:
        from sklearn.datasets import load_breast_cancer

        raw = load_breast_cancer()
        columns = {"features": raw.data.astype(np.float32), "label": raw.target}
        return every_fifth(columns, np.argsort(raw.target, kind="stable"))


class Diabetes(ArraysBuilder, skip_registration=True):
    """442 patients, 10 scaled measurements, disease progression after a year; every fifth is test."""

    name = "bigjax_diabetes"
    about = "Diabetes (Efron et al. 2004), as carried by scikit-learn, features scaled."

    def feature_dict(self) -> dict:
        return {
            "features": tfds.features.Tensor(shape=(10,), dtype=np.float32),
            "label": tfds.features.Scalar(np.float32),
        }

    def splits(self) -> dict[str, dict[str, np.ndarray]]:
        from sklearn.datasets import load_diabetes

        raw = load_diabetes(scaled=True)
        columns = {
            "features": raw.data.astype(np.float32),
            "label": raw.target.astype(np.float32),
        }
        return every_fifth(columns, np.arange(len(raw.target)))


EMBEDDED = {"digits": Digits, "breast_cancer": BreastCancer, "diabetes": Diabetes}


def prepare(builder_class: type[ArraysBuilder], data_dir: str | os.PathLike, **kwargs) -> None:
    """Prepares a data set under `data_dir`, whole or not at all, whoever else is doing the same."""
    final = Path(data_dir) / builder_class.name / str(builder_class.VERSION)

    def write(private: Path) -> None:
        builder = builder_class(data_dir=private, file_format="array_record", **kwargs)
        tfds.disable_progress_bar()
        with contextlib.redirect_stdout(io.StringIO()):  # TFDS prints about folders soon renamed
            builder.download_and_prepare()
        for path in Path(builder.data_dir).iterdir():
            path.rename(private / path.name)
        shutil.rmtree(private / builder.name)

    try:
        publish(final, write)
    finally:
        with contextlib.suppress(OSError):  # it holds what was prepared
            final.parent.rmdir()


def opened(folder: Path) -> tfds.core.DatasetBuilder:
    """The builder of a prepared data set, which may be a stranger's.

    Raises:
      UserError: it is damaged, or its features.json names features that are not TFDS's own: TFDS
        would import their module.
    """
    try:
        named = _types(json.loads((folder / "features.json").read_text()))
        strange = sorted(name for name in named if not name.startswith("tensorflow_datasets."))
        if not strange:
            return tfds.builder_from_directory(folder)
    except Exception as error:  # of damaged files TFDS makes many kinds
        why = first_line(error)
        raise UserError(f"{folder}: not a readable TFDS data set ({why})") from None
    raise UserError(
        f"{folder / 'features.json'}: names '{strange[0]}', which would be imported and run; only "
        "TFDS's own features are read"
    )


def _types(node: Any) -> set[str]:
    """The names of classes in a features.json, also in JSON that is text inside it."""
    if isinstance(node, str) and node.lstrip().startswith("{"):
        node = json.loads(node)
    if isinstance(node, list):
        return set().union(*map(_types, node))
    if not isinstance(node, dict):
        return set()
    keys = ("type", "pythonClassName", "python_class_name")
    own = {node[key] for key in keys if isinstance(node.get(key), str)}
    return own.union(*map(_types, node.values()))


def _rows(columns: dict[str, np.ndarray]) -> Iterator[tuple[int, dict]]:
    for row in range(len(columns["label"])):
        yield row, {key: column[row] for key, column in columns.items()}


def _take(columns: dict[str, np.ndarray], rows) -> dict[str, np.ndarray]:
    return {key: column[rows] for key, column in columns.items()}


def every_fifth(columns: dict[str, np.ndarray], order: np.ndarray) -> dict[str, dict]:
    """Splits 80/20: each fifth row in `order` is test; both parts keep the order of the origin."""
    is_test = np.zeros(len(order), bool)
    is_test[order[4::5]] = True
    return {"train": _take(columns, ~is_test), "test": _take(columns, is_test)}
