"""Packing: every token in one place, its segment right, a row the same whoever reads it."""

import hashlib

import hypothesis
import hypothesis.strategies as st
import numpy as np

from bigjax.data import packing

LENGTHS = st.integers(2, 9)
# Documents of at least a start token and one more; each token's value is its place in the corpus.
SIZES = st.lists(st.integers(2, 25), min_size=1, max_size=8)
BYTES = st.integers(1, 100)


def corpus(sizes):
    return np.arange(sum(sizes)), np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)


def document_of(offsets, token):
    """By going through the documents one after the other."""
    for document, stop in enumerate(offsets[1:]):
        if token < stop:
            return document
    raise AssertionError


def read_all(flat, offsets, rows, length):
    return packing.read_rows(flat, offsets, rows, np.arange(len(rows)), length, pad=-1)


def predicted(tokens, segments):
    """Tokens that a causal model predicts: those after another of their segment in their row."""
    real = (segments[:, 1:] > 0) & (segments[:, 1:] == segments[:, :-1])
    return tokens[:, 1:][real]


@hypothesis.given(SIZES, LENGTHS)
@hypothesis.settings(deadline=None, max_examples=200)
def test_every_token_but_a_documents_first_is_predicted_exactly_once(sizes, length):
    flat, offsets = corpus(sizes)
    expected = sorted(set(flat.tolist()) - set(offsets[:-1].tolist()))
    for rows in (
        packing.packed_rows(0, len(flat), length),
        packing.document_rows(offsets, length),
    ):
        tokens, segments = read_all(flat, offsets, rows, length)
        assert sorted(predicted(tokens, segments).tolist()) == expected


@hypothesis.given(SIZES, LENGTHS)
@hypothesis.settings(deadline=None, max_examples=200)
def test_packed_rows_hold_every_token_in_order_and_overlap_by_one(sizes, length):
    flat, offsets = corpus(sizes)
    rows = packing.packed_rows(0, len(flat), length)
    tokens, segments = read_all(flat, offsets, rows, length)
    assert tokens[0, 0] == 0
    assert tokens[:, 1:][segments[:, 1:] > 0].tolist() == flat[1:].tolist()
    assert tokens[1:, 0].tolist() == tokens[:-1, -1].tolist()


@hypothesis.given(SIZES, LENGTHS)
@hypothesis.settings(deadline=None, max_examples=200)
def test_a_segment_is_one_document_numbered_from_one_and_padding_is_zero(sizes, length):
    flat, offsets = corpus(sizes)
    for rows in (
        packing.packed_rows(0, len(flat), length),
        packing.document_rows(offsets, length),
    ):
        tokens, segments = read_all(flat, offsets, rows, length)
        for row, row_segments in zip(tokens.tolist(), segments.tolist(), strict=True):
            first = document_of(offsets, row[0])
            wanted = [0 if t < 0 else document_of(offsets, t) - first + 1 for t in row]
            assert row_segments == wanted


@hypothesis.given(SIZES, LENGTHS, st.data())
@hypothesis.settings(deadline=None, max_examples=100)
def test_a_row_is_a_pure_function_of_its_number(sizes, length, data):
    flat, offsets = corpus(sizes)
    rows = packing.packed_rows(0, len(flat), length)
    everything = read_all(flat, offsets, rows, length)
    ids = np.array(data.draw(st.lists(st.integers(0, len(rows) - 1), min_size=1, max_size=5)))
    some = packing.read_rows(flat, offsets, rows, ids, length, pad=-1)
    for column, whole in zip(some, everything, strict=True):
        assert np.array_equal(column, whole[ids])


@hypothesis.given(st.lists(st.tuples(st.integers(2, 25), BYTES), min_size=1, max_size=8), LENGTHS)
@hypothesis.settings(deadline=None, max_examples=200)
def test_the_bytes_of_all_rows_are_the_bytes_of_the_texts(documents, length):
    flat, offsets = corpus([size for size, _ in documents])
    sizes = np.array([number for _, number in documents])
    for rows in (
        packing.packed_rows(0, len(flat), length),
        packing.document_rows(offsets, length),
    ):
        found = packing.row_bytes(offsets, packing.totals(sizes), rows, np.arange(len(rows)))
        assert found.min() >= 0 and found.sum() == sizes.sum()


def test_a_part_of_the_documents_is_packed_by_itself():
    """Documents 1 and 2 of four, by hand."""
    flat, offsets = np.arange(14), np.array([0, 3, 7, 10, 14])
    rows = packing.packed_rows(3, 10, 4)
    tokens, segments = packing.read_rows(flat, offsets[1:4], rows, np.arange(2), 4, pad=99)
    assert tokens.tolist() == [[3, 4, 5, 6], [6, 7, 8, 9]]
    assert segments.tolist() == [[1, 1, 1, 1], [1, 2, 2, 2]]
    total = packing.totals(np.array([30, 8]))
    assert packing.row_bytes(offsets[1:4], total, rows, np.arange(2)).tolist() == [30, 8]


def test_a_document_longer_than_a_row_goes_on_in_the_next():
    rows = packing.document_rows(np.array([0, 6, 8]), 4)
    tokens, segments = packing.read_rows(
        np.arange(8), np.array([0, 6, 8]), rows, np.arange(3), 4, pad=0
    )
    assert tokens.tolist() == [[0, 1, 2, 3], [3, 4, 5, 0], [6, 7, 0, 0]]
    assert segments.tolist() == [[1, 1, 1, 1], [1, 1, 1, 0], [1, 1, 0, 0]]


def test_rows_are_held_still():
    """A change here changes the data of every published run: the digests are those of 26 November 2026."""
    sizes = np.array([2 + 7 * i % 23 for i in range(40)])
    _, offsets = corpus(sizes)
    flat = (np.arange(sizes.sum()) * 7919 % 50_000).astype(np.uint16)
    for rows, known in (
        (packing.packed_rows(0, len(flat), 9), "9c51beef6570d0f9"),
        (packing.document_rows(offsets, 9), "5822df67e594553f"),
    ):
        read = packing.read_rows(flat, offsets, rows, np.arange(len(rows))[::-1], 9, pad=3)
        sizes_of = packing.row_bytes(
            offsets, packing.totals(5 * sizes + 1), rows, np.arange(len(rows))
        )
        digest = hashlib.sha256(b"".join(x.tobytes() for x in (*read, sizes_of))).hexdigest()
        assert digest[:16] == known
