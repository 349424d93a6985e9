"""A linear-regression run small enough to follow by hand, with examples that can be poisoned."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from ml_collections import ConfigDict

from bigjax.config import resolve as config
from bigjax.core.order import sample_ids
from bigjax.data.sources import Arrays

SIZE, BATCH, RATE = 64, 16, 0.05


@dataclass(frozen=True)
class Poisoned:
    """64 examples, 3 features; those of `samples` have every feature times `factor`."""

    samples: Sequence[int] = ()
    factor: str = "nan"  # as text: JSON has no NaN

    def open(self, split: str) -> Arrays:
        return Arrays(columns(self.samples, float(self.factor)))


def columns(samples=(), factor=1.0):
    rng = np.random.default_rng(0)
    features = rng.normal(size=(SIZE, 3)).astype(np.float32)
    label = features @ np.float32([1.0, -2.0, 0.5]) + np.float32(0.1) * rng.normal(size=SIZE)
    features[list(samples)] *= np.float32(factor)
    return {"features": features, "label": label.astype(np.float32)}


def ids_of(step, seed=0, batch=BATCH):
    """(sample ids, epochs) of a step, counted from 1."""
    return sample_ids(seed, (step - 1) * batch + np.arange(batch), SIZE)


def poisoned_config(samples=(), *overrides, factor="nan", **changes):
    values = dict(
        seed=0,
        train=dict(steps=12, batch_size=BATCH),
        data=dict(
            source=dict(type="tests.poison:Poisoned", samples=samples, factor=factor),
            splits=dict(train="train"),
        ),
        model=dict(type="mlp", widths=(), outputs=1),
        task=dict(type="regression"),
        optimizer=dict(type="sgd", learning_rate=RATE),
        checkpoint=dict(every=2, keep=20),
        log=dict(every=1, tensorboard=False),
    )
    values.update(changes)
    return config.resolve(ConfigDict(values), overrides)
