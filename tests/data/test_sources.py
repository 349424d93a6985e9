"""Sources: what they read equals what was put in, and every misuse is told in one line."""

import gzip
import os
import subprocess
import sys

import numpy as np
import pytest
import sklearn.datasets
import tensorflow_datasets as tfds
from hypothesis import given
from hypothesis import strategies as st

from bigjax.core.errors import UserError
from bigjax.data import builders
from bigjax.data.npz import NPZ
from bigjax.data.sources import TFDS, Arrays
from bigjax.data.splits import subsplit
from bigjax.data.table import csv as CSV
from scripts import fetch
from scripts.fetch import fashion_mnist


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    return str(tmp_path_factory.mktemp("tfds"))


def everything(source):
    return source.read(np.arange(len(source)))


def test_digits_keep_the_order_of_their_origin(data_dir):
    raw = sklearn.datasets.load_digits()
    train, test = (TFDS("digits", data_dir).open(split) for split in ("train", "test"))
    assert (len(train), len(test), train.num_classes) == (1000, 797, 10)
    assert train.features["image"] == ((8, 8, 1), np.uint8)
    assert np.array_equal(everything(train)["image"][..., 0], raw.images[:1000])
    assert np.array_equal(everything(test)["label"], raw.target[1000:])
    assert everything(test)["label"].dtype == np.int32


def test_breast_cancer_is_split_by_class_and_no_row_is_lost(data_dir):
    raw = sklearn.datasets.load_breast_cancer()
    target = TFDS("breast_cancer", data_dir)
    train, test = everything(target.open("train")), everything(target.open("test"))
    assert target.open("train").class_names == ("malignant", "benign")
    rows = np.concatenate([train["features"], test["features"]])
    order, origin = np.lexsort(rows.T), np.lexsort(raw.data.astype(np.float32).T)
    assert np.array_equal(rows[order], raw.data.astype(np.float32)[origin])
    assert abs(test["label"].mean() - raw.target.mean()) < 0.01
    assert 0.18 < len(test["label"]) / 569 < 0.22


def test_diabetes_has_float_labels_and_the_scaled_features(data_dir):
    raw = sklearn.datasets.load_diabetes(scaled=True)
    target = TFDS("diabetes", data_dir)
    test = everything(target.open("test"))
    assert np.array_equal(test["label"], raw.target[4::5].astype(np.float32))
    assert np.array_equal(test["features"], raw.data[4::5].astype(np.float32))
    assert len(target.open("train")) + len(test["label"]) == 442
    assert target.open("train").num_classes is None


def test_records_read_what_the_cache_reads(data_dir):
    cached = TFDS("digits", data_dir).open("train[:90%]")
    records = TFDS("digits", data_dir, cache_mb=0).open("train[:90%]")
    ids = np.array([5, 899, 5, 0])
    assert isinstance(cached, Arrays) and not isinstance(records, Arrays)
    assert records.features == cached.features and len(records) == len(cached) == 900
    for key, column in cached.read(ids).items():
        assert np.array_equal(records.read(ids)[key], column)
        assert records.read(ids)[key].dtype == column.dtype


@pytest.mark.parametrize("cache_mb", [0, 1024])
def test_the_fingerprint_tells_splits_apart_and_stays(data_dir, cache_mb):
    target = TFDS("digits", data_dir, cache_mb=cache_mb)
    prints = [target.open(split).fingerprint() for split in ("train", "test", "train[:50%]")]
    assert len(set(prints)) == 3
    assert target.open("train").fingerprint() == prints[0]


def test_one_changed_number_changes_the_fingerprint():
    x = np.zeros((4, 3), np.float32)
    before = Arrays({"x": x}).fingerprint()
    x[2, 1] = np.float32(1e-30)
    assert Arrays({"x": x}).fingerprint() != before
    assert Arrays({"y": x}).fingerprint() != Arrays({"x": x}).fingerprint()


def test_sub_splits_are_disjoint_and_complete(data_dir):
    target = TFDS("digits", data_dir)
    parts = [everything(target.open(s))["image"] for s in ("train[:33%]", "train[33%:]")]
    assert np.array_equal(np.concatenate(parts), everything(target.open("train"))["image"])


@given(total=st.integers(2, 10**7), percent=st.integers(0, 100), at=st.integers(0, 10**7))
def test_parsed_sub_splits_are_disjoint_and_complete(total, percent, at):
    for bound in (f"{percent}%", str(min(at, total))):
        rows = []
        for split in (f"train[:{bound}]", f"train[{bound}:]"):
            try:
                rows.append(subsplit(split, lambda name: total)[1])
            except UserError as error:
                assert "no examples" in str(error)
        ends = [end for part in rows for end in (part.start, part.stop)]
        assert ends in ([0, total], [0, ends[1], ends[1], total])


def test_percentages_round_as_tfds_rounds_them(data_dir):
    TFDS("digits", data_dir).open("test")
    splits = tfds.builder_from_directory(f"{data_dir}/bigjax_digits/1.0.0").info.splits
    for split in [f"test[{s}{p}%:]" for p in range(1, 100) for s in ("", "-")]:
        rows = subsplit(split, lambda name: 797)[1]
        assert rows.stop - rows.start == splits[split].num_examples
    for percent in (25, 35):  # halves of ten rows: 2.5 and 3.5
        assert subsplit(f"test[:{percent}%]", lambda name: 10)[1].stop == round(percent / 10)


def test_sub_splits_read_as_python_slices():
    def rows(split):
        return subsplit(split, lambda name: 10)[1]

    assert rows("train") == slice(0, 10) and rows("train[2:5]") == slice(2, 5)
    assert rows("train[-3:]") == slice(7, 10) and rows("train[:-20%]") == slice(0, 8)
    for bad in ("train[5:2]", "train[:11]", "train[a:]", "train[:90%", "", "train[:101%]"):
        with pytest.raises(UserError):
            rows(bad)


@pytest.mark.parametrize(
    "target, split, words",
    [
        (dict(name="digit"), "train", ["did you mean 'digits'", "prepared there: bigjax_digits"]),
        (dict(name="cifar10"), "train", ["not prepared under", "tfds build cifar10"]),
        (dict(name="fashion_mnist"), "train", ["scripts/fetch_data fashion_mnist"]),
        (dict(name="digits"), "tran", ["did you mean 'train'", "train, test"]),
        (dict(name="digits"), "train[:x]", ["train[:x]"]),
        (dict(name="digits"), "train[:0%]", ["no examples"]),
        (dict(name="digits"), "train[:5000]", ["5000"]),
        (dict(name="digits", version="9.0.0"), "train", ["9.0.0", "1.0.0"]),
        (dict(name="digits", config="x"), "train", ["'x'"]),
    ],
)
def test_what_is_not_there_is_told_with_what_is(tmp_path, target, split, words):
    builders.prepare(builders.Digits, tmp_path)
    with pytest.raises(UserError) as caught:
        TFDS(**target, data_dir=str(tmp_path)).open(split)
    assert all(word in str(caught.value) for word in words)
    assert "\n" not in str(caught.value)


def test_the_data_dir_is_where_tfds_would_look(tmp_path, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "here"))
    TFDS("digits").open("test")
    assert (tmp_path / "here" / "bigjax_digits" / "1.0.0" / "dataset_info.json").exists()


def test_your_own_prepared_copy_comes_before_bigjaxs(tmp_path):
    builders.prepare(builders.Digits, tmp_path)
    builders.prepare(builders.BreastCancer, tmp_path)
    (tmp_path / "bigjax_breast_cancer").rename(tmp_path / "digits")
    assert "features" in TFDS("digits", str(tmp_path)).open("train").features


def test_processes_that_prepare_at_once_all_succeed_and_leave_nothing_behind(tmp_path):
    code = (
        "import sys; from bigjax.data.sources import TFDS; TFDS('digits', sys.argv[1]).open('test')"
    )
    runs = [subprocess.Popen([sys.executable, "-c", code, str(tmp_path)]) for _ in range(3)]
    assert [run.wait(timeout=120) for run in runs] == [0, 0, 0]
    assert os.listdir(tmp_path) == ["bigjax_digits"]
    assert os.listdir(tmp_path / "bigjax_digits") == ["1.0.0"]


def test_a_failed_preparation_leaves_nothing_behind(tmp_path):
    with pytest.raises(UserError, match="cannot read"):
        builders.prepare(fashion_mnist.FashionMnist, tmp_path, idx_dir=tmp_path / "missing")
    assert os.listdir(tmp_path) == []


def test_reading_imports_no_tensorflow(data_dir):
    code = (
        "import sys; from bigjax.data import pipeline; from bigjax.data.sources import TFDS;"
        f"TFDS('digits', {data_dir!r}).open('train');"
        "assert not {'tensorflow', 'torch'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


def test_fetch_refuses_files_that_are_not_fashion_mnist(tmp_path, capsys):
    for name in fashion_mnist.FASHION_MNIST_FILES:
        (tmp_path / name).write_bytes(gzip.compress(b"not a picture"))
    arguments = ["--from", str(tmp_path), "--data_dir", str(tmp_path / "data")]
    assert fetch.main(["fashion_mnist", *arguments]) == 2
    assert "sha256" in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments", [[], ["mnist"], ["fashion_mnist", "--from", "/nowhere"], ["--wat"]]
)
def test_fetch_tells_bad_input_in_one_line(tmp_path, capsys, arguments):
    assert fetch.main([*arguments, "--data_dir", str(tmp_path)]) == 2
    assert len(capsys.readouterr().err.strip().splitlines()) == 1


def test_npz_splits_are_files_and_sub_splits_are_slices(tmp_path):
    x = np.arange(20.0).reshape(10, 2)
    np.savez(tmp_path / "train.npz", features=x, label=np.arange(10))
    target = NPZ(str(tmp_path), class_names=[str(i) for i in range(10)])
    assert target.open("train").num_classes == 10
    assert everything(target.open("train[:70%]"))["label"].tolist() == list(range(7))
    rest = everything(target.open("train[70%:]"))
    assert np.array_equal(rest["features"], x[7:]) and rest["features"].dtype == np.float32


@pytest.mark.parametrize(
    "arrays, words",
    [
        (dict(x=np.zeros(3), y=np.zeros(4)), "one length"),
        (dict(x=np.array(["a", "b"])), "'x'"),
        (dict(x=np.array([None, 1], dtype=object)), "cannot read"),
        (dict(x=np.array(1.0)), "'x'"),
        (dict(x=np.array([2**40])), "32 bits"),
        (dict(x=np.zeros((0, 3))), "no examples"),
    ],
)
def test_a_bad_npz_is_refused_by_name(tmp_path, arrays, words):
    np.savez(tmp_path / "train.npz", **arrays)
    with pytest.raises(UserError, match=words) as caught:
        NPZ(str(tmp_path)).open("train")
    assert "train.npz" in str(caught.value)


def test_a_missing_or_broken_file_is_refused_by_name(tmp_path):
    (tmp_path / "train.npz").write_bytes(b"PK not really")
    with pytest.raises(UserError, match=r"train\.npz"):
        NPZ(str(tmp_path)).open("train")
    with pytest.raises(
        UserError, match=r"no split 'trian' \(did you mean 'train'\?\); it has train"
    ):
        NPZ(str(tmp_path)).open("trian")


def test_csv_columns_become_features_and_label(tmp_path):
    (tmp_path / "train.csv").write_text("a,y,b\n1,0,2.5\n3,1,-4e-1\n")
    columns = everything(CSV(str(tmp_path), label="y").open("train"))
    assert columns["features"].tolist() == [[1, 2.5], [3, np.float32(-0.4)]]
    assert columns["label"].tolist() == [0, 1] and columns["label"].dtype == np.int32
    (tmp_path / "train.csv").write_text("a,y\n1,0.0\n3,1\n")
    assert everything(CSV(str(tmp_path), label="y").open("train"))["label"].dtype == np.float32


@pytest.mark.parametrize(
    "text, words",
    [
        ("a,label\n1,2\noops,3\n", ["line 3", "'a'", "'oops'", "columns.a='category'"]),
        ("a,label\n,2\n", ["column 'a' is empty throughout train"]),
        ("a,label\ninf,2\n1,3\n", ["line 2", "'inf'"]),
        ("a,label\n1,\n1,3\n", ["line 2", "'label' is empty"]),
        ("a,label\n1,2,3\n", ["line 2", "3 cells"]),
        ("a,lable\n1,2\n", ["did you mean 'lable'"]),
        ("", ["is empty"]),
        ("a,label\n", ["no examples"]),
    ],
)
def test_a_bad_cell_is_named_by_file_row_and_column(tmp_path, text, words):
    (tmp_path / "train.csv").write_text(text)
    with pytest.raises(UserError) as caught:
        CSV(str(tmp_path)).open("train")
    assert all(word in str(caught.value) for word in words)
