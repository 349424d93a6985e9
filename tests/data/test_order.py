"""The data order: a permutation per epoch, uniform, still for ever, the same for any host."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from bigjax.core.order import Interleaved, sample_ids

EDGES = [1, 2, 3] + [2**k + d for k in (2, 3, 6, 10) for d in (-1, 0, 1)]

# (seed, first position, size) -> eight ids
GOLDEN = {
    (0, 0, 1): [0, 0, 0, 0, 0, 0, 0, 0],
    (0, 0, 3): [0, 1, 2, 1, 0, 2, 0, 2],
    (0, 0, 1797): [1129, 1472, 224, 867, 818, 506, 1122, 898],
    (7, 64000000, 1797): [1538, 1322, 531, 1309, 1396, 1262, 1549, 316],
    (-1, 59996, 60000): [3561, 8072, 36057, 39368, 56378, 25257, 52615, 8700],
    (18446744073709551621, 1000000000000000, 1281167): [
        465443,
        985398,
        2128,
        458865,
        1278911,
        224099,
        716231,
        461754,
    ],
}


def test_golden_ids_never_change():
    for (seed, start, size), expected in GOLDEN.items():
        assert sample_ids(seed, np.arange(start, start + 8), size)[0].tolist() == expected


@pytest.mark.parametrize("size", EDGES)
def test_every_epoch_is_a_permutation_at_edge_sizes(size):
    ids, epochs = sample_ids(3, np.arange(4 * size), size)
    assert ids.dtype == epochs.dtype == np.int64
    for epoch in range(4):
        assert sorted(ids[epochs == epoch]) == list(range(size))


@settings(deadline=None, max_examples=60)
@given(st.integers(-(2**70), 2**70), st.integers(1, 3000), st.integers(0, 2**40))
def test_any_epoch_of_any_seed_is_a_permutation(seed, size, epoch):
    ids, epochs = sample_ids(seed, np.arange(epoch * size, (epoch + 1) * size), size)
    assert np.all(epochs == epoch)
    assert np.array_equal(np.sort(ids), np.arange(size))


@settings(deadline=None, max_examples=40)
@given(st.integers(1, 500), st.lists(st.integers(0, 2**50), min_size=1, max_size=40))
def test_an_id_depends_on_its_position_alone(size, positions):
    """Any host may ask for any subset in any order: 1, 2 or 4 hosts see the same rows."""
    together, _ = sample_ids(9, np.array(positions), size)
    alone = [int(sample_ids(9, np.array([p]), size)[0][0]) for p in positions]
    assert together.tolist() == alone


def test_each_example_falls_on_each_place_equally_often():
    for size in (7, 10, 97):
        epochs = 200 * size
        ids = sample_ids(0, np.arange(epochs * size), size)[0].reshape(epochs, size)
        for place in (0, size // 2, size - 1):
            assert stats.chisquare(np.bincount(ids[:, place], minlength=size)).pvalue > 1e-4


def test_neighbours_and_consecutive_epochs_are_independent():
    size, epochs = 10, 40_000
    ids = sample_ids(1, np.arange(epochs * size), size)[0].reshape(epochs, size)
    pairs = np.bincount(ids[:, 0] * size + ids[:, 1], minlength=size**2).reshape(size, size)
    assert np.all(np.diag(pairs) == 0)
    assert stats.chisquare(pairs[~np.eye(size, dtype=bool)]).pvalue > 1e-4
    pairs = np.bincount(ids[:-1, 3] * size + ids[1:, 3], minlength=size**2)
    assert stats.chisquare(pairs).pvalue > 1e-4


def test_seeds_and_epochs_do_not_repeat_each_other():
    size, orders = 1000, set()
    for seed in range(20):
        ids = sample_ids(seed, np.arange(20 * size), size)[0].reshape(20, size)
        orders |= {tuple(row) for row in ids}
    assert len(orders) == 400


def test_a_position_beyond_two_billion_is_named_as_directly_as_the_first():
    ids, epochs = sample_ids(0, np.array([2**61, 2**61 + 1]), 1_281_167)
    assert epochs[0] == 2**61 // 1_281_167 and ids.max() < 1_281_167


def test_an_empty_set_is_refused():
    with pytest.raises(ValueError, match="size"):
        sample_ids(0, np.arange(3), 0)


@pytest.mark.parametrize(
    ("groups", "lanes"), [([3], 7), ([1, 1], 2), ([4] * 10, 1), ([5] * 64, 16)]
)
def test_interleaved_epochs_are_permutations_named_by_their_positions(groups, lanes):
    order, size = Interleaved(np.array(groups), lanes), sum(groups)
    ids, epochs = order(3, np.arange(3 * size))
    for epoch in range(3):
        assert sorted(ids[epochs == epoch]) == list(range(size))
    some = np.random.default_rng(0).permutation(3 * size)[:20]
    assert np.array_equal(order(3, some)[0], ids[some])
    assert size < 8 or not np.array_equal(ids[:size], ids[size : 2 * size])
    assert size < 8 or not np.array_equal(ids[:size], order(4, np.arange(size))[0])


def test_interleaved_ids_never_change():
    order = Interleaved(np.array([3, 5, 2, 4, 5]), 4)
    assert order(7, np.arange(16, 28))[0].tolist() == [16, 4, 12, 12, 14, 3, 1, 8, 17, 11, 7, 9]


def test_few_groups_are_open_at_a_time_and_they_open_evenly():
    sizes = np.random.default_rng(0).integers(30, 60, 200)
    lanes, ends = 16, np.cumsum(sizes)
    ids, _ = Interleaved(sizes, lanes)(0, np.arange(sizes.sum()))
    group = np.searchsorted(ends, ids, side="right")
    open_groups, opened = [], []
    for position, one in enumerate(group.tolist()):  # a cache of 2 x lanes groups
        if one in open_groups:
            open_groups.remove(one)
        else:
            opened.append(position)
        open_groups = [*open_groups, one][-2 * lanes :]
    assert len(opened) <= len(sizes) + 2 * lanes
    # 16 rows bring 0.4 groups in the mean; a shuffle of all rows would bring 15.
    assert np.bincount(np.array(opened)[lanes:] // lanes).max() <= 5
    # Rows that follow one another are of other groups and from all over the epoch.
    assert np.mean(group[1:] == group[:-1]) < 0.02
    halves = [np.mean(half < len(sizes) / 2) for half in np.split(group[: len(group) // 2 * 2], 2)]
    assert all(0.3 < half < 0.7 for half in halves)
