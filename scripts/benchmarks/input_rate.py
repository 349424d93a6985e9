"""Whether tokens come at 200 MB/s (int32, as the devices get them): what they cost, and the wait for them.

    .venv/bin/python -m scripts.benchmarks.input_rate [--seconds=10] [--out=FILE]    default results/input_rate.json

Sources: `documents` packed into rows of 2048 from a token cache of 200 MB; Parquet shards of such rows in
groups of 50, all rows shuffled and 64 groups interleaved, and tars of them, a row a record and 64 rows a record.
`mb_per_processor_second` is what the whole process spends for a megabyte, order, masks and placing included;
`wait` is the part of the time that a consumer waited which takes a batch of 64 rows every 2.6 ms (and one of 512
every 21 ms), 200 MB/s, and does nothing else: until it has the batch, and all of it is on the device.
"""

import argparse
import io
import json
import tarfile
import tempfile
import time
import types
from pathlib import Path

import jax
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from bigjax.core import settings
from bigjax.data.documents import DocumentRows, Documents
from bigjax.data.pipeline import train_batches
from bigjax.data.shards import Shards
from bigjax.data.token_cache import Tokens
from bigjax.mesh.sharding import batch_sharding, make_mesh
from scripts.benchmarks.measure import machine

RESULT = Path(__file__).parent / "results" / "input_rate.json"
RATE, LENGTH, ROWS = 200e6, 2048, 12_800
RNG = np.random.default_rng(0)


def documents(folder: Path, rows: int) -> tuple[DocumentRows, int]:
    """(source, rows of a batch)"""
    flat = np.lib.format.open_memmap(folder / "flat.npy", "w+", np.uint16, (100_000_000,))
    flat[:] = RNG.integers(0, 50_000, len(flat), dtype=np.uint16)
    offsets = np.arange(0, len(flat) + 1, 1000)
    tokens = Tokens(flat, offsets, np.full(len(offsets) - 1, 4000), "made up")
    tokenizer = types.SimpleNamespace(pad=0, vocab_size=50_000)
    config = Documents("unused", "unused", LENGTH)
    return DocumentRows(tokens, slice(0, len(tokens)), tokenizer, config, list, dict), rows


def parquet(folder: Path, interleave: int | None) -> tuple[object, int]:
    tokens = pa.array(RNG.integers(0, 50_000, ROWS * LENGTH, dtype=np.int32))
    table = pa.table({"tokens": pa.FixedSizeListArray.from_arrays(tokens, LENGTH)})
    options = dict(row_group_size=50, compression="none", use_dictionary=False)
    pq.write_table(table, folder / "train-0.parquet", **options)
    shards = Shards(f"{folder}/{{split}}-*.parquet", interleave=interleave)
    return shards.open("train"), 64


def tars(folder: Path, together: int) -> tuple[object, int]:
    """A record holds so many rows."""
    rows = RNG.integers(0, 50_000, (ROWS // together, together, LENGTH), dtype=np.int32)
    with tarfile.open(folder / "train-0.tar", "w") as tar:
        for i, record in enumerate(rows):
            file = io.BytesIO()
            np.save(file, record)
            info = tarfile.TarInfo(f"{i:06}.tokens.npy")
            info.size = file.tell()
            tar.addfile(info, io.BytesIO(file.getvalue()))
    shards = Shards(f"{folder}/{{split}}-*.tar", data_dir=str(folder))
    return shards.open("train"), 64 // together


SOURCES = {
    "documents": lambda folder: documents(folder, 64),
    "documents, 512 rows a batch": lambda folder: documents(folder, 512),
    "parquet": lambda folder: parquet(folder, None),
    "parquet, interleaved": lambda folder: parquet(folder, 64),
    "tar, a row a record": lambda folder: tars(folder, 1),
    "tar, 64 rows a record": lambda folder: tars(folder, 64),
}


def measure(source: object, rows: int, seconds: float) -> dict[str, float]:
    mesh = make_mesh(settings.Mesh(), jax.devices())
    batches = train_batches(
        source, batch_size=rows, seed=0, start_step=0, sharding=batch_sharding(mesh)
    )
    for _ in range(20):
        size = next(batches)["tokens"].nbytes
    own, wall, count = time.process_time(), time.perf_counter(), 0
    while time.perf_counter() - wall < seconds:
        jax.block_until_ready(next(batches))
        count += 1
    spent, took = time.process_time() - own, time.perf_counter() - wall
    time.sleep(0.1)  # what is read ahead is there when the paced part begins
    start, waited, due = time.perf_counter(), 0.0, 0.0
    while time.perf_counter() - start < seconds:
        before = time.perf_counter()
        batch = next(batches)
        if not all(values.is_ready() for values in batch.values()):
            jax.block_until_ready(batch)
        waited += time.perf_counter() - before
        due += size / RATE
        time.sleep(max(0.0, start + due - time.perf_counter()))
    paced = time.perf_counter() - start
    batches.close()
    return {
        "mb_per_processor_second": round(count * size / 1e6 / spent),
        "mb_per_second": round(count * size / 1e6 / took),
        "wait": round(waited / paced, 4),
        "reached_mb_per_second": round(due * RATE / 1e6 / paced),
        "load_average": machine()["load_average"],
    }


def main(seconds: float, out: Path) -> None:
    found = {}
    for name, made in SOURCES.items():
        with tempfile.TemporaryDirectory() as folder:
            found[name] = measure(*made(Path(folder)), seconds)
        print(name, found[name], flush=True)
    result = {"target": {"mb_per_second": 200, "wait": 0.01}, "found": found, "machine": machine()}
    out.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=10.0, help="of each source, twice")
    parser.add_argument("--out", type=Path, default=RESULT)
    options = parser.parse_args()
    main(options.seconds, options.out)
