"""What the text sources share: a corpus (text_files.py) and a tokenizer (tokenizers.py).

`open(split)` gives a Source of fixed-shape integers, with the tokenizer at hand and `encode`, which does the
same to lines of a user.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from bigjax.core.errors import UserError
from bigjax.data.sources import Arrays
from bigjax.data.splits import subsplit
from bigjax.data.text_files import Corpus, Row, TFDSCorpus, open_corpus, text_of, value_of
from bigjax.data.token_cache import tokenize_once
from bigjax.data.tokenizers import Tokenizer, open_tokenizer

Columns = dict[str, np.ndarray]


class TextRows(Arrays):
    """Arrays that remember the tokenizer, the texts they came from, and how to encode more.

    Attributes:
      tokenizer: what made the ids.
      vocab_size: ids are below it.
      texts: what each row came from: a text, or a tuple of two, or a tuple of words.
      encode: lines of a user -> columns like those of the source; labels are zeros.
      fields: of a row of a file, what becomes such a line, parted by tabs.
    """

    def __init__(
        self,
        columns: Columns,
        tokenizer: Tokenizer,
        texts: Sequence[Any],
        encode: Callable[[list[str]], Columns],
        fields: Sequence[str],
        class_names: Sequence[str] | None = None,
    ):
        super().__init__(columns, class_names)
        self.tokenizer, self.texts, self.encode = tokenizer, texts, encode
        self.fields = fields
        self.vocab_size = tokenizer.vocab_size


@dataclasses.dataclass(frozen=True)
class TextSource:
    """What all text sources take.

    Attributes:
      path: a file with {split} in its name, a folder, a fetched set such as "brown", "tfds:NAME".
      tokenizer: a folder or name of a published tokenizer, or one to train on the split "train" of
        this corpus: "bpe-4096", "wordpiece-8192", "unigram-8000"; or on the field "text" of another:
        "wordpiece-4096@brown", as the weights that were trained there need it.
      length: tokens of a row; what is longer is cut off at the end.
      data_dir: of fetched sets and caches; default $TFDS_DATA_DIR or ~/tensorflow_datasets.
    """

    path: str
    tokenizer: str
    length: int = 128
    data_dir: str | None = None

    def __post_init__(self):
        if self.length < 4:
            raise UserError(f"length: a row needs at least 4 tokens, got {self.length}")

    def corpus(self) -> Corpus | TFDSCorpus:
        """The files; raises UserError if there are none."""
        return open_corpus(self.path, getattr(self, "unit", "file"), self.data_dir)

    def open_tokenizer(self) -> Tokenizer:
        """The tokenizer, trained on this or the named corpus if it is one to train."""
        name, _, other = self.tokenizer.partition("@")
        if other:
            training = _TrainedOn(open_corpus(other, data_dir=self.data_dir), ("text",))
        else:
            training = _TrainedOn(self.corpus(), self.text_fields())
        return open_tokenizer(name, training, self.data_dir)

    def text_fields(self) -> tuple[str, ...]:
        """The fields that hold text."""
        raise NotImplementedError

    def encode(self, tokenizer: Tokenizer, lines: list[str]) -> Columns:
        """Lines of a user -> columns like those of a split; labels are zeros."""
        raise NotImplementedError

    def read_rows(self, split: str) -> tuple[list[Row], slice, str]:
        """All rows of the split that `split` is a part of, which of them, and their fingerprint."""
        corpus, rows = self.corpus(), []

        def length(name: str) -> int:
            rows.extend(corpus.rows(name))
            return len(rows)

        name, which = subsplit(split, length)
        return rows, which, corpus.fingerprint(name)

    def read_texts(
        self, tokenizer: Tokenizer, split: str
    ) -> tuple[list[Row], list[tuple[str, ...]], list[list[np.ndarray]]]:
        """The rows of a split, the texts of each, and of each field the token ids, from the cache."""
        rows, which, fingerprint = self.read_rows(split)
        fields = self.text_fields()
        texts = [tuple(text_of(row, field, where) for field in fields) for where, row in rows]
        ids = []
        for field, column in zip(fields, zip(*texts, strict=True), strict=True):
            mark = f"{fingerprint} {field}"
            tokens = tokenize_once(
                tokenizer, [lambda c=column: iter(c)], mark, data_dir=self.data_dir
            )
            ids.append(np.split(np.asarray(tokens.flat), tokens.offsets[1:-1])[which])
        return rows[which], texts[which], ids


@dataclasses.dataclass(frozen=True)
class _TrainedOn:
    """What a tokenizer is trained on: the text fields of the split "train"."""

    corpus: Corpus | TFDSCorpus
    fields: tuple[str, ...]

    def texts(self) -> Iterator[str]:
        for where, row in self.corpus.rows("train"):
            for field in self.fields:
                value = value_of(row, field, where)
                yield " ".join(map(str, value)) if isinstance(value, list) else str(value)

    def fingerprint(self) -> str:
        return f"{self.corpus.fingerprint('train')} {' '.join(self.fields)}"
