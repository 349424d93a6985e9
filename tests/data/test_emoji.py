"""Emoji: pasted on white, split by category, from the package as npm gives it."""

import io
import json
import tarfile

import numpy as np
import pytest
from PIL import Image

from bigjax.core.errors import UserError
from bigjax.data import builders
from bigjax.data.sources import TFDS
from scripts.fetch.emoji import CATEGORIES, Emoji, on_white, read_package


def png(rgba, side=64):
    buffer = io.BytesIO()
    Image.new("RGBA", (side, side), rgba).save(buffer, "png")
    return buffer.getvalue()


def package(folder, entries, pictures):
    path = folder / "package.tgz"
    files = {f"package/img/google/64/{name}": content for name, content in pictures.items()}
    files["package/emoji.json"] = json.dumps(entries).encode()
    with tarfile.open(path, "w:gz") as archive:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path


def test_transparency_becomes_white():
    assert (on_white(png((9, 8, 7, 0))) == 255).all()
    assert (on_white(png((9, 8, 7, 255))) == [9, 8, 7]).all()
    half = on_white(png((0, 100, 200, 51)))  # a fifth opaque
    np.testing.assert_allclose(half[0, 0], [204, 224, 244], atol=1)
    with pytest.raises(UserError, match="32x32 pixels"):
        on_white(png((0, 0, 0, 0), side=32))


def test_every_fifth_of_each_category_is_test(tmp_path):
    entries = [
        dict(image=f"{i}.png", category=CATEGORIES[i % 2], sort_order=100 - i) for i in range(40)
    ]
    pictures = {f"{i}.png": png((i, 2 * i, 3 * i, 255)) for i in range(40)}
    columns, order = read_package(package(tmp_path, entries, pictures))
    builders.prepare(Emoji, tmp_path / "data", columns=columns, order=order)
    target = TFDS("emoji", str(tmp_path / "data"))
    train, test = (target.open(split) for split in ("train", "test"))
    assert (len(train), len(test), train.class_names) == (32, 8, CATEGORIES)
    rows = test.read(np.arange(8))
    numbers = rows["image"][:, 0, 0, 0].astype(int)
    # Unicode's order is the numbers backwards: 38, 36, 34, 32, 30 is the first fifth of category 0.
    assert sorted(numbers) == sorted([30, 20, 10, 0, 31, 21, 11, 1])
    assert (rows["image"] == numbers[:, None, None, None] * [1, 2, 3]).all()
    assert (rows["label"] == numbers % 2).all()


def test_a_package_that_lacks_a_picture_is_refused(tmp_path):
    entries = [dict(image="a.png", category="Flags", sort_order=1)]
    with pytest.raises(UserError, match=r"lacks 1 pictures, such as a\.png"):
        read_package(package(tmp_path, entries, {}))


def test_without_the_package_the_message_says_how_to_get_it(tmp_path):
    with pytest.raises(UserError, match="scripts/fetch_data emoji"):
        TFDS("emoji", str(tmp_path)).open("train")
