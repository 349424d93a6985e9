"""The text source for language modelling: documents, packed into rows or one by one.

Token ids stay in the memory-mapped cache; a row is a pure function of them and its number.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Iterator

import numpy as np

from bigjax.core.errors import UserError
from bigjax.data import packing
from bigjax.data.sources import Features
from bigjax.data.splits import subsplit
from bigjax.data.text_files import Row, text_of
from bigjax.data.text_rows import padded
from bigjax.data.text_source import Columns, TextSource
from bigjax.data.token_cache import Tokens, tokenize_once
from bigjax.data.tokenizers import Tokenizer


class DocumentRows:
    """A Source of the rows of some documents in the token cache.

    Attributes:
      tokenizer: what made the ids; vocab_size: they are below it.
      encode: lines of a user -> columns like those of the source.
      fields: of a row of a file, what becomes such a line.
    """

    class_names = None
    num_classes = None

    def __init__(
        self,
        tokens: Tokens,
        documents: slice,
        tokenizer: Tokenizer,
        config: Documents,
        texts: Callable[[], list[str]],
        encode: Callable[[list[str]], Columns],
    ):
        self._flat = tokens.flat
        self._offsets = tokens.offsets[documents.start : documents.stop + 1]
        self._total = packing.totals(tokens.sizes[documents])
        self._length, self._pad, self._texts = config.length, tokenizer.pad or 0, texts
        if config.pack:
            first, last = int(self._offsets[0]), int(self._offsets[-1])
            self._rows = packing.packed_rows(first, last, config.length)
        else:
            self._rows = packing.document_rows(self._offsets, config.length)
        self.tokenizer, self.encode, self.fields = tokenizer, encode, config.text_fields()
        self.vocab_size = tokenizer.vocab_size
        self.features = config.features
        identity = f"{tokens.fingerprint} {documents} {config.length} {config.pack}"
        self._identity = hashlib.sha256(identity.encode()).hexdigest()

    @property
    def texts(self) -> list[str]:
        """The documents, read from the files anew."""
        return self._texts()

    def __len__(self) -> int:
        return len(self._rows)

    def read(self, ids: np.ndarray) -> Columns:
        ids = np.asarray(ids)
        tokens, segments = packing.read_rows(
            self._flat, self._offsets, self._rows, ids, self._length, self._pad
        )
        sizes = packing.row_bytes(self._offsets, self._total, self._rows, ids)
        return {"tokens": tokens, "segments": segments, "bytes": sizes}

    def fingerprint(self) -> str:
        return self._identity


@dataclasses.dataclass(frozen=True)
class Documents(TextSource):
    """Texts to predict token by token: "tokens", "segments" int32 (T,), "bytes" int32 ().

    Each document begins with the tokenizer's start token and ends with its end token, if it has
    one. "bytes" are the UTF-8 bytes that a row's predicted tokens stand for; over a split they add
    up to the size of its texts.

    Attributes:
      pack: rows are cut from the documents one after the other, with a segment id for each; else a
        row holds (a piece of) one document.
      unit: what one document of a .txt is: "file", "paragraph" (between blank lines) or "line".
      field: of .jsonl, .csv and TFDS sets.
      prompt: what predict makes of a line, e.g. "Question: {}\\nAnswer:"; the tokenizer's special
        tokens may stand in it. Default: the start token, then the line.
    """

    pack: bool = True
    unit: str = "file"
    field: str = "text"
    prompt: str | None = None

    def __post_init__(self):
        super().__post_init__()
        if self.prompt is not None and self.prompt.count("{}") != 1:
            raise UserError(f"prompt: {self.prompt!r} should hold {{}} once, for the line")

    @property
    def features(self) -> Features:
        """Of the rows, whatever the texts are."""
        row = ((self.length,), np.dtype(np.int32))
        return {"tokens": row, "segments": row, "bytes": ((), np.dtype(np.int32))}

    def open(self, split: str) -> DocumentRows:
        """Opens a split or a part of one: train[:90%] is the first 90 % of its documents."""
        corpus, tokenizer = self.corpus(), self.open_tokenizer()
        if tokenizer.start is None:
            raise UserError(
                f"tokenizer {self.tokenizer!r} has no token to begin a document with (bos, cls, eos)"
            )
        opened: list[Tokens] = []

        def length(name: str) -> int:
            identity = f"{corpus.fingerprint(name)} {self.field}"
            opened.append(
                tokenize_once(
                    tokenizer,
                    [lambda shard=shard: self._texts(shard()) for shard in corpus.shards(name)],
                    identity,
                    whole=True,
                    data_dir=self.data_dir,
                )
            )
            return len(opened[0])

        name, which = subsplit(split, length)
        return DocumentRows(
            opened[0],
            which,
            tokenizer,
            self,
            texts=lambda: list(self._texts(corpus.rows(name)))[which],
            encode=lambda lines: self.encode(tokenizer, lines),
        )

    def text_fields(self) -> tuple[str, ...]:
        return (self.field,)

    def _texts(self, rows: Iterator[Row]) -> Iterator[str]:
        return (text_of(row, self.field, where) for where, row in rows)

    def encode(self, tokenizer: Tokenizer, lines: list[str]) -> Columns:
        """Lines to go on from, or to embed: an encoder's closing [SEP] is put, an end token not."""
        before = [tokenizer.start] if self.prompt is None else []
        after = [] if tokenizer.sep is None else [tokenizer.sep]
        texts = [line if self.prompt is None else self.prompt.replace("{}", line) for line in lines]
        room = self.length - len(before) - len(after)
        rows = [[*before, *ids[:room], *after] for ids in tokenizer.encode_batch(texts)]
        tokens, segments = padded(rows, self.length, tokenizer.pad or 0)
        sizes = np.array([len(line.encode()) for line in lines], np.int32)
        return {"tokens": tokens, "segments": segments, "bytes": sizes}
