"""What the experiments' figures are held against, against sums by hand."""

import math
from collections import Counter

import pytest

from bigjax.core.errors import UserError
from scripts.baselines.frequent_tag import accuracy
from scripts.baselines.ngram import NGram

TEXTS = [b"abracadabra", b"", b"a", b"banana bandana"]


def witten_bell(order, byte, history):
    """p(byte | history) by counting the training texts anew, one history after the other."""
    if order == 0:
        return 1 / 256
    context = history[len(history) - (order - 1) :]
    followers = Counter()
    for text in TEXTS:
        padded = bytes(9) + text
        for i in range(9, len(padded)):
            if padded[i - len(context) : i] == context:
                followers[padded[i]] += 1
    shorter = witten_bell(order - 1, byte, history)
    total, kinds = followers.total(), len(followers)
    return (followers[byte] + kinds * shorter) / (total + kinds) if total else shorter


@pytest.mark.parametrize("order", [1, 2, 4])
def test_an_ngrams_bits_are_those_of_the_recursion(order):
    model, expected = NGram(order).fit(TEXTS), 0.0
    for text in (b"a cab", b"nab"):
        for i, byte in enumerate(text):
            expected -= math.log2(witten_bell(order, byte, bytes(9) + text[:i]))
    assert model.bits([b"a cab", b"nab"]) == pytest.approx(expected, rel=1e-12)


def test_the_probabilities_of_all_bytes_add_up_to_one():
    model = NGram(3).fit(TEXTS)
    start = model.bits([b"ba"])
    after = [model.bits([b"ba" + bytes([byte])]) - start for byte in range(256)]
    assert sum(2**-bits for bits in after) == pytest.approx(1)


def test_an_order_of_which_no_context_fits_a_number_is_refused():
    with pytest.raises(UserError, match="--order=9"):
        NGram(9)


def test_a_word_has_its_most_frequent_tag_and_a_new_one_that_of_rare_words():
    train = [
        ("run", "vb"),
        ("run", "nn"),
        ("run", "vb"),
        ("the", "at"),
        ("the", "at"),
        ("cat", "nn"),
    ]
    test = [("run", "vb"), ("run", "nn"), ("the", "at"), ("dog", "nn"), ("dog", "vb")]
    assert accuracy(train, test) == 3 / 5
