"""What a user hands to predict: right or told, never guessed. (Tables and pictures: their own files.)"""

import io
import zipfile
from pathlib import Path

import numpy as np
import pytest

from bigjax.core.errors import UserError
from bigjax.data import files, inputs
from bigjax.data.npz import read_npz
from bigjax.data.sources import Arrays, check_classes


def trained(dtype=np.uint8, shape=(2, 3, 1)):
    return Arrays({"image": np.zeros((4, *shape), dtype), "label": np.array([0, 1, 2, 1])})


def read(path, source=None):
    found = inputs.read(path, source or trained(), "image")
    return found.source.read(np.arange(len(found.source)))["image"], found


def save(path, **arrays):
    np.savez(path, **arrays)
    return path


def test_an_npz_of_the_right_shape_is_read_as_it_is(tmp_path):
    rows = np.arange(12, dtype=np.int64).reshape(2, 2, 3, 1)
    found, _ = read(save(tmp_path / "a.npz", image=rows, other=np.zeros(3)))
    assert np.array_equal(found, rows) and found.dtype == np.uint8
    assert np.array_equal(read(save(tmp_path / "b.npz", x=rows))[0], rows)


def test_a_runs_own_train_file_is_predictable(tmp_path):
    source = trained()
    columns = source.read(np.arange(4))
    found, about = read(save(tmp_path / "train.npz", **columns))
    assert np.array_equal(found, columns["image"]) and about.numbers == [0, 1, 2, 3]


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        (np.zeros((1, 1, 2, 3)), r"shape \(1, 2, 3\), the model takes \(2, 3, 1\), its axes in"),
        (np.zeros((1, 3, 2, 1)), r"shape \(3, 2, 1\).*its axes"),
        (np.zeros((1, 6)), r"shape \(6,\), the model takes \(2, 3, 1\)"),
        (np.zeros((1, 2, 3)), r"shape \(2, 3\), the model"),
        (np.full((1, 2, 3, 1), 300), r"holds 300, which uint8 cannot hold"),
        (np.full((1, 2, 3, 1), -1), r"holds -1"),
        (np.full((1, 2, 3, 1), 0.5), r"holds 0.5"),
        (np.full((1, 2, 3, 1), np.nan), "not finite"),
        (np.array(["a"]), "array of numbers"),
    ],
)
def test_an_npz_that_would_be_changed_is_refused(tmp_path, rows, words):
    with pytest.raises(UserError, match=words) as caught:
        read(save(tmp_path / "rows.npz", image=rows))
    assert "config" not in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("value", "dtype"),
    [(2**40, np.int32), (-(2**31) - 1, np.int32), (1e300, np.float32), (2**24 + 1, np.float32)],
)
def test_casts_lose_nothing(tmp_path, value, dtype):
    path = save(tmp_path / "rows.npz", image=np.array([[value], [1]]))
    found, about = read(path, trained(dtype, (1,)))
    assert about.numbers == [1] and found.tolist() == [[1]]
    assert "row 0: holds" in about.problems[0]


def test_integers_beyond_32_bits_in_a_csv_are_told(tmp_path):
    (tmp_path / "rows.csv").write_text("4294967296\n7\n")
    found, about = read(tmp_path / "rows.csv", trained(np.int32, (1,)))
    assert found.tolist() == [[7]] and "which int32 cannot hold" in about.problems[0]


def test_a_csv_may_hold_the_label_under_its_name(tmp_path):
    (tmp_path / "rows.csv").write_text("label,a,b\n5,1,2\n6,3,4\n")
    assert read(tmp_path / "rows.csv", trained(np.float32, (2,)))[0].tolist() == [[1, 2], [3, 4]]


def test_a_missing_file_is_named_and_nothing_else_is_blamed(tmp_path):
    with pytest.raises(UserError, match=r"^--input=/nope.txt: no such file or folder$"):
        inputs.read(Path("/nope.txt"), trained(), "image")


def test_where_every_row_is_bad_the_reasons_are_told(tmp_path):
    (tmp_path / "rows.csv").write_text("x,1\ny,2\nz,3\nw,4\n")
    with pytest.raises(
        UserError, match=r"no row can be predicted: row 0: column 1: 'x'.*and 1 more"
    ):
        read(tmp_path / "rows.csv", trained(np.float32, (2,)))


def test_a_header_that_promises_four_terabytes_is_not_believed(tmp_path):
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        header, {"descr": "<f4", "fortran_order": False, "shape": (10**12,)}
    )
    with zipfile.ZipFile(tmp_path / "huge.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("image.npy", header.getvalue() + b"\0" * 100)
    with pytest.raises(UserError, match="the file is smaller"):
        read_npz(tmp_path / "huge.npz")


def test_an_npz_that_is_well_packed_is_read(tmp_path):
    zeros = np.zeros((1000, 1000))
    np.savez_compressed(tmp_path / "zeros.npz", x=zeros)
    assert np.array_equal(read_npz(tmp_path / "zeros.npz")["x"], zeros)


def test_an_npy_that_is_called_npz_is_one_line(tmp_path):
    with open(tmp_path / "x.npz", "wb") as file:
        np.save(file, np.zeros(3))
    with pytest.raises(UserError, match=r"is a \.npy file") as caught:
        read_npz(tmp_path / "x.npz")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("damage", [0.3, 0.6, 0.95])
def test_a_damaged_npz_is_one_line(tmp_path, damage):
    path = tmp_path / "x.npz"
    np.savez_compressed(path, image=np.random.default_rng(0).normal(size=500))
    content = bytearray(path.read_bytes())
    at = int(len(content) * damage)
    content[at : at + 20] = bytes(20)
    path.write_bytes(content)
    with pytest.raises(UserError, match="cannot read") as caught:
        read_npz(path)
    assert "\n" not in str(caught.value)


SEPARATORS = "a\u2029b\n\u2028c\x85d\x0be\x0cf\r\ng\x1ch\ri\n\nj"


def test_lines_end_where_files_say_and_nowhere_else(tmp_path):
    """As Python's own universal newlines, which str.splitlines() is not."""
    path = tmp_path / "x.txt"
    path.write_bytes(b"\xef\xbb\xbf" + SEPARATORS.encode())
    expected = path.read_text(encoding="utf-8-sig").split("\n")
    assert [line for _, line in files.lines(path)] == expected
    assert inputs.read_lines(path, "x") == expected
    assert [row["text"] for _, row in files.read_rows(path, "line")] == [x for x in expected if x]


class Words:
    """A source of text that knows its tokenizer by the length of words alone."""

    def __init__(self):
        self.features = {"tokens": ((1,), np.dtype(np.int32)), "label": ((), np.dtype(np.int32))}
        self.fields = ("text", "other")

    def encode(self, lines):
        self.lines = lines
        return {"tokens": np.array([[len(line)] for line in lines], np.int32)}


def test_texts_are_read_from_what_the_train_split_may_be(tmp_path):
    source = Words()
    rows = (
        '{"text": "one", "other": "two", "label": 1}\n{"text": "x"}\n{"text": "", "other": " "}\n'
    )
    (tmp_path / "train.jsonl").write_text(rows + "[]\n")
    found = inputs.read(tmp_path / "train.jsonl", source, ("tokens",))
    assert source.lines == ["one\ttwo"] and found.numbers == [0]
    assert found.source.read(np.array([0]))["label"].tolist() == [0]
    assert [line.split(":")[0] for line in found.problems] == ["row 1", "row 2", "row 3"]
    (tmp_path / "train.csv").write_text("label,text,other\n1,three,four\n")
    inputs.read(tmp_path / "train.csv", source, ("tokens",))
    assert source.lines == ["three\tfour"]
    (tmp_path / "empty.txt").write_text("\n \n")
    with pytest.raises(UserError, match="no row can be predicted: row 0: empty"):
        inputs.read(tmp_path / "empty.txt", source, ("tokens",))


def test_labels_beyond_the_outputs_of_the_model_are_refused():
    labels = np.array([0, 1, 2] * 15 + [3] * 45)
    source = Arrays({"x": np.zeros(90), "label": labels})
    assert source.num_classes == 4
    check_classes(source, "label", 4, "test")
    with pytest.raises(
        UserError, match=r"split 'test', example 45: 'label' is 3, .* know 3 classes"
    ):
        check_classes(source, "label", 3, "test")
    tags = Arrays({"labels": np.array([[0, -100], [1, -100]])})
    check_classes(tags, "labels", 2, "test", not_scored=-100)
    with pytest.raises(UserError, match="example 0: 'labels' is -100"):
        check_classes(tags, "labels", 2, "test")


def test_a_class_beyond_the_names_has_no_name():
    rows = inputs.json_rows({"class": np.array([0, 2])}, ("cat", "dog"))
    assert list(rows) == [{"class": 0, "name": "cat"}, {"class": 2}]
