"""Tables: what pandas and scikit-learn make of the same cells, and bad cells told by file and row."""

import datetime
import json

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from bigjax.core.errors import UserError
from bigjax.core.settings import Data
from bigjax.data import inputs, sources
from bigjax.data.table import Table

TRAIN = """city,age,member,since,rooms,label
Paris,31,yes,2024-01-01,2,rent
Oslo,,no,2024-01-03,3,buy
 Paris,25,yes,2024-01-05T12:00:00Z,,rent
,40,no,2024-01-07,1,other
"""
TEST = """label,rooms,since,member,age,city
buy,4,2024-02-01,no,,Rome
rent,,2024-01-01,yes,50,Oslo
"""


def open_splits(target, splits):
    return sources.open_splits(Data(target, splits), splits)


def everything(source):
    return source.read(np.arange(len(source)))


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "train.csv").write_text(TRAIN)
    (tmp_path / "test.csv").write_text(TEST)
    return tmp_path


def by_name(source, rows=None):
    rows = everything(source)["features"] if rows is None else rows
    return pd.DataFrame(rows, columns=source.feature_names)


def test_real_columns_become_what_pandas_makes_of_them(folder):
    opened = open_splits(Table(str(folder)), {"train": "train", "test": "test"})
    frame = pd.read_csv(folder / "train.csv", skipinitialspace=True)
    ours = by_name(opened["train"])
    # Categories: pandas' indicators, a missing cell being a value of its own, and none is unknown.
    dummies = pd.get_dummies(frame["city"].fillna("").str.strip()).astype(np.float32)
    for text in ("", "Oslo", "Paris"):
        assert ours[f"city={text}"].tolist() == dummies[text].tolist()
    assert ours["city=?"].tolist() == [0, 0, 0, 0]
    # Numbers: missing cells are the mean of train, and told.
    assert ours["age"].tolist() == frame["age"].fillna(frame["age"].mean()).astype("f4").tolist()
    assert ours["age missing"].tolist() == frame["age"].isna().tolist()
    assert ours["member"].tolist() == [1, 0, 1, 0]
    days = pd.to_datetime(frame["since"], utc=True, format="ISO8601").astype("int64")
    unit = (
        86_400
        * 10
        ** {"us": 6, "ns": 9, "s": 0}[
            pd.to_datetime(frame["since"], utc=True, format="ISO8601").dt.unit
        ]
    )
    np.testing.assert_allclose(ours["since"], (days - days.mean()) / unit, rtol=1e-6)
    assert opened["train"].class_names == ("buy", "other", "rent")
    assert everything(opened["train"])["label"].tolist() == [2, 0, 2, 1]


def test_other_splits_take_all_that_is_fitted_from_train(folder):
    opened = open_splits(Table(str(folder)), {"train": "train", "test": "test"})
    test = by_name(opened["test"])
    assert opened["test"].feature_names == opened["train"].feature_names
    assert test.loc[0, ["city=", "city=Oslo", "city=Paris", "city=?"]].tolist() == [0, 0, 0, 1]
    assert test["city=Oslo"].tolist() == [0, 1]
    assert test["age"].tolist() == [32, 50] and test["age missing"].tolist() == [1, 0]
    assert test["rooms"].tolist() == [4, 2] and test["rooms missing"].tolist() == [0, 1]
    assert everything(opened["test"])["label"].tolist() == [0, 2]
    # Of a part of train: the mean and the vocabulary of that part alone.
    part = open_splits(Table(str(folder)), {"train": "train[:2]", "test": "test[:1]"})
    assert "city=Oslo" in part["train"].feature_names and "city=" not in part["train"].feature_names
    with pytest.raises(UserError, match=r"test.csv, line 3: column 'rooms': is empty; no cell of"):
        open_splits(Table(str(folder)), {"train": "train[:1]", "test": "test[1:]"})


def test_another_table_that_is_fitted_to_itself_is_refused(folder, tmp_path):
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "train.csv").write_text(TRAIN.replace("Oslo", "Lima"))
    splits = {"train": "train", "other": "other:train"}
    data = Data(Table(str(folder)), splits, sources={"other": Table(str(tmp_path / "other"))})
    with pytest.raises(
        UserError, match=r"splits.other: what is fitted .fitted. is not .*the same source"
    ):
        sources.open_splits(data, splits)
    (tmp_path / "other" / "train.csv").write_text(TRAIN.replace("other", "share"))
    with pytest.raises(UserError, match=r"buy, rent, share instead of buy, other, rent"):
        sources.open_splits(data, splits)


@pytest.mark.parametrize("suffix", ["parquet", "arrow", "stream", "jsonl"])
def test_typed_files_hold_the_same(folder, suffix, tmp_path):
    frame = pd.read_csv(folder / "train.csv", skipinitialspace=True)
    rows = [
        {
            "city": None if pd.isna(row.city) else row.city,
            "age": None if pd.isna(row.age) else float(row.age),
            "member": row.member == "yes",
            "since": pd.Timestamp(row.since).tz_localize(None).to_pydatetime(),
            "rooms": None if pd.isna(row.rooms) else int(row.rooms),
            "label": row.label,
        }
        for row in frame.itertuples()
    ]
    other = tmp_path / "typed"
    other.mkdir()
    if suffix == "jsonl":
        text = "\n".join(json.dumps(row, default=datetime.datetime.isoformat) for row in rows)
        (other / "train.jsonl").write_text(text)
    elif suffix == "parquet":
        pq.write_table(pa.Table.from_pylist(rows), other / "train.parquet", row_group_size=2)
    else:
        table = pa.Table.from_pylist(rows)
        make = pa.ipc.new_file if suffix == "arrow" else pa.ipc.new_stream
        with make(str(other / "train.arrow"), table.schema) as writer:
            writer.write_table(table, max_chunksize=3)
    csv, typed = Table(str(folder)).open("train"), Table(str(other)).open("train")
    assert csv.feature_names == typed.feature_names
    for key, column in everything(csv).items():
        assert np.array_equal(everything(typed)[key], column), key


def write_large(folder, rows=20_000):
    draw = np.random.default_rng(0)
    table = pa.table(
        {
            "x": draw.normal(size=rows),
            "kind": draw.choice(["a", "b", "c"], rows),
            "label": draw.integers(0, 5, rows),
        }
    )
    folder.mkdir()
    for shard, start in enumerate(range(0, rows, rows // 2)):
        name = folder / f"train-{shard:05}-of-00002.parquet"
        pq.write_table(table.slice(start, rows // 2), name, row_group_size=3000)
    return table.to_pandas()


def test_what_is_larger_than_memory_is_encoded_once_into_mapped_files(tmp_path, monkeypatch):
    frame = write_large(tmp_path / "set")
    target = Table(str(tmp_path / "set"), cache_mb=0, data_dir=str(tmp_path / "data"))
    source, held = target.open("train[100:]"), Table(str(tmp_path / "set")).open("train[100:]")
    ids = np.array([19_899, 0, 5000, 0])
    for key, column in held.read(ids).items():
        assert np.array_equal(source.read(ids)[key], column)
    assert (
        source.read(ids)["features"][:, 0].tolist() == frame["x"][ids + 100].astype("f4").tolist()
    )
    assert isinstance(source.column("features").base, np.memmap)
    again = target.open("train[100:]")
    assert again.fingerprint() == source.fingerprint() != target.open("train").fingerprint()
    assert source.num_classes == 5


def test_a_missing_shard_and_a_split_that_is_there_twice_are_told(tmp_path):
    write_large(tmp_path / "set")
    (tmp_path / "set" / "train.csv").write_text("x,label\n1,2\n")
    with pytest.raises(UserError, match="are both the split 'train'"):
        Table(str(tmp_path / "set")).open("train")
    (tmp_path / "set" / "train.csv").unlink()
    (tmp_path / "set" / "train-00001-of-00002.parquet").unlink()
    with pytest.raises(UserError, match="shard 1 of 2 is missing"):
        Table(str(tmp_path / "set")).open("train")


def write_hugging_face(folder):
    """What `datasets.DatasetDict.save_to_disk` writes: an Arrow stream with the features beside it."""
    features = {
        "image": {"_type": "Image"},
        "label": {"names": ["cat", "dog"], "_type": "ClassLabel"},
    }
    said = {"huggingface": json.dumps({"info": {"features": features}})}
    folder.mkdir()
    (folder / "dataset_dict.json").write_text('{"splits": ["train", "test"]}')
    for split, labels in (("train", [1, 0, 1]), ("test", [0])):
        (folder / split).mkdir()
        its = [{"filename": "data-00000-of-00001.arrow"}] if split == "train" else None
        (folder / split / "state.json").write_text(json.dumps({"_data_files": its}))
        images = [{"bytes": png(20 + i, 3 + label), "path": None} for i, label in enumerate(labels)]
        table = pa.table({"image": images, "label": labels}).replace_schema_metadata(said)
        with pa.ipc.new_stream(
            str(folder / split / "data-00000-of-00001.arrow"), table.schema
        ) as out:
            out.write_table(table)


def png(grey, side):
    import io

    from PIL import Image

    out = io.BytesIO()
    Image.new("L", (side, side), grey).save(out, "png")
    return out.getvalue()


@pytest.mark.parametrize("cache_mb", [0, 1024])
def test_a_hugging_face_folder_gives_pictures_and_class_names(tmp_path, cache_mb):
    write_hugging_face(tmp_path / "set")
    with pytest.raises(UserError, match=r"row 2 is 3x3 .*row 1 4x4: give a size"):
        Table(str(tmp_path / "set")).open("train")
    target = Table(
        str(tmp_path / "set"), size=(2, 5), cache_mb=cache_mb, data_dir=str(tmp_path / "data")
    )
    opened = open_splits(target, {"train": "train", "test": "test"})
    assert opened["train"].class_names == ("cat", "dog")
    assert opened["train"].features["image"] == ((2, 5, 1), np.uint8)
    rows = everything(opened["train"])
    assert rows["label"].tolist() == [1, 0, 1] and rows["image"][:, 0, 0, 0].tolist() == [
        20,
        21,
        22,
    ]
    assert everything(opened["test"])["label"].tolist() == [0]


def test_a_hugging_face_folder_is_the_files_that_its_state_names_and_predict_takes_one(tmp_path):
    """`Dataset.map` keeps its cache-*.arrow beside them: those rows are no rows of the set."""
    write_hugging_face(tmp_path / "set")
    inner = tmp_path / "set" / "train"
    (inner / "cache-00ff.arrow").write_bytes((inner / "data-00000-of-00001.arrow").read_bytes())
    source = Table(str(tmp_path / "set"), size=(2, 2)).open("train")
    assert len(source) == 3
    found = inputs.read(inner, source, "image")
    assert np.array_equal(everything(found.source)["image"], everything(source)["image"])
    assert found.numbers == [0, 1, 2]
    with pytest.raises(UserError, match="has the splits test, train; name one"):
        inputs.read(tmp_path / "set", source, "image")
    (inner / "data-00000-of-00001.arrow").unlink()
    with pytest.raises(UserError, match="not all of the files that its"):
        Table(str(tmp_path / "set"), size=(2, 2)).open("train")


def test_hub_names_without_a_network_are_one_line(monkeypatch):
    import huggingface_hub

    def offline(*args, **kwargs):
        raise OSError("no route\nto host")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", offline)
    with pytest.raises(UserError, match=r"^hub:some/set: cannot fetch it \(no route\)$"):
        Table("hub:some/set").open("train")


@pytest.mark.parametrize(
    ("train", "options", "words"),
    [
        ("a,label\n1,x\ntwo,y\n", {}, ["train.csv, line 3", "'a'", "'two'", "'category'"]),
        ("a,label\n2024-01-01,1\nsoon,2\n", {}, ["line 3", "'soon' is no date"]),
        ("a,label\n2024-13-01,1\n", dict(columns={"a": "date"}), ["line 2", "2024-13-01"]),
        ("a,label\n1,x\n", dict(columns=["b"]), ["train.csv", "no column 'b'", "a, label"]),
        ("a,label\n1,x\n", dict(columns={"a": "nummer"}), ["columns.a", "did you mean 'number'"]),
        ("a,label\n1,x\n", dict(label="lable"), ["did you mean 'label'"]),
        ("label\n1\n", {}, ["no column beside the label"]),
        ("a,a,label\n1,2,3\n", {}, ["two columns are called 'a'"]),
        ("a,label\n1,\n", {}, ["line 2", "'label' is empty"]),
        ("a,label\n1,3\n", dict(class_names=["x", "y"]), ["line 2", "2 class names"]),
        ("a,label\n1,2.5\n2,x\n", {}, ["line 3", "'label' is 'x', not a number"]),
        ("a,label\n1,2\n2,nan\n", {}, ["line 3", "'label' is 'nan', not a number"]),
        ("a,label\n1,z\n", dict(class_names=["x", "y"]), ["'z', no class of train"]),
        ("a,label\n9007199254740993,1\n", dict(columns={"a": "boolean"}), ["is no boolean"]),
        ("a,label\n", {}, ["no examples"]),
        ('a,label\n"1,234",x\n"12,345",y\n,z\n', {}, ["'a'", "'1,234'", "1234.5", "'category'"]),
        ("a;label\n1,5;x\n2,25;y\n", {}, ["'1,5'", "1234.5"]),
        ("a,label\n$3.50,x\n$ 4,y\n", {}, ["'$ 4'", "1234.5"]),
        ("a,label\n3 %,x\n14 %,y\n", {}, ["'14 %'", "1234.5"]),
        ("a,label\n31.12.2024,x\n1.2.2024,y\n", {}, ["'1.2.2024'", "2024-12-31"]),
        ("a,label\n12/31/24 10:00,x\n", {}, ["'12/31/24 10:00'", "2024-12-31"]),
        (",a,label\n0,5,x\n", {}, ["column ''", "index=False", "{'': 'skip'}"]),
        ('a,label\n1,"x\n2,y\n', {}, ["line 3", "quotation mark"]),
        ("a,label\n" + "".join(f"t{i},1\n" for i in range(1001)), {}, ["more than 1000", "skip"]),
    ],
)
def test_what_cannot_be_right_is_one_line(tmp_path, train, options, words):
    (tmp_path / "train.csv").write_text(train)
    with pytest.raises(UserError) as caught:
        Table(str(tmp_path), **options).open("train")
    assert all(word in str(caught.value) for word in words), caught.value
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "cells", ["1.2.3 2.0.1", "a-1 b-2", "12:30 14:00", "10115-1 2-3", "1-2 3-4", "A1 5%x"]
)
def test_what_only_resembles_numbers_and_dates_is_a_category(tmp_path, cells):
    (tmp_path / "train.csv").write_text("a,label\n" + "".join(f"{c},1\n" for c in cells.split()))
    assert len(Table(str(tmp_path)).open("train").feature_names) == 3


@pytest.mark.parametrize(("mark", "suffix"), [(";", "csv"), ("\t", "csv"), ("\t", "tsv")])
def test_cells_may_be_parted_by_what_the_header_has(tmp_path, mark, suffix):
    rows = [["a", '"b, c"', "label"], ["1.5", '"x, y"', "no"], ["2", "z", "yes"]]
    (tmp_path / f"train.{suffix}").write_text("\r\n".join(map(mark.join, rows)))
    source = Table(str(tmp_path)).open("train")
    assert source.feature_names == ("a", "b, c=x, y", "b, c=z", "b, c=?")
    assert everything(source)["features"].tolist() == [[1.5, 1, 0, 0], [2, 0, 1, 0]]


@pytest.mark.parametrize(
    ("table", "words"),
    [
        (dict(a=pa.array([datetime.time(1), datetime.time(2)])), "time64.*no number or text"),
        (dict(a=pa.array([datetime.timedelta(1)] * 2)), "duration.*no number or text"),
        (dict(a=[2**60, 1]), "1152921504606846976 has too many digits"),
        ({"a": [1, 2], "__index_level_0__": [5, 1]}, "pandas' row numbers"),
        (dict(a=["3,5", None]), "'3,5'.*1234.5"),
        (dict(a=[1, 2], label=[[1], [0]]), r"row 1: column 'label' is \[1\]: a class is a text"),
    ],
)
def test_columns_of_parquet_that_cannot_be_right_are_one_line(tmp_path, table, words):
    pq.write_table(pa.table({"label": [0, 1], **table}), tmp_path / "train.parquet")
    with pytest.raises(UserError, match=words):
        Table(str(tmp_path)).open("train")


def test_columns_twice_a_label_that_is_not_there_and_rows_that_are_no_objects_are_told(tmp_path):
    a = pa.array([0, 1])
    pq.write_table(pa.Table.from_arrays([a, a, a], ["a", "a", "label"]), tmp_path / "train.parquet")
    with pytest.raises(UserError, match="two columns are called 'a'"):
        Table(str(tmp_path)).open("train")
    (tmp_path / "list.jsonl").write_text(json.dumps([{"a": 1, "label": 0}]))
    with pytest.raises(UserError, match=r"list.jsonl, line 1: JSON, but no object"):
        Table(str(tmp_path / "list.jsonl")).open("train")
    (tmp_path / "csv").mkdir()
    (tmp_path / "csv" / "train.csv").write_text("a,label\n1,0\n")
    (tmp_path / "csv" / "test.csv").write_text("a\n1\n")
    with pytest.raises(UserError, match=r"test.csv: there is no column 'label'"):
        Table(str(tmp_path / "csv")).open("test")
    with pytest.raises(UserError, match=r"none is there, but report.xlsx"):
        (tmp_path / "excel").mkdir()
        (tmp_path / "excel" / "report.xlsx").touch()
        Table(str(tmp_path / "excel")).open("train")


def test_rows_in_memory_are_read_as_those_of_a_file(folder):
    source = Table(str(folder)).open("train")
    frame = pd.read_csv(folder / "test.csv")
    expected = everything(source.read_inputs(folder / "test.csv").source)["features"]
    dated = frame.assign(since=pd.to_datetime(frame["since"]), member=frame["member"] == "yes")
    for rows in (frame, dated, frame.to_dict("records"), frame.to_dict("list")):
        assert np.array_equal(
            everything(inputs.given(rows, source, "features"))["features"], expected
        )
    for rows, words in (
        (["a text"], "a pandas table, a list of dicts"),
        ([], "columns of no rows"),
        (dict(city=["Rome"], age=[1, 2]), "columns of 1 and 2 rows"),
        (frame.assign(more=1), r"has more, which train has not"),
        (frame.assign(age="old"), r"predict, row 0: column 'age': 'old' is no number"),
    ):
        with pytest.raises(UserError, match=words):
            inputs.given(rows, source, "features")


def test_kinds_can_be_said_and_columns_chosen(tmp_path):
    (tmp_path / "train.csv").write_text("zip,id,x,label\n75001,a1,1,2\n10115,a2,2,3\n")
    said = Table(str(tmp_path), columns={"zip": "category", "id": "skip", "label": "number"})
    source = said.open("train")
    assert source.feature_names == ("zip=10115", "zip=75001", "zip=?", "x")
    assert source.features["label"][1] == np.float32 and source.num_classes is None
    assert Table(str(tmp_path), columns=["x"]).open("train").feature_names == ("x",)


def test_numbers_that_float32_cannot_tell_apart_are_moved(tmp_path):
    """Unix seconds: float32 alone would round them to 128 s."""
    seconds = 1_700_000_000 + np.arange(0, 1000, 7)
    rows = "".join(f"{s},{i % 2}\n" for i, s in enumerate(seconds))
    (tmp_path / "train.csv").write_text("time,label\n" + rows)
    found = everything(Table(str(tmp_path)).open("train"))["features"][:, 0]
    np.testing.assert_allclose(found, seconds - seconds.mean(), atol=1e-4)


@pytest.mark.parametrize("suffix", ["parquet", "arrow", "csv", "jsonl"])
def test_a_damaged_file_is_read_or_told_in_one_line(tmp_path, suffix):
    """200 copies with bytes changed, cut off or put in; Arrow follows damaged offsets unless asked."""
    table = pa.table({"a": [1.5, None] * 20, "c": ["x", "long y"] * 20, "label": [0, 1] * 20})
    good, draw = tmp_path / f"good.{suffix}", np.random.default_rng(0)
    if suffix == "parquet":
        pq.write_table(table, good)
    elif suffix == "arrow":
        with pa.ipc.new_file(str(good), table.schema) as writer:
            writer.write_table(table)
    else:
        frame = table.to_pandas()
        good.write_text(
            frame.to_csv(index=False)
            if suffix == "csv"
            else frame.to_json(orient="records", lines=True)
        )
    told = 0
    for copy in range(200):
        content = bytearray(good.read_bytes())
        at = int(draw.integers(len(content)))
        how = draw.integers(3)
        if how == 0:
            content[at] = draw.integers(256)
        elif how == 1:
            content[at : at + int(draw.integers(1, 9))] = draw.bytes(4)
        else:
            del content[at:]
        path = tmp_path / f"copy{copy}.{suffix}"
        path.write_bytes(content)
        try:
            Table(str(path)).open("train").read_inputs(path)
        except UserError as error:
            told += 1
            assert "\n" not in str(error)
    assert told > 20


# Predict.


@pytest.fixture
def trained(tmp_path):
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "train.csv").write_text("a,b,note,label\n1,2,x,yes\n3,4,y,no\n")
    columns = {"note": "skip"}
    return Table(str(tmp_path / "set"), columns=columns).fit("train").open("train")


def predicted(source, path, text):
    path.write_text(text)
    found = inputs.read(path, source, "features")
    return everything(found.source)["features"].tolist(), found


def test_columns_of_a_users_file_are_read_by_name(trained, tmp_path):
    rows, _ = predicted(trained, tmp_path / "rows.csv", "b,a\n20,10\n40,30\n")
    assert rows == [[10, 20], [30, 40]]
    lines = '{"b": 2, "a": 1}\n{"a": 3, "b": 4}\n'
    assert predicted(trained, tmp_path / "rows.jsonl", lines)[0] == [[1, 2], [3, 4]]


def test_a_runs_own_train_file_is_predictable(trained, tmp_path):
    found = inputs.read(tmp_path / "set" / "train.csv", trained, "features")
    assert np.array_equal(everything(found.source)["features"], everything(trained)["features"])
    assert found.source.features.keys() == trained.features.keys() and not found.problems


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a\n1\n", ["lacks b", "reads a, b"]),
        ("a,c\n1,2\n", ["lacks b", "has c"]),
        ("a,b,bb\n1,2,3\n", ["has bb, which train has not", "did you mean 'b'"]),
        ("1,2\n3,4\n", ["lacks a, b", "has 1, 2"]),
        ("a,b\nx,1\n", ["row 0", "column 'a'", "'x' is no number"]),
        ("a,b\n", ["there is none"]),
    ],
)
def test_wrong_columns_are_told_by_name(trained, tmp_path, text, words):
    with pytest.raises(UserError) as caught:
        predicted(trained, tmp_path / "rows.csv", text)
    assert all(word in str(caught.value) for word in words), caught.value
    assert "config.task" not in str(caught.value) and "\n" not in str(caught.value)


def test_bad_rows_are_told_and_the_rest_goes_on(trained, tmp_path):
    rows, found = predicted(trained, tmp_path / "rows.csv", "a,b\n1,2\nx,4\n5\n7,8\n,9\n")
    assert rows == [[1, 2], [7, 8]] and found.numbers == [0, 3]
    assert found.problems[0] == "row 1: column 'a': 'x' is no number; left out"
    assert "row 2: 1 cells under 2 columns" in found.problems[1]
    assert "row 4: column 'a': is empty" in found.problems[2]
