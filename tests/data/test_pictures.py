"""Pictures: every mode, depth and turn is right or told by name; folders of classes as a source."""

import io

import numpy as np
import pytest
from PIL import Image

from bigjax.core.errors import UserError
from bigjax.core.settings import Data
from bigjax.data import inputs, pictures, sources
from bigjax.data.pictures import BadPicture, Folder, Shape, decode
from bigjax.data.sources import Arrays

GREY, COLOUR = Shape(1, 2, 1), Shape(1, 2, 3)


def encoded(picture, kind="png", **options):
    out = io.BytesIO()
    picture.save(out, kind, **options)
    return out.getvalue()


def image(values, dtype=np.uint8, mode=None):
    picture = Image.fromarray(np.array(values, dtype))
    return picture.convert(mode) if mode else picture


RED_GREEN = [[[255, 0, 0], [0, 255, 0]]]
CASES = {
    "grey": (image([[10, 200]]), "png", GREY, [10, 200]),
    "black and white": (image([[0, 255]]).convert("1"), "png", GREY, [0, 255]),
    # 16 bits: 65535 / 257 = 255, 25700 / 257 = 100 (Pillow's own conversion clips both to 255).
    "16 bits": (image([[25700, 65535]], np.uint16), "png", GREY, [100, 255]),
    "16 bits of a tiff": (image([[25700, 65535]], np.uint16), "tiff", GREY, [100, 255]),
    "32 bits that hold 16": (image([[25700, 65535]], np.int32), "tiff", GREY, [100, 255]),
    "colour": (image(RED_GREEN), "png", COLOUR, RED_GREEN[0]),
    # ITU-R 601-2, as Pillow says: L = R 299/1000 + G 587/1000 + B 114/1000
    "colour to grey": (image(RED_GREEN), "png", GREY, [76, 150]),
    "palette": (image(RED_GREEN).quantize(4), "png", COLOUR, RED_GREEN[0]),
    "cmyk": (image(RED_GREEN).convert("CMYK"), "tiff", COLOUR, RED_GREEN[0]),
    # Alpha 0 is white; alpha 51 is a fifth: 0.2 * 100 + 0.8 * 255 = 224.
    "alpha": (image([[[9, 8, 7, 0], [100, 100, 100, 51]]]), "png", COLOUR, [[255] * 3, [224] * 3]),
    "grey and alpha": (image([[[9, 0], [100, 51]]]), "png", GREY, [255, 224]),
}


@pytest.mark.parametrize("name", CASES)
def test_every_mode_becomes_the_right_eight_bits(name):
    picture, kind, shape, expected = CASES[name]
    found = decode(encoded(picture, kind), shape)
    assert found.dtype == np.uint8 and found.shape == (1, 2, shape.channels)
    np.testing.assert_allclose(found[0].squeeze(), expected, atol=1)


def test_a_grey_palette_entry_that_is_transparent_is_white():
    paletted = Image.new("P", (2, 1))
    paletted.putpalette([0, 0, 0, 50, 60, 70])
    paletted.putdata([0, 1])
    found = decode(encoded(paletted, transparency=0), COLOUR)
    assert found[0].tolist() == [[255, 255, 255], [50, 60, 70]]


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_picture_is_turned_as_its_exif_says(orientation):
    """The right pixels by NumPy: what orientation n does to rows and columns (EXIF 2.3, table 6)."""
    stored = np.arange(6, dtype=np.uint8).reshape(2, 3) * 40
    turned = {
        1: stored,
        2: stored[:, ::-1],
        3: stored[::-1, ::-1],
        4: stored[::-1],
        5: stored.T,
        6: np.rot90(stored, -1),
        7: stored[::-1, ::-1].T,
        8: np.rot90(stored),
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    content = encoded(Image.fromarray(stored), exif=exif)
    shape = pictures.header(content)
    assert (shape.height, shape.width) == turned.shape
    assert np.array_equal(decode(content, shape)[..., 0], turned)


def test_of_an_animation_the_first_frame_counts():
    frames = [Image.new("L", (2, 1), grey) for grey in (10, 200)]
    content = encoded(frames[0], "gif", save_all=True, append_images=frames[1:])
    assert decode(content, GREY).tolist() == [[[10], [10]]]


def test_a_resize_is_pillows_bilinear():
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (9, 7, 3), np.uint8))
    expected = np.asarray(picture.resize((4, 5), Image.Resampling.BILINEAR))
    assert np.array_equal(decode(encoded(picture), Shape(5, 4, 3)), expected)


BAD = {
    "text": b"no picture",
    "empty": b"",
    "cut off": encoded(Image.new("RGB", (50, 50)), "jpeg")[:400],
    "a broken chunk": encoded(Image.new("RGB", (50, 50)))[:40] + b"\0" * 50,
    "floats": encoded(image([[0.5, 1.5]], np.float32), "tiff"),
    "more than 16 bits": encoded(image([[0, 70000]], np.int32), "tiff"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_picture_says_what_is_wrong_in_one_line(name):
    with pytest.raises(BadPicture) as caught:
        decode(BAD[name], COLOUR)
    assert "\n" not in str(caught.value) and len(str(caught.value)) > 10


def test_an_oversized_picture_is_told(monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(BadPicture, match="exceeds limit"):
        decode(encoded(Image.new("L", (50, 50))), GREY)


# Folders.


@pytest.fixture
def folder(tmp_path):
    """20 cats of grey 100.., 20 dogs of 200.. to train, two of each to test, one deeper."""
    for split, count in (("train", 20), ("test", 2)):
        for name, grey in (("cat", 100), ("dog", 200)):
            for i in range(count):
                path = tmp_path / "set" / split / name / ("deep" * (i % 2)) / f"{i}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.new("L", (4, 3), grey + i).save(path)
    (tmp_path / "set" / "train" / "cat" / "notes.txt").write_text("no picture")
    (tmp_path / "set" / "train" / ".hidden").mkdir()
    return tmp_path / "set"


def open_splits(target, splits):
    return sources.open_splits(Data(target, splits), splits)


def everything(source):
    return source.read(np.arange(len(source)))


@pytest.mark.parametrize("cache_mb", [0, 1024])
def test_folders_are_classes_and_splits(folder, cache_mb):
    opened = open_splits(Folder(str(folder), cache_mb=cache_mb), {"train": "train", "test": "test"})
    train, test = everything(opened["train"]), everything(opened["test"])
    assert opened["train"].class_names == ("cat", "dog") and opened["test"].num_classes == 2
    assert train["image"].shape == (40, 3, 4, 1) and test["image"].shape == (4, 3, 4, 1)
    assert np.array_equal(train["label"], train["image"][:, 0, 0, 0] // 100 - 1)
    assert sorted(train["image"][:, 2, 3, 0]) == [*range(100, 120), *range(200, 220)]
    again = Folder(str(folder), cache_mb=cache_mb).open("train")
    assert opened["train"].fingerprint() == again.fingerprint() != opened["test"].fingerprint()


def test_a_class_may_be_a_link_or_be_called_as_a_split_is(folder, tmp_path):
    (folder / "train" / "cat").rename(tmp_path / "cats")
    (folder / "train" / "cat").symlink_to(tmp_path / "cats")
    (folder / "train" / "dog").rename(folder / "train" / "train")  # the vehicle
    source = Folder(str(folder)).open("train")
    assert source.class_names == ("cat", "train") and len(source) == 40


def test_without_split_folders_all_is_train_and_a_part_has_all_classes(folder):
    target = Folder(str(folder / "train"))
    parts = open_splits(target, {"train": "train[:75%]", "rest": "train[75%:]"})
    labels = {name: everything(part)["label"] for name, part in parts.items()}
    assert [len(its) for its in labels.values()] == [30, 10]
    assert all(0.2 < its.mean() < 0.8 for its in labels.values())


def test_sizes_that_differ_need_a_size(folder):
    Image.new("RGB", (8, 8), "red").save(folder / "train" / "cat" / "large.png")
    with pytest.raises(UserError, match=r"8x8 .*give a size"):
        Folder(str(folder)).open("train")
    source = Folder(str(folder), size=(3, 4)).open("train")
    assert source.features["image"][0] == (3, 4, 3)  # one is in colour, so all are


def test_what_is_wrong_with_a_folder_is_one_line(folder):
    def told(words, split="train", **options):
        with pytest.raises(UserError, match=words) as caught:
            open_splits(
                Folder(**dict(directory=str(folder)) | options), {"train": "train", "x": split}
            )
        assert "\n" not in str(caught.value)

    told("no folder /nowhere", directory="/nowhere")
    told("no split 'tets' .did you mean 'test'", split="tets")
    told("height, width", size=(3,))
    (folder / "test" / "bird").mkdir()
    Image.new("L", (4, 3)).save(folder / "test" / "bird" / "1.png")
    told("bird/1.png: class 'bird' is not in train", split="test")
    (folder / "train" / "dog" / "broken.png").write_bytes(BAD["a broken chunk"])
    told("broken.png: not a readable picture")
    (folder / "train" / "dog" / "broken.png").rename(folder / "train" / "dog" / "phone.HEIC")
    told("phone.HEIC: not a readable picture")
    (folder / "train" / "dog" / "phone.HEIC").unlink()
    (folder / "train" / "fish").mkdir()
    told("train/fish holds no picture")
    (folder / "train").rename(folder / "Training")
    told("Training would be a class; if it is a split, .*/set/train$")


@pytest.mark.parametrize("kind", ["folder", "arrays"])
def test_predict_reads_nested_folders_and_tells_the_broken(folder, kind):
    source = Folder(str(folder)).open("train")
    if kind == "arrays":  # as a TFDS set is: a shape, and no more is known
        source = Arrays(
            {"image": everything(source)["image"], "label": everything(source)["label"]}
        )
    (folder / "test" / "broken.png").write_bytes(BAD["a broken chunk"])
    (folder / "test" / "text.jpg").write_bytes(b"no picture")
    exif = Image.Exif()
    exif[0x0112] = 3
    pixels = np.arange(12, dtype=np.uint8).reshape(3, 4)
    Image.fromarray(pixels).save(folder / "test" / "turned.png", exif=exif)
    found = inputs.read(folder / "test", source, "image")
    names = ["cat/0.png", "cat/deep/1.png", "dog/0.png", "dog/deep/1.png", "turned.png"]
    assert found.numbers == names
    rows = everything(found.source)
    assert rows["image"][:4, 0, 0, 0].tolist() == [100, 101, 200, 201]
    assert np.array_equal(rows["image"][4, ..., 0], pixels[::-1, ::-1])
    assert rows["label"].dtype == np.int32 and not rows["label"].any()
    assert [line.split(":")[0] for line in found.problems] == ["broken.png", "text.jpg"]


def test_where_no_picture_can_be_read_the_reasons_are_told(folder, tmp_path):
    source = Folder(str(folder)).open("train")
    (tmp_path / "bad").mkdir()
    for i in range(5):
        (tmp_path / "bad" / f"{i}.png").write_bytes(b"no picture")
    with pytest.raises(UserError, match=r"no row can be predicted: 0.png: not a .*and 2 more"):
        inputs.read(tmp_path / "bad", source, "image")
