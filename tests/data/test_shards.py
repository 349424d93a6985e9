"""Parquet shards: every row as pyarrow reads it whole, and never more than is asked for."""

import os
import resource
import time

import fsspec
import jax
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from jax.sharding import SingleDeviceSharding

from bigjax.core.errors import UserError
from bigjax.core.order import sample_ids
from bigjax.data.pipeline import train_batches
from bigjax.data.shards import Shards
from bigjax.data.sources import Source
from bigjax.loop.train import train
from tests.small import small

RNG = np.random.default_rng(0)


def table(rows, length=6, **more):
    tokens = RNG.integers(0, 90, (rows, length))
    columns = {
        "tokens": pa.array(tokens.tolist(), pa.list_(pa.int64())),
        "weight": pa.array(RNG.standard_normal(rows)),
        "fixed": pa.FixedSizeListArray.from_arrays(
            pa.array(tokens.ravel() % 7, pa.uint8()), length
        ),
        "name": pa.array([f"row {i}" for i in range(rows)]),
    }
    return pa.table({**columns, **more})


@pytest.fixture
def folder(tmp_path):
    for number, rows in enumerate((10, 3, 17)):
        path = tmp_path / f"train-{number}.parquet"
        pq.write_table(table(rows), path, row_group_size=4)
    pq.write_table(table(5), tmp_path / "test-0.parquet")
    return tmp_path


def test_rows_in_any_order_are_those_of_the_files(folder):
    source: Source = Shards(f"{folder}/{{split}}-*.parquet").open("train")
    whole = pa.concat_tables(pq.read_table(folder / f"train-{n}.parquet") for n in range(3))
    tokens = np.array(whole["tokens"].to_pylist(), np.int32)
    assert len(source) == 30
    assert source.features == {
        "tokens": ((6,), np.int32),
        "weight": ((), np.float32),
        "fixed": ((6,), np.uint8),
    }
    ids = RNG.integers(0, 30, 50)
    found = source.read(ids)
    assert np.array_equal(found["tokens"], tokens[ids])
    assert np.array_equal(found["fixed"], (tokens % 7)[ids])
    assert np.array_equal(found["weight"], whole["weight"].to_numpy().astype(np.float32)[ids])
    part = Shards(f"{folder}/{{split}}-*.parquet", columns=["tokens"]).open("train[40%:60%]")
    assert len(part) == 6 and list(part.features) == ["tokens"]
    assert np.array_equal(part.read(np.arange(6))["tokens"], tokens[12:18])
    assert part.fingerprint() != source.fingerprint()


def test_interleaved_groups_are_decoded_once_an_epoch_by_whichever_threads(tmp_path, monkeypatch):
    tokens = RNG.integers(0, 90, (400, 3))
    for number, rows in enumerate(np.split(tokens, [150])):
        column = pa.array(rows.tolist(), pa.list_(pa.int32()))
        pq.write_table(
            pa.table({"x": column}), tmp_path / f"train-{number}.parquet", row_group_size=10
        )
    shards = Shards(f"{tmp_path}/{{split}}-*.parquet", interleave=8)
    source = shards.open("train[5:395]")
    decoded, decode = [], source._decode
    monkeypatch.setattr(source, "_decode", lambda group: decoded.append(group) or decode(group))
    rows = SingleDeviceSharding(jax.devices()[0])
    batches = train_batches(source, batch_size=13, seed=0, start_step=0, sharding=rows)
    seen = [next(batches) for _ in range(30)]
    batches.close()
    ids = np.concatenate([batch["sample"] for batch in seen])
    assert sorted(ids) == list(range(390))
    assert np.array_equal(np.concatenate([batch["x"] for batch in seen]), tokens[5 + ids])
    # 40 groups, two more for each of 8 lanes at most, and of the next epoch what is read ahead.
    assert set(decoded) == set(range(40)) and len(decoded) < 40 + 16 + 8
    late = train_batches(source, batch_size=13, seed=0, start_step=7, sharding=rows)
    assert np.array_equal(next(late)["sample"], seen[7]["sample"])
    late.close()


def test_the_fingerprint_is_that_of_the_content(folder):
    shards = Shards(f"{folder}/{{split}}-*.parquet")
    before = shards.open("train").fingerprint()
    assert shards.open("train").fingerprint() == before
    pq.write_table(table(3), folder / "train-1.parquet", row_group_size=4)
    assert shards.open("train").fingerprint() != before


def test_remote_shards_are_read_through_fsspec_by_their_footers(folder, monkeypatch):
    memory = fsspec.filesystem("memory")
    for number in range(3):
        content = (folder / f"train-{number}.parquet").read_bytes()
        memory.pipe(f"/shards/train/part{number}.parquet", content)
    monkeypatch.setattr("bigjax.data.shards.TAIL", 16)  # no footer is so small
    remote = Shards("memory://shards/{split}/*.parquet").open("train")
    local = Shards(f"{folder}/{{split}}-*.parquet").open("train")
    for key, values in local.read(np.arange(30)).items():
        assert np.array_equal(remote.read(np.arange(30))[key], values)
    memory.rm("/shards", recursive=True)


def test_a_run_learns_from_shards(tmp_path):
    rows = RNG.integers(0, 10, 120)
    for number in range(3):
        own = rows[number * 40 : number * 40 + 40]
        features = np.eye(10)[own].tolist()
        content = pa.table({"features": features, "label": pa.array(own, pa.int64())})
        pq.write_table(content, tmp_path / f"train-{number}.parquet", row_group_size=8)
    pattern = f"{tmp_path}/{{split}}-*.parquet"
    config = small(
        data=dict(
            source=dict(type="shards", path=pattern, num_classes=10),
            splits=dict(train="train[:75%]", test="train[75%:]"),
        ),
        task=dict(type="classification", input="features"),
        model=dict(type="mlp", widths=(), outputs=10),
        optimizer=dict(type="adam", learning_rate=0.3),
        evaluate=dict(splits=("test",), every="end", batch_size=24),
        train=dict(steps=20, batch_size=24),
    )
    assert train(config, tmp_path / "run")["metrics"]["eval/test/accuracy"] == 1.0


@pytest.mark.parametrize(
    ("path", "split", "columns", "said"),
    [
        (
            "{split}-*.parquet",
            "trian",
            None,
            "no shards of the split 'trian'.*did you mean 'train'",
        ),
        ("{split}-*.parquet", "train", ["token"], "no column 'token' of numbers.*'tokens'"),
        ("{split}-*.parquet", "ragged", None, "'tokens' has lists of 2 to 3 numbers"),
        ("{split}-*.parquet", "holes", None, "'tokens' has 1 empty cells"),
        ("{split}-*.parquet", "mixed", None, "mixed-1.parquet: its columns are not those of"),
        ("{split}-*.parquet", "broken", None, "cannot read .*broken-0.parquet"),
        ("train-*.parquet", "train", None, "should hold {split}"),
    ],
)
def test_what_cannot_be_read_is_one_line(folder, path, split, columns, said):
    kinds = {
        "ragged": [pa.array([[1, 2], [1, 2, 3]])],
        "holes": [pa.array([[1, 2], None])],
        "mixed": [pa.array([[1, 2]]), pa.array([1])],
    }
    for name, arrays in kinds.items():
        for number, array in enumerate(arrays):
            pq.write_table(pa.table({"tokens": array}), folder / f"{name}-{number}.parquet")
    (folder / "broken-0.parquet").write_bytes(b"PAR1 and no more")
    with pytest.raises(UserError, match=said):
        Shards(f"{folder}/{path}", columns).open(split)


@pytest.mark.slow
def test_fifty_gigabytes_open_at_once_and_any_step_costs_what_the_tenth_costs(tmp_path):
    """500 names of one shard of 100 MB (the disk holds no 50 GB): all that is read at a start, and where a
    row is looked for, is as it would be; a cold disk is not measured."""
    rows, length = 12_500, 2048
    tokens = pa.array(RNG.integers(0, 50_000, rows * length, dtype=np.int32))
    column = pa.FixedSizeListArray.from_arrays(tokens, length)
    options = dict(row_group_size=50, compression="none", use_dictionary=False)
    pq.write_table(pa.table({"tokens": column}), tmp_path / "shard", **options)
    for number in range(500):
        os.link(tmp_path / "shard", tmp_path / f"train-{number:05}.parquet")
    whole = 500 * (tmp_path / "shard").stat().st_size
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start = time.process_time()
    source = Shards(f"{tmp_path}/{{split}}-*.parquet").open("train")
    opened = time.process_time() - start

    def seconds(step):
        ids, _ = sample_ids(0, step * 64 + np.arange(64), len(source))
        before = time.process_time()
        found = source.read(ids)
        spent = time.process_time() - before
        assert found["tokens"].shape == (64, length)
        return spent

    seconds(0)
    turns = [(seconds(10 + k), seconds(90_000 + k)) for k in range(15)]
    tenth, late = np.median(turns, axis=0)
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - memory) / 2**20
    print(
        f"{whole / 1e9:.1f} GB, open {opened:.2f} s, {grown:.2f} GiB, {tenth:.3f} and {late:.3f} s"
    )
    assert whole > 50e9 and opened < 5 and grown < 1 and late < 1.1 * tenth
