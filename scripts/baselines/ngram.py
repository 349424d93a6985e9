"""Bits per byte of a text under simple models: a byte n-gram, gzip, xz. What a neural model must beat.

    .venv/bin/python -m scripts.baselines.ngram brown --order=5

Each document is scored from its beginning, knowing the training text. gzip and xz, which know only
32 kB and all of what came before, are given the test text alone, and then after the training text:
the bytes they need more.
"""

from __future__ import annotations

import argparse
import gzip
import lzma
import sys

import numpy as np

from bigjax.core.errors import UserError
from bigjax.data.text_files import open_corpus, text_of


class NGram:
    """Byte n-gram with interpolated Witten-Bell smoothing (Chen & Goodman 1998, eq. 17).

    p(b | h) = (count(h b) + kinds(h) p(b | h')) / (count(h) + kinds(h)), where h' is h without its
    first byte, kinds(h) how many different bytes followed h, and the last h' gives every byte 1/256.
    """

    def __init__(self, order: int):
        if not 1 <= order <= 7:
            raise UserError(f"--order={order}: contexts of 1 to 7 bytes are 64-bit numbers")
        self.order = order

    def fit(self, documents: list[bytes]) -> NGram:
        """Counts the training documents, each after `order - 1` zero bytes."""
        self.counts = []
        for n in range(1, self.order + 1):
            grams, counts = np.unique(_grams(documents, n, self.order), return_counts=True)
            first = np.flatnonzero(np.diff(grams >> 8, prepend=-1))  # of each history
            totals = np.add.reduceat(counts, first)
            kinds = np.diff(first, append=len(grams))
            self.counts.append((grams, counts, grams[first] >> 8, totals, kinds))
        return self

    def bits(self, documents: list[bytes]) -> float:
        """-log2 of the probability of the documents."""
        p = np.full(sum(map(len, documents)), 1 / 256)
        for n, (grams, counts, histories, totals, kinds) in enumerate(self.counts, start=1):
            seen = _grams(documents, n, self.order)
            count = _look_up(grams, counts, seen)
            total, kind = (_look_up(histories, values, seen >> 8) for values in (totals, kinds))
            known = total > 0  # else the shorter history says all
            p[known] = ((count + kind * p) / np.maximum(total + kind, 1))[known]
        return float(-np.log2(p).sum())


def _grams(documents: list[bytes], n: int, order: int) -> np.ndarray:
    """For every byte, it and the n - 1 before it as one number, int64."""
    padding = bytes(order - 1)
    text = np.frombuffer(b"".join(padding + document for document in documents), np.uint8)
    grams = np.zeros(len(text), np.int64)
    for back in range(n):
        grams[back:] += text[: len(text) - back].astype(np.int64) << (8 * back)
    lengths = [len(document) for document in documents]
    real = np.ones(len(text), bool)
    starts = np.cumsum([0, *lengths[:-1]]) + np.arange(len(documents)) * (order - 1)
    for offset in range(order - 1):
        real[starts + offset] = False
    return grams[real]


def _look_up(keys: np.ndarray, values: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    at = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
    return np.where(keys[at] == wanted, values[at], 0)


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("path", help="as `path` of the source `documents`")
    parser.add_argument("--order", type=int, default=5)
    options = parser.parse_args(arguments)
    try:
        corpus = open_corpus(options.path)
        train, test = (
            [text_of(row, "text", where).encode() for where, row in corpus.rows(split)]
            for split in ("train", "test")
        )
        model = NGram(options.order).fit(train)
    except UserError as error:
        print(f"ngram: {error}", file=sys.stderr)
        return 2
    size = sum(map(len, test))
    print(f"{size:,} bytes to predict after {sum(map(len, train)):,}; bits per byte:")
    print(f"{options.order}-gram of bytes, Witten-Bell  {model.bits(test) / size:.3f}")
    for name, compress in (("gzip -9", gzip.compress), ("xz -9e", _xz)):
        alone = len(compress(b"".join(test)))
        after = len(compress(b"".join(train + test))) - len(compress(b"".join(train)))
        print(
            f"{name}: alone {8 * alone / size:.3f}, after the training text {8 * after / size:.3f}"
        )
    return 0


def _xz(content: bytes) -> bytes:
    return lzma.compress(content, preset=9 | lzma.PRESET_EXTREME)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
