"""Fashion-MNIST from Debian's package, or from a folder that holds its four IDX files."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from bigjax.core.errors import UserError
from bigjax.data import builders
from bigjax.data.sources import TFDS, default_data_dir
from scripts.fetch.packages import run, workspace

FASHION_MNIST_PACKAGE = "dataset-fashion-mnist"


def fetch(folder: str | None, data_dir: str | None) -> str:
    """Prepares it, and says what is there."""
    fetch_fashion_mnist(folder, data_dir)
    return f"{len(TFDS('fashion_mnist', data_dir=data_dir).open('train'))} to train"


def fetch_fashion_mnist(folder: str | None, data_dir: str | None) -> None:
    """Prepares bigjax_fashion_mnist from `folder`, or from Debian's package; once is enough."""
    root = Path(default_data_dir(data_dir))
    builder = builders.FashionMnist
    if (root / builder.name / str(builder.VERSION)).exists():
        return
    idx_dir = Path(folder).expanduser() if folder else _from_debian(root / "downloads")
    missing = [name for name in builders.FASHION_MNIST_FILES if not (idx_dir / name).exists()]
    if missing:
        raise UserError(f"{idx_dir} lacks {', '.join(missing)}")
    builders.prepare(builder, root, idx_dir=idx_dir)


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
