"""An evaluation loop in ten lines: pieces of a split, padded with poison, summed on the host."""

import functools
import itertools

import jax
import numpy as np
import pytest

SIZE = 64  # rows of every padded piece


def _pad(array):
    poison = np.nan if np.issubdtype(array.dtype, np.floating) else -7
    rows = np.full((SIZE - len(array), *array.shape[1:]), poison, array.dtype)
    return np.concatenate([array, rows])


@functools.cache
def _jitted(task):
    return jax.jit(task.statistics), jax.jit(task.collect)


@pytest.fixture(scope="session")
def evaluate():
    """evaluate(task, outputs, labels, cuts) -> summary over the pieces between the cuts."""

    def run(task, outputs, labels, cuts=()):
        sums, kept = None, []
        statistics, collect = _jitted(task)
        edges = [0, *sorted(cuts), len(outputs)]
        for start, stop in itertools.pairwise(edges):
            count = stop - start
            piece = {
                task.label: _pad(labels[start:stop]),
                "mask": _pad(np.ones(count, np.float32)),
            }
            piece["mask"][count:] = 0
            x = _pad(outputs[start:stop])
            new = jax.tree.map(np.float64, statistics(x, piece))
            sums = new if sums is None else jax.tree.map(np.add, sums, new)
            kept.append(jax.tree.map(lambda a, n=count: np.asarray(a)[:n], collect(x, piece)))
        collected = {k: np.concatenate([piece[k] for piece in kept]) for k in kept[0]}
        return task.summarize(sums, collected)

    return run
