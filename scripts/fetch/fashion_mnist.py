"""Fashion-MNIST from Debian's package, or from a folder that holds its four IDX files."""

from __future__ import annotations

import gzip
import hashlib
import os
import shutil
import zlib
from pathlib import Path

import numpy as np
import tensorflow_datasets as tfds

from bigjax.core.errors import UserError
from bigjax.data import builders
from bigjax.data.sources import TFDS, default_data_dir
from scripts.fetch.packages import run, workspace

FASHION_MNIST_PACKAGE = "dataset-fashion-mnist"
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


class FashionMnist(builders.ArraysBuilder, skip_registration=True):
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


def fetch(folder: str | None, data_dir: str | None) -> str:
    """Prepares it, and says what is there."""
    fetch_fashion_mnist(folder, data_dir)
    return f"{len(TFDS('fashion_mnist', data_dir=data_dir).open('train'))} to train"


def fetch_fashion_mnist(folder: str | None, data_dir: str | None) -> None:
    """Prepares bigjax_fashion_mnist from `folder`, or from Debian's package; once is enough."""
    root = Path(default_data_dir(data_dir))
    builder = FashionMnist
    if (root / builder.name / str(builder.VERSION)).exists():
        return
    idx_dir = Path(folder).expanduser() if folder else _from_debian(root / "downloads")
    missing = [name for name in FASHION_MNIST_FILES if not (idx_dir / name).exists()]
    if missing:
        raise UserError(f"{idx_dir} lacks {', '.join(missing)}")
    builders.prepare(builder, root, idx_dir=idx_dir)


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


def _from_debian(downloads: Path) -> Path:
    """Returns the folder of the IDX files, downloaded into `downloads` unless they are there."""
    final = downloads / FASHION_MNIST_PACKAGE
    if final.exists():
        return final
    if not (shutil.which("apt-get") and shutil.which("dpkg")):
        raise UserError("this is no Debian or Ubuntu: name the folder of the IDX files with --from")
    with workspace(downloads) as private:
        run(["apt-get", "download", FASHION_MNIST_PACKAGE], private)
        package = next(private.glob("*.deb"))
        run(["dpkg", "-x", str(package), "unpacked"], private)
        found = next(private.glob("unpacked/**/train-images-idx3-ubyte.gz"), None)
        if found is None:
            raise UserError(f"{package.name} holds no IDX files")
        try:
            os.rename(found.parent, final)
        except OSError:
            if not final.exists():  # unless another process was first
                raise
    return final
