"""Rows of one length from lists of token ids: padding, pairs, tags. Pure; knows no files."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from bigjax.data.tokenizers import Template, Tokenizer

NOT_SCORED = -100  # the label of a token that no loss looks at, as in transformers
Ids = Sequence[int] | np.ndarray


def padded(rows: Sequence[Ids], length: int, pad: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows of ids, cut off at `length` -> tokens int32 (N, T), segments 1 where there is one, else 0."""
    tokens_NT = np.full((len(rows), length), pad, np.int32)
    segments_NT = np.zeros((len(rows), length), np.int32)
    for row, ids in enumerate(rows):
        size = min(len(ids), length)
        tokens_NT[row, :size] = ids[:size]
        segments_NT[row, :size] = 1
    return tokens_NT, segments_NT


def single_rows(tokenizer: Tokenizer, texts: Iterable[Ids], length: int) -> dict[str, np.ndarray]:
    """Texts with the tokenizer's special tokens around them, which are never cut off.

    Returns:
      "tokens", "segments", "types" (all 0), int32 (N, T).
    """
    template = tokenizer.single
    room = length - len(template.before) - len(template.after)
    rows = [[*template.before, *ids[:room], *template.after] for ids in texts]
    tokens_NT, segments_NT = padded(rows, length, tokenizer.pad or 0)
    return {"tokens": tokens_NT, "segments": segments_NT, "types": np.zeros_like(tokens_NT)}


def pair_rows(
    tokenizer: Tokenizer, firsts: Iterable[Ids], seconds: Iterable[Ids], length: int
) -> dict[str, np.ndarray]:
    """Pairs of texts in one row, as BERT reads them; tokens are cut from the longer of the two.

    Returns:
      "tokens", "segments" (1 for both), "types" (of the second text as the tokenizer says), (N, T).
    """
    template = tokenizer.pair
    room = length - len(template.before) - len(template.between) - len(template.after)
    rows, types_NT = [], []
    for first, second in zip(firsts, seconds, strict=True):
        first, second = _shortened(first, second, room)
        head = [*template.before, *first, *template.between]
        rows.append([*head, *second, *template.after])
        types = np.zeros(length, np.int32)
        types[len(head) : len(rows[-1])] = template.second_type
        types_NT.append(types)
    tokens_NT, segments_NT = padded(rows, length, tokenizer.pad or 0)
    return {"tokens": tokens_NT, "segments": segments_NT, "types": np.stack(types_NT)}


def tagged_rows(
    template: Template,
    sentences: Iterable[tuple[Sequence[Ids], Sequence[int]]],
    length: int,
    pad: int,
) -> dict[str, np.ndarray]:
    """Sentences as (the ids of each word, the tag of each word) -> rows with a label for each token.

    The first token of a word carries its tag; the others, and special tokens, are not scored.

    Returns:
      "tokens", "segments", "types", "labels", int32 (N, T).
    """
    rows, labels = [], []
    room = length - len(template.before) - len(template.after)
    for words, tags in sentences:
        ids = [i for word in words for i in word][:room]
        scored = [
            tag if position == 0 else NOT_SCORED
            for word, tag in zip(words, tags, strict=True)
            for position in range(len(word))
        ][:room]
        rows.append([*template.before, *ids, *template.after])
        labels.append([*[NOT_SCORED] * len(template.before), *scored])
    tokens_NT, segments_NT = padded(rows, length, pad)
    tags_NT, there_NT = padded(labels, length, 0)
    labels_NT = np.where(there_NT > 0, tags_NT, NOT_SCORED)
    types_NT = np.zeros_like(tokens_NT)
    return {"tokens": tokens_NT, "segments": segments_NT, "types": types_NT, "labels": labels_NT}


def _shortened(first: Ids, second: Ids, room: int) -> tuple[Ids, Ids]:
    """Cuts tokens from the end of the longer text, then from both in turn, until both fit."""
    short = min(len(first), len(second), room // 2)
    if len(first) >= len(second):
        second = second[: max(short, room - len(first))]
        return first[: room - len(second)], second
    first = first[: max(short, room - len(second))]
    return first, second[: room - len(first)]
