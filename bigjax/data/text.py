"""Text sources of a config: labelled text, tagged text, pairs (for documents: documents.py).

What they share is in text_source.py.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import numpy as np

from bigjax.core.errors import UserError
from bigjax.data.labels import Labels
from bigjax.data.text_files import Row, value_of
from bigjax.data.text_rows import padded, pair_rows, single_rows, tagged_rows
from bigjax.data.text_source import Columns, TextRows, TextSource
from bigjax.data.tokenizers import Tokenizer


@dataclasses.dataclass(frozen=True)
class Labelled:
    """A text source with the labels of its train split."""

    source: LabelledText | TaggedText
    labels: Labels

    def open(self, split: str) -> TextRows:
        """Opens a split; raises UserError naming the row of a label that train has not."""
        return self.source.open_with(split, self.labels, self._tokenizer)

    @functools.cached_property
    def _tokenizer(self) -> Tokenizer:
        """Read once for all splits: a published vocabulary takes a noticeable part of a start."""
        return self.source.open_tokenizer()


@dataclasses.dataclass(frozen=True)
class LabelledText(TextSource):
    """Texts with a label: "tokens", "segments", "types" int32 (T,), "label" int32 or float32 ().

    Labels of which one is no number are names, numbered in their sorted order in train.

    Attributes:
      text, pair: fields of the text and of a second one in the same row, if any.
      label: field of the label: integers, numbers or strings.
    """

    text: str = "text"
    pair: str | None = None
    label: str = "label"

    def open(self, split: str) -> TextRows:
        """Opens a split or a part of one; its labels are those of the split "train"."""
        return self.fit("train").open(split)

    def fit(self, split: str) -> Labelled:
        """Takes the labels from a split."""
        rows, which, _ = self.read_rows(split)
        values = [value_of(row, self.label, where) for where, row in rows[which]]
        return Labelled(self, Labels.fit(values, self.corpus().class_names(self.label) or ()))

    def open_with(self, split: str, labels: Labels, tokenizer: Tokenizer) -> TextRows:
        """Opens a split or a part of one; raises UserError naming the row of a bad field."""
        rows, texts, ids = self.read_texts(tokenizer, split)
        numbers = _numbered(labels, rows, self.label)
        if labels.dtype.kind == "i" and numbers.min() < 0:
            first = int(numbers.argmin())
            raise UserError(f"{rows[first][0]}: {self.label!r} should be a class from 0 up")
        return TextRows(
            {**self._assemble(tokenizer, *ids), "label": numbers},
            tokenizer,
            [one if self.pair else one[0] for one in texts],
            lambda lines: self.encode(tokenizer, lines, labels.dtype),
            self.text_fields(),
            labels.names,
        )

    def text_fields(self) -> tuple[str, ...]:
        return (self.text,) if self.pair is None else (self.text, self.pair)

    def _assemble(self, tokenizer: Tokenizer, *ids: Sequence[Sequence[int]]) -> Columns:
        return (single_rows if len(ids) == 1 else pair_rows)(tokenizer, *ids, self.length)

    def encode(self, tokenizer: Tokenizer, lines: list[str], dtype: Any = np.int32) -> Columns:
        parts = _parted(lines) if self.pair else [lines]
        columns = self._assemble(tokenizer, *(tokenizer.encode_batch(part) for part in parts))
        return {**columns, "label": np.zeros(len(lines), dtype)}


@dataclasses.dataclass(frozen=True)
class TaggedText(TextSource):
    """Sentences with a tag for each word: "tokens", "segments", "types", "labels" int32 (T,).

    The first token of a word carries the number of its tag, the tags of train sorted; other tokens have label -100 and are not scored. A row of a file holds two lists, or two strings of
    items parted by spaces.

    Attributes:
      words, tags: the fields.
    """

    words: str = "words"
    tags: str = "tags"

    def open(self, split: str) -> TextRows:
        """Opens a split or a part of one; its tags are those of the split "train"."""
        return self.fit("train").open(split)

    def fit(self, split: str) -> Labelled:
        """Takes the tags from a split."""
        rows, which, _ = self.read_rows(split)
        tags = [tag for where, row in rows[which] for tag in _items(row, self.tags, where)]
        return Labelled(self, Labels.fit(tags, kind="category"))

    def open_with(self, split: str, labels: Labels, tokenizer: Tokenizer) -> TextRows:
        """Opens a split or a part of one; raises UserError naming the row of a bad field."""
        rows, which, _ = self.read_rows(split)
        rows = rows[which]
        sentences = [_items(row, self.words, where) for where, row in rows]
        tags = [_items(row, self.tags, where) for where, row in rows]
        for (where, _), words, its_tags in zip(rows, sentences, tags, strict=True):
            if len(words) != len(its_tags):
                raise UserError(f"{where}: {len(words)} words but {len(its_tags)} tags")
        numbered = []
        for (where, _), its_tags in zip(rows, tags, strict=True):
            codes, problems = labels.encode(its_tags)
            if problems:
                raise UserError(f"{where}: a tag {next(iter(problems.values()))}")
            numbered.append(codes.tolist())
        return TextRows(
            self._assemble(tokenizer, sentences, numbered),
            tokenizer,
            [tuple(words) for words in sentences],
            lambda lines: self.encode(tokenizer, lines),
            self.text_fields(),
            labels.names,
        )

    def text_fields(self) -> tuple[str, ...]:
        return (self.words,)

    def _assemble(
        self, tokenizer: Tokenizer, sentences: list[list[str]], tags: list[list[int]]
    ) -> Columns:
        """Words are encoded one by one, each once however often it comes."""
        distinct = sorted({word for words in sentences for word in words})
        ids = dict(zip(distinct, tokenizer.encode_batch(distinct), strict=True))
        pairs = zip(([ids[word] for word in words] for words in sentences), tags, strict=True)
        return tagged_rows(tokenizer.single, pairs, self.length, tokenizer.pad or 0)

    def encode(self, tokenizer: Tokenizer, lines: list[str]) -> Columns:
        """A line is words parted by spaces; "labels" are 0 where a word begins."""
        sentences = [line.split() for line in lines]
        return self._assemble(tokenizer, sentences, [[0] * len(words) for words in sentences])


@dataclasses.dataclass(frozen=True)
class TextPairs(TextSource):
    """A text and what it should become: "source", "source_segments" int32 (S,), "target",
    "target_segments" int32 (T,).

    The source has the tokenizer's special tokens around it; the target begins with its bos (or cls,
    or, as in T5, pad) token and ends with its end token, which is kept where the text is cut off.

    Attributes:
      target_length: T; default `length`, which is S.
      source, target: the fields.
    """

    target_length: int | None = None
    source: str = "source"
    target: str = "target"

    def open(self, split: str) -> TextRows:
        """Opens a split or a part of one; raises UserError naming the row of a bad field."""
        tokenizer = self.open_tokenizer()
        _, texts, (sources, targets) = self.read_texts(tokenizer, split)
        return TextRows(
            self._assemble(tokenizer, sources, targets),
            tokenizer,
            texts,
            lambda lines: self.encode(tokenizer, lines),
            (self.source,),
        )

    def text_fields(self) -> tuple[str, ...]:
        return (self.source, self.target)

    def _assemble(
        self,
        tokenizer: Tokenizer,
        sources: Sequence[Sequence[int]],
        targets: Sequence[Sequence[int]],
    ) -> Columns:
        read = single_rows(tokenizer, sources, self.length)
        start = next((i for i in (tokenizer.bos, tokenizer.cls, tokenizer.pad) if i is not None), 0)
        end = [] if tokenizer.end is None else [tokenizer.end]
        length = self.target_length or self.length
        rows = [[start, *ids[: length - 1 - len(end)], *end] for ids in targets]
        target, target_segments = padded(rows, length, tokenizer.pad or 0)
        return {
            "source": read["tokens"],
            "source_segments": read["segments"],
            "target": target,
            "target_segments": target_segments,
        }

    def encode(self, tokenizer: Tokenizer, lines: list[str]) -> Columns:
        """The target is empty."""
        return self._assemble(tokenizer, tokenizer.encode_batch(lines), [[] for _ in lines])


@dataclasses.dataclass(frozen=True)
class SentencePairs(TextSource):
    """Two texts side by side: "a", "a_segments", "b", "b_segments" int32 (T,), "label" float32 ().

    Attributes:
      a, b: fields of the texts.
      label: field of a score, if there is one.
    """

    a: str = "a"
    b: str = "b"
    label: str | None = None

    def open(self, split: str) -> TextRows:
        """Opens a split or a part of one; raises UserError naming the row of a bad field."""
        tokenizer = self.open_tokenizer()
        rows, texts, ids = self.read_texts(tokenizer, split)
        columns = self._assemble(tokenizer, *ids)
        if self.label is not None:
            columns["label"] = _numbered(Labels("number"), rows, self.label)
        return TextRows(
            columns,
            tokenizer,
            texts,
            lambda lines: self.encode(tokenizer, lines),
            (self.a, self.b),
        )

    def text_fields(self) -> tuple[str, ...]:
        return (self.a, self.b)

    def _assemble(self, tokenizer: Tokenizer, *ids: Sequence[Sequence[int]]) -> Columns:
        columns = {}
        for name, texts in zip(("a", "b"), ids, strict=True):
            rows = single_rows(tokenizer, texts, self.length)
            columns |= {name: rows["tokens"], f"{name}_segments": rows["segments"]}
        return columns

    def encode(self, tokenizer: Tokenizer, lines: list[str]) -> Columns:
        """A line is two texts parted by a tab, or one that stands for both."""
        parts = _parted([line if "\t" in line else f"{line}\t{line}" for line in lines])
        columns = self._assemble(tokenizer, *(tokenizer.encode_batch(part) for part in parts))
        label = {} if self.label is None else {"label": np.zeros(len(lines), np.float32)}
        return {**columns, **label}


def _numbered(labels: Labels, rows: list[Row], field: str) -> np.ndarray:
    """The labels of rows, int32 or float32 (N,); UserError naming the first row of a bad one."""
    numbers, problems = labels.encode([value_of(row, field, where) for where, row in rows])
    if problems:
        first = min(problems)
        raise UserError(f"{rows[first][0]}: {field!r} {problems[first]}")
    return numbers


def _items(row: dict[str, Any], field: str, where: str) -> list[str]:
    """A list of strings, or the parts of a string between spaces; never empty."""
    value = value_of(row, field, where)
    items = value.split() if isinstance(value, str) else value
    if not isinstance(items, list) or not all(isinstance(item, str) for item in items):
        raise UserError(f"{where}: {field!r} is neither a list of strings nor a string")
    if not items:
        raise UserError(f"{where}: {field!r} is empty")
    return items


def _parted(lines: list[str]) -> tuple[list[str], list[str]]:
    """The texts before and after the tab of each line."""
    parts = [line.split("\t") for line in lines]
    for number, pair in enumerate(parts, start=1):
        if len(pair) != 2:
            raise UserError(f"line {number}: two texts are parted by one tab, here are others")
    return [first for first, _ in parts], [second for _, second in parts]
