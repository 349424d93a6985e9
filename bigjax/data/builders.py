"""TFDS builders of the data sets bigjax carries or fetches, prepared without TensorFlow.

Each writes ArrayRecord files in the order of its origin, so that row 17 here is row 17 there. On disk
they are called `bigjax_NAME`, next to whatever the user's own TFDS has prepared.
"""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import io
import os
import shutil
import tempfile
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import tensorflow_datasets as tfds

from bigjax.core.errors import UserError

# sha256 of the four files once unpacked: Debian packs the same bytes with other gzip headers than
# the authors do, and either copy is good.
FASHION_MNIST_FILES = {
    "train-images-idx3-ubyte.gz": "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
    "train-labels-idx1-ubyte.gz": "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
    "t10k-images-idx3-ubyte.gz": "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
    "t10k-labels-idx1-ubyte.gz": "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
}
FASHION_MNIST_CLASSES = (
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)


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


class FashionMnist(ArraysBuilder, skip_registration=True):
    """70,000 grey 28x28 pictures of clothes in ten classes (Xiao et al. 2017), from the IDX files."""

    name = "bigjax_fashion_mnist"
    about = "Fashion-MNIST (Xiao, Rasul & Vollgraf 2017), MIT licence."

    def __init__(self, *, idx_dir: str | os.PathLike | None = None, **kwargs):
        self._idx_dir = idx_dir
        super().__init__(**kwargs)

    def feature_dict(self) -> dict:
        return {
            "image": tfds.features.Tensor(shape=(28, 28, 1), dtype=np.uint8),
            "label": tfds.features.ClassLabel(names=list(FASHION_MNIST_CLASSES)),
        }

    def splits(self) -> dict[str, dict[str, np.ndarray]]:
        if self._idx_dir is None:
            raise UserError("fashion_mnist is not here yet: run scripts/fetch_data fashion_mnist")
        folder = Path(self._idx_dir)
        return {
            split: {
                "image": read_idx(folder / f"{prefix}-images-idx3-ubyte.gz")[..., None],
                "label": read_idx(folder / f"{prefix}-labels-idx1-ubyte.gz").astype(np.int64),
            }
            for split, prefix in (("train", "train"), ("test", "t10k"))
        }


EMBEDDED = {"digits": Digits, "breast_cancer": BreastCancer, "diabetes": Diabetes}
FETCHED = ("fashion_mnist", "emoji")  # by `scripts/fetch_data`


def prepare(builder_class: type[ArraysBuilder], data_dir: str | os.PathLike, **kwargs) -> None:
    """Prepares a data set under `data_dir`, whole or not at all, whoever else is doing the same.

    Each process writes a private folder and renames it; the first to finish wins and the others
    drop their identical copy. Renaming needs no lock and holds on network file systems too.
    """
    data_dir = Path(data_dir)
    try:
        data_dir.mkdir(parents=True, exist_ok=True)
        private = tempfile.mkdtemp(prefix=f".{builder_class.name}.", dir=data_dir)
    except OSError as error:
        raise UserError(f"cannot write the data dir {data_dir}: {error.strerror}") from None
    try:
        builder = builder_class(data_dir=private, file_format="array_record", **kwargs)
        tfds.disable_progress_bar()
        with contextlib.redirect_stdout(io.StringIO()):  # TFDS prints about folders soon renamed
            builder.download_and_prepare()
        final = data_dir / builder.name / str(builder.version)
        final.parent.mkdir(exist_ok=True)
        try:
            os.rename(builder.data_dir, final)
        except OSError:
            if not (final / "dataset_info.json").exists():
                raise
    finally:
        shutil.rmtree(private, ignore_errors=True)


def read_idx(path: Path) -> np.ndarray:
    """Reads one gzipped IDX file of Fashion-MNIST as uint8, refusing any other content."""
    try:
        raw = gzip.decompress(path.read_bytes())
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"cannot read {path}: {error}") from None
    if hashlib.sha256(raw).hexdigest() != FASHION_MNIST_FILES[path.name]:
        raise UserError(f"{path} is not the Fashion-MNIST file of that name (its sha256 differs)")
    # IDX: two zero bytes, type (8: uint8), rank, then each size as a big-endian int32.
    rank = raw[3]
    shape = np.frombuffer(raw, ">i4", rank, offset=4)
    return np.frombuffer(raw, np.uint8, offset=4 + 4 * rank).reshape(shape)


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
