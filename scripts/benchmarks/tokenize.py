"""What tokenizing and packing costs beside the bare `tokenizers` library, in turns on the same texts.

    .venv/bin/python -m scripts.benchmarks.tokenize [--rounds=9] [--out=FILE]      writes results/tokenize.json

Both are given the Brown corpus' training texts in memory and the same trained BPE of 4,096. The bare
rate is `encode_batch` of all texts at once, ids in Python lists. Ours ends in the memory-mapped cache
on disk, verified, and in every packed row of 256 read in batches of 64: what a run does, once.
"""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
import time
from pathlib import Path

import numpy as np

from bigjax.data import packing
from bigjax.data.documents import Documents
from bigjax.data.text_files import open_corpus
from bigjax.data.token_cache import tokenize_once
from bigjax.data.tokenizers import Tokenizer
from scripts.benchmarks.measure import machine, summary

TARGET = 1.1
LENGTH, BATCH = 256, 64
RESULT = Path(__file__).parent / "results" / "tokenize.json"


def bare(tokenizer: Tokenizer, texts: list[str]) -> tuple[float, int]:
    """Seconds and tokens of the library alone."""
    library = tokenizer._library
    start = time.perf_counter()
    encoded = library.encode_batch(texts, add_special_tokens=False)
    tokens = sum(len(one.ids) for one in encoded)
    return time.perf_counter() - start, tokens


def ours(tokenizer: Tokenizer, texts: list[str]) -> tuple[float, int]:
    """Seconds and tokens of texts -> cache -> all packed rows."""
    folder = tempfile.mkdtemp()
    start = time.perf_counter()
    tokens = tokenize_once(tokenizer, [lambda: iter(texts)], "brown", whole=True, data_dir=folder)
    rows = packing.packed_rows(0, int(tokens.offsets[-1]), LENGTH)
    for first in range(0, len(rows), BATCH):
        ids = np.arange(first, min(first + BATCH, len(rows)))
        packing.read_rows(tokens.flat, tokens.offsets, rows, ids, LENGTH, 0)
        packing.row_bytes(tokens.offsets, packing.totals(tokens.sizes), rows, ids)
    seconds = time.perf_counter() - start
    shutil.rmtree(folder)
    return seconds, int(tokens.offsets[-1]) - 2 * len(texts)  # each text gets a start and an end


def main(rounds: int, out: Path) -> None:
    tokenizer = Documents("brown", "bpe-4096").open_tokenizer()
    texts = [row["text"] for _, row in open_corpus("brown").rows("train")]
    found = {"bare": [], "ours": []}
    for turn in range(rounds + 1):
        for name, contestant in (("bare", bare), ("ours", ours)):
            seconds, tokens = contestant(tokenizer, texts)
            if turn:  # the first round warms up
                found[name].append(tokens / seconds)
            print(f"{name}: {tokens:,} tokens in {seconds:.2f} s", flush=True)
    ratios = [b / o for b, o in zip(found["bare"], found["ours"], strict=True)]
    result = {
        "tokens_per_second": {name: summary(rates) for name, rates in found.items()},
        "time_beside_bare": summary(ratios),
        "target": TARGET,
        "machine": machine(),
    }
    out.write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--out", type=Path, default=RESULT)
    main(**vars(parser.parse_args()))
