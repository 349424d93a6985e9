"""Token sequences made up on the spot, whose best possible loss is known: for tests and first runs."""

from __future__ import annotations

import dataclasses
import zlib

import numpy as np

from bigjax.core.errors import UserError
from bigjax.data.sources import Arrays


@dataclasses.dataclass(frozen=True)
class MarkovTokens:
    """ "tokens" int32 (length,): every token is followed by one of `branches` others, the k-th (from 1)
    with probability proportional to 1 / k.

    Which others is the same in all splits and differs between tokens; the splits' sequences differ.
    """

    vocab: int = 64
    length: int = 32
    branches: int = 4
    examples: int = 4096  # of each split
    seed: int = 0

    def __post_init__(self) -> None:
        if not 1 <= self.branches <= self.vocab:
            raise UserError(f"branches: {self.branches} must be from 1 to vocab {self.vocab}")

    def open(self, split: str) -> Arrays:
        """Any name is a split."""
        chain = np.random.default_rng(self.seed)
        order = chain.permutation(self.vocab)
        offsets = chain.choice(self.vocab, self.branches, replace=False)
        draw = np.random.default_rng([self.seed, zlib.crc32(split.encode())])
        tokens = np.empty((self.examples, self.length), np.int32)
        tokens[:, 0] = draw.integers(self.vocab, size=self.examples)
        for t in range(1, self.length):
            branch = draw.choice(self.branches, self.examples, p=self.probabilities)
            tokens[:, t] = order[(tokens[:, t - 1] + offsets[branch]) % self.vocab]
        return Arrays({"tokens": tokens})

    @property
    def probabilities(self) -> np.ndarray:
        weights = 1 / np.arange(1, self.branches + 1)
        return weights / weights.sum()

    @property
    def entropy(self) -> float:
        """Nats per token: the loss of a model that knows the chain."""
        return float(-np.sum(self.probabilities * np.log(self.probabilities)))
