"""Batches: the same rows on any number of hosts, each read once, placed where they belong."""

import math
import threading
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from bigjax.core.order import sample_ids
from bigjax.data.pipeline import eval_batches, local_rows, train_batches
from bigjax.data.sources import Arrays


class Recorded(Arrays):
    """Arrays that write down which ids were read."""

    def __init__(self, size):
        super().__init__({"x": np.arange(size, dtype=np.float32)[:, None] * [1.0, 2.0]})
        self.reads = []

    def read(self, ids):
        self.reads.append(np.asarray(ids).tolist())
        return super().read(ids)


def sharding_of(*sizes, spec=("data",)):
    mesh = jax.make_mesh(
        sizes,
        ("data", "tensor")[: len(sizes)],
        axis_types=(AxisType.Auto,) * len(sizes),
        devices=jax.devices()[: math.prod(sizes)],
    )
    return NamedSharding(mesh, PartitionSpec(*spec))


def host_shardings(hosts, devices=8, tensor=1):
    """What `hosts` processes would see of one mesh: each knows where its own devices' rows lie."""
    full = sharding_of(devices // tensor, tensor)
    everything = list(full.devices_indices_map((devices,)))
    share = devices // hosts

    def view(host):
        mine = everything[host * share : (host + 1) * share]

        def indices(shape):
            return {d: i for d, i in full.devices_indices_map(shape).items() if d in mine}

        return SimpleNamespace(addressable_devices_indices_map=indices)

    return [view(host) for host in range(hosts)]


@pytest.mark.parametrize("hosts", [1, 2, 4])
@pytest.mark.parametrize("tensor", [1, 2])
def test_hosts_together_read_the_global_batch_and_none_reads_anothers_rows(hosts, tensor):
    rows = [local_rows(view, 32) for view in host_shardings(hosts, tensor=tensor)]
    assert np.array_equal(np.concatenate(rows), np.arange(32))
    whole = sample_ids(5, 7 * 32 + np.arange(32), 100)[0]
    parts = [sample_ids(5, 7 * 32 + part, 100)[0] for part in rows]
    assert np.array_equal(np.concatenate(parts), whole)


def test_hosts_that_share_a_tensor_axis_read_the_same_rows():
    first, second = (local_rows(view, 4) for view in host_shardings(2, tensor=8))
    assert first.tolist() == second.tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize("sizes", [(1,), (2,), (8,), (4, 2), (1, 8)])
def test_any_mesh_yields_the_same_global_batches_and_reads_each_row_once(sizes):
    source = Recorded(20)
    batches = train_batches(
        source, batch_size=8, seed=3, start_step=0, sharding=sharding_of(*sizes)
    )
    for step in range(6):
        batch = next(batches)
        ids, epochs = sample_ids(3, step * 8 + np.arange(8), 20)
        assert np.array_equal(batch["sample"], ids) and np.array_equal(batch["epoch"], epochs)
        assert np.array_equal(batch["x"], np.stack([ids, 2 * ids], 1))
        assert np.array_equal(batch["mask"], np.ones(8))
        assert batch["x"].shape == (8, 2) and batch["sample"].dtype == np.int32
        assert len(batch["x"].sharding.device_set) == np.prod(sizes)
    batches.close()
    assert all(len(ids) == 8 for ids in source.reads)


def test_step_one_million_costs_what_the_first_step_costs():
    source = Recorded(1000)
    sharding = sharding_of(8)
    batches = train_batches(source, batch_size=16, seed=1, start_step=10**6, sharding=sharding)
    batch = next(batches)
    batches.close()
    ids, epochs = sample_ids(1, 10**6 * 16 + np.arange(16), 1000)
    assert np.array_equal(batch["sample"], ids) and np.array_equal(batch["epoch"], epochs)
    assert len(source.reads) <= 1 + 4 + 2  # itself and what was prefetched


def test_a_batch_larger_than_the_set_runs_on_into_the_next_epochs():
    batches = train_batches(
        Recorded(3), batch_size=8, seed=0, start_step=0, sharding=sharding_of(1)
    )
    batch = next(batches)
    batches.close()
    assert batch["epoch"].tolist() == [0, 0, 0, 1, 1, 1, 2, 2]
    assert sorted(batch["sample"].tolist()[:3]) == [0, 1, 2]


@settings(deadline=None, max_examples=25)
@given(size=st.integers(1, 70), per_device=st.integers(1, 4), devices=st.sampled_from([1, 2, 8]))
def test_evaluation_counts_every_example_exactly_once(size, per_device, devices):
    batch_size = per_device * devices
    seen, count = [], 0
    for batch in eval_batches(Recorded(size), batch_size=batch_size, sharding=sharding_of(devices)):
        assert batch["x"].shape == (batch_size, 2)
        real = np.asarray(batch["mask"]) == 1
        assert np.array_equal(batch["x"][:, 0], batch["sample"])
        seen += np.asarray(batch["sample"])[real].tolist()
        count += 1
    assert seen == list(range(size))
    assert count == -(-size // batch_size)


def test_placing_batches_is_allowed_where_transfers_are_not():
    jax.config.update("jax_transfer_guard", "disallow")
    try:
        batches = train_batches(
            Recorded(9), batch_size=8, seed=0, start_step=0, sharding=sharding_of(8)
        )
        jax.block_until_ready(next(batches))
        batches.close()
    finally:
        jax.config.update("jax_transfer_guard", "allow")


def test_reading_goes_on_while_the_step_computes():
    """With nobody asking, the prefetched reads still happen: waited for by event, not by clock."""

    class Signalling(Recorded):
        enough = threading.Event()

        def read(self, ids):
            columns = super().read(ids)
            if len(self.reads) >= 4:
                self.enough.set()
            return columns

    source = Signalling(50)
    batches = train_batches(source, batch_size=8, seed=0, start_step=0, sharding=sharding_of(1))
    next(batches)
    assert source.enough.wait(timeout=60)
    batches.close()


@pytest.mark.parametrize("end", ["close", "collect"])
def test_no_thread_is_left_when_the_iterator_ends(end):
    before = set(threading.enumerate())
    batches = train_batches(
        Recorded(50), batch_size=8, seed=0, start_step=0, sharding=sharding_of(1)
    )
    next(batches)
    readers = set(threading.enumerate()) - before
    assert readers
    if end == "close":
        batches.close()
    del batches
    for thread in readers:
        thread.join(timeout=60)
        assert not thread.is_alive()


def test_an_error_while_reading_reaches_the_loop():
    class Broken(Recorded):
        def read(self, ids):
            raise OSError("disk gone")

    batches = train_batches(Broken(9), batch_size=8, seed=0, start_step=0, sharding=sharding_of(1))
    with pytest.raises(OSError, match="disk gone"):
        next(batches)
