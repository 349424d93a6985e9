"""Tars and ArrayRecord shards: every record as tarfile and NumPy have it, indexed once, read by place."""

import io
import os
import resource
import tarfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import fsspec
import numpy as np
import pytest
from PIL import Image

from bigjax.core.errors import UserError
from bigjax.core.order import sample_ids
from bigjax.data import records
from bigjax.data.npz import array_in
from bigjax.data.shards import Shards
from bigjax.loop.train import train
from tests.small import small

RNG = np.random.default_rng(0)
SIZES = (5, 2, 7)
TOKENS = RNG.integers(0, 90, (14, 6))
PICTURES = RNG.integers(0, 255, (14, 4, 5), dtype=np.uint8)


def npy(array, **options):
    file = io.BytesIO()
    np.save(file, array, **options)
    return file.getvalue()


def png(array):
    file = io.BytesIO()
    Image.fromarray(array).save(file, "png")
    return file.getvalue()


def write_tar(path, members):
    with tarfile.open(path, "w") as tar:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))


def sample(i):
    key = f"some/where/{i:06}"
    return [
        (f"{key}.png", png(PICTURES[i])),
        (f"{key}.cls", f"{i % 3}\n".encode()),
        (f"{key}.tokens.npy", npy(TOKENS[i])),
        (f"{key}.json", b"{}"),
    ]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "prepared"))
    ends = np.cumsum(SIZES)
    for number, (end, size) in enumerate(zip(ends, SIZES, strict=True)):
        members = [member for i in range(end - size, end) for member in sample(i)]
        write_tar(tmp_path / f"train-{number}.tar", members)
    return tmp_path


def test_records_in_any_order_are_those_of_the_tars(folder):
    shards = Shards(f"{folder}/{{split}}-*.tar", num_classes=3)
    source = shards.open("train")
    assert len(source) == 14 and source.num_classes == 3
    assert source.features == {
        "label": ((), np.int32),
        "image": ((4, 5, 1), np.uint8),
        "tokens": ((6,), np.int32),
    }
    ids = RNG.integers(0, 14, 30)
    found = source.read(ids)
    assert np.array_equal(found["tokens"], TOKENS[ids])
    assert np.array_equal(found["image"][..., 0], PICTURES[ids])
    assert np.array_equal(found["label"], ids % 3)
    part = Shards(f"{folder}/{{split}}-*.tar", columns=["tokens"]).open("train[50%:]")
    assert len(part) == 7 and list(part.features) == ["tokens"]
    assert np.array_equal(part.read(np.arange(7))["tokens"], TOKENS[7:])
    assert part.fingerprint() != source.fingerprint() == shards.open("train").fingerprint()
    resized = Shards(f"{folder}/{{split}}-*.tar", size=(8, 8)).open("train")
    assert resized.read(ids)["image"].shape == (30, 8, 8, 1)


def test_a_tar_is_gone_through_once_and_again_if_it_or_its_index_changed(folder, monkeypatch):
    seen, scan = [], records._scanned
    monkeypatch.setattr(
        records, "_scanned", lambda files, path: seen.append(path[-5]) or scan(files, path)
    )
    shards = Shards(f"{folder}/{{split}}-*.tar")
    first = shards.open("train").fingerprint()
    assert sorted(seen) == ["0", "1", "2"]
    assert shards.open("train").fingerprint() == first and len(seen) == 3
    write_tar(folder / "train-1.tar", sample(5))
    source = shards.open("train")
    assert seen[3:] == ["1"] and len(source) == 13 and source.fingerprint() != first
    for path in (folder / "prepared/cache/shards").glob("*/places.npy"):
        content = bytearray(path.read_bytes())
        content[-8] ^= 1
        path.write_bytes(content)
    damaged = shards.open("train")
    assert sorted(seen[4:]) == ["0", "1", "2"] and damaged.fingerprint() == source.fingerprint()


def test_remote_tars_are_read_through_fsspec_by_ranges(folder):
    memory = fsspec.filesystem("memory")
    for number in range(3):
        memory.pipe(f"/tars/train/{number}.tar", (folder / f"train-{number}.tar").read_bytes())
    found = Shards("memory://tars/{split}/*.tar").open("train").read(np.arange(14))
    assert np.array_equal(found["tokens"], TOKENS)
    memory.rm("/tars", recursive=True)


def write_records(path, contents):
    from array_record.python.array_record_module import ArrayRecordWriter

    writer = ArrayRecordWriter(str(path), "group_size:1")
    for content in contents:
        writer.write(content)
    writer.close()


def example(i):
    from tensorflow_datasets.proto import tf_example_pb2

    made = tf_example_pb2.Example()
    made.features.feature["tokens"].int64_list.value.extend(TOKENS[i].tolist())
    made.features.feature["label"].int64_list.value.append(i % 3)
    made.features.feature["weight"].float_list.value.append(i / 2)
    made.features.feature["image"].bytes_list.value.append(png(PICTURES[i]))
    made.features.feature["name"].bytes_list.value.append(b"told in words")
    return made.SerializeToString()


def test_arrays_in_memory_are_as_numpy_reads_them(monkeypatch):
    for array in (TOKENS, np.asfortranarray(TOKENS), np.float32(3), np.zeros((0, 4)), TOKENS[None]):
        found = array_in(npy(array), "x")
        expected = np.load(io.BytesIO(npy(array)))
        assert np.array_equal(found, expected) and found.dtype == expected.dtype

    # Python 3.11's parser, which NumPy reads headers with, fails where two threads are in it.
    inside, most, lock = 0, 0, threading.Lock()
    parsed = np.lib.format.read_array_header_1_0

    def watched(file):
        nonlocal inside, most
        with lock:
            inside, most = inside + 1, max(most, inside + 1)
        time.sleep(0.002)
        inside -= 1
        return parsed(file)

    monkeypatch.setattr(np.lib.format, "read_array_header_1_0", watched)
    with ThreadPoolExecutor(8) as pool:
        contents = [npy(np.zeros(100 + i)) for i in range(16)]
        shapes = [array.shape[0] for array in pool.map(array_in, contents, "x" * 16)]
    assert shapes == list(range(100, 116)) and most == 1


def test_array_records_hold_arrays_or_examples(tmp_path):
    for number, half in enumerate((range(9), range(9, 14))):
        write_records(tmp_path / f"train-{number}.array_record", [npy(TOKENS[i]) for i in half])
        write_records(tmp_path / f"test-{number}.array_record", [example(i) for i in half])
    shards = Shards(f"{tmp_path}/{{split}}-*.array_record")
    ids = RNG.integers(0, 14, 30)
    assert np.array_equal(shards.open("train").read(ids)["array"], TOKENS[ids])
    source = shards.open("test")
    assert set(source.features) == {"tokens", "label", "weight", "image"}
    found = source.read(ids)
    assert np.array_equal(found["tokens"], TOKENS[ids])
    assert np.array_equal(found["weight"], ids.astype(np.float32) / 2)
    assert np.array_equal(found["image"][..., 0], PICTURES[ids])
    assert source.fingerprint() != shards.open("train").fingerprint()


COLOUR = np.zeros((4, 5, 3), np.uint8)
BOMB = npy(np.zeros(3, np.float32)).replace(b"(3,), }       ", b"(99999999,), }")
WRONG = {
    "other files": ([*sample(0), ("b.cls", b"1")], "record 1 has the files cls, the first one"),
    "no records": ([("README", b"hello")], "holds no files named KEY.KIND"),
    "nothing to read": ([("a.txt", b"hello")], "nothing in it is numbers, a class or a picture"),
    "no class": ([("a.cls", b"cat")], r"0.tar, record 0: invalid literal"),
    "pickled": ([("a.x.npy", npy(np.array([{}]), allow_pickle=True))], "never unpickled"),
    "too large": ([("a.x.npy", BOMB)], "x.npy says it is .99999999,. of float32; it is smaller"),
    "text for numbers": ([("a.x.npy", npy(np.array(["a"])))], "must be numbers"),
    "no picture": ([("a.png", b"\x89PNG but no")], "not a readable picture"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_cannot_be_read_says_where(folder, case):
    members, said = WRONG[case]
    write_tar(folder / "bad-0.tar", members)
    with pytest.raises(UserError, match=said):
        Shards(f"{folder}/{{split}}-*.tar").open("bad")


def test_records_unlike_the_first_and_shards_that_are_none_are_refused(folder):
    write_tar(folder / "more-0.tar", [("a.png", png(PICTURES[0])), ("b.png", png(COLOUR))])
    with pytest.raises(UserError, match=r"more-0.tar, record 1: the picture is in colour"):
        Shards(f"{folder}/{{split}}-*.tar").open("more").read(np.arange(2))
    write_tar(folder / "side-0.tar", [("a.png", png(COLOUR)), ("b.png", png(COLOUR[:2]))])
    with pytest.raises(UserError, match=r"record 1: the picture is 2x5 .* give a size"):
        Shards(f"{folder}/{{split}}-*.tar").open("side").read(np.arange(2))
    with pytest.raises(UserError, match=r"no column 'token' of numbers"):
        Shards(f"{folder}/{{split}}-*.tar", columns=["token"]).open("train")
    whole = (folder / "train-2.tar").read_bytes()
    (folder / "cut-0.tar").write_bytes(whole[:-11_000])
    with pytest.raises(UserError, match=r"cut-0.tar"):
        Shards(f"{folder}/{{split}}-*.tar").open("cut")
    with tarfile.open(folder / "small-0.tar.gz", "w:gz"):
        pass
    with pytest.raises(UserError, match="is compressed: unpack it"):
        Shards(f"{folder}/{{split}}-*.tar*").open("small")
    (folder / "junk-0.array_record").write_bytes(b"junk" * 9)
    with pytest.raises(UserError, match=r"cannot read .*junk-0"):
        Shards(f"{folder}/{{split}}-*.array_record").open("junk")


@pytest.mark.slow
def test_a_run_learns_from_tars(folder):
    labels = RNG.integers(0, 10, 120)
    members = []
    for i, label in enumerate(labels):
        members += [(f"{i:06}.x.npy", npy(np.eye(10, dtype=np.float32)[label]))]
        members += [(f"{i:06}.cls", str(label).encode())]
    for number in range(3):
        write_tar(folder / f"own-{number}.tar", members[number * 80 : number * 80 + 80])
    source = dict(type="shards", path=f"{folder}/{{split}}-*.tar", num_classes=10)
    config = small(
        data=dict(source=source, splits=dict(train="own[:75%]", test="own[75%:]")),
        task=dict(type="classification", input="x"),
        model=dict(type="mlp", widths=(), outputs=10),
        optimizer=dict(type="adam", learning_rate=0.3),
        evaluate=dict(splits=("test",), every="end", batch_size=24),
    )
    assert train(config, folder / "run")["metrics"]["eval/test/accuracy"] == 1


@pytest.mark.slow
def test_fifty_gigabytes_of_tars_open_at_once_and_any_step_costs_what_the_tenth_costs(folder):
    """500 names of one shard of 100 MB, as in test_shards.py; indexed before the clock starts."""
    content = npy(RNG.integers(0, 50_000, 25_000, dtype=np.int32))
    write_tar(folder / "shard", [(f"{i:06}.tokens.npy", content) for i in range(1000)])
    for number in range(500):
        os.link(folder / "shard", folder / f"large-{number:05}.tar")
    whole = 500 * (folder / "shard").stat().st_size
    shards = Shards(f"{folder}/{{split}}-*.tar")
    start = time.process_time()
    shards.open("large")
    indexed = time.process_time() - start
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start = time.process_time()
    source = shards.open("large")
    opened = time.process_time() - start

    def seconds(step):
        ids, _ = sample_ids(0, step * 64 + np.arange(64), len(source))
        before = time.process_time()
        assert source.read(ids)["tokens"].shape == (64, 25_000)
        return time.process_time() - before

    seconds(0)
    turns = [(seconds(10 + k), seconds(7_000 + k)) for k in range(15)]
    tenth, late = np.median(turns, axis=0)
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - memory) / 2**20
    print(f"{whole / 1e9:.1f} GB, indexed {indexed:.1f} s, open {opened:.2f} s, {grown:.2f} GiB, "
          f"{tenth:.4f} and {late:.4f} s")  # fmt: skip
    assert whole > 50e9 and opened < 5 and grown < 1 and late < 1.1 * tenth
