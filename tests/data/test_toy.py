"""The Markov chain against its own description, by counting."""

import numpy as np
import pytest

from bigjax.core.errors import UserError
from bigjax.data.toy import MarkovTokens

CHAIN = MarkovTokens(vocab=8, length=20, branches=3, examples=5000)


def test_every_token_has_its_own_followers_with_the_stated_probabilities():
    tokens = CHAIN.open("train").read(np.arange(5000))["tokens"]
    counts = np.zeros((8, 8))
    np.add.at(counts, (tokens[:, :-1].ravel(), tokens[:, 1:].ravel()), 1)
    rates = -np.sort(-counts / counts.sum(1, keepdims=True))
    np.testing.assert_allclose(rates[:, :3], np.tile([6 / 11, 3 / 11, 2 / 11], (8, 1)), atol=0.02)
    assert not rates[:, 3:].any()
    assert len({tuple(np.flatnonzero(row)) for row in counts}) == 8


def test_entropy_is_that_of_the_next_token():
    p = np.array([6, 3, 2]) / 11
    assert CHAIN.entropy == pytest.approx(-(p * np.log(p)).sum())


def test_splits_are_repeatable_and_differ():
    train, again, test = (CHAIN.open(name).fingerprint() for name in ("train", "train", "test"))
    assert train == again != test


def test_more_branches_than_tokens_are_refused():
    with pytest.raises(UserError, match="branches: 9 must be from 1 to vocab 8"):
        MarkovTokens(vocab=8, branches=9)
