"""From a Source to batches on the devices: which rows, read by whom, placed where.

The global batch of step k is stream positions [k B, (k+1) B), whatever the hosts and devices; a host
reads only the rows its own devices hold. Threads read and place some batches ahead of the step.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from queue import Empty, SimpleQueue
from typing import Any

import jax
import numpy as np
from jax.sharding import Sharding

from bigjax.core.order import stream_of
from bigjax.data.narrow import zeros
from bigjax.data.sources import Source

Batch = dict[str, jax.Array]

ORDER_BLOCK = 4096  # positions whose ids are computed together: NumPy's cost per call, shared
WORKERS = 2  # reading threads
AHEAD = 4  # batches read before they are asked for, already on the devices


def train_batches(
    source: Source,
    *,
    batch_size: int,
    seed: int,
    start_step: int,
    sharding: Sharding,
    workers: int = WORKERS,
    leave_out: frozenset[tuple[int, int]] = frozenset(),
    order: Callable[[np.ndarray], tuple[np.ndarray, np.ndarray, np.ndarray]] | None = None,
) -> Iterator[Batch]:
    """Yields the global batches of steps start_step, start_step + 1, ... for ever.

    Args:
      source: where examples come from.
      batch_size: B, global; the sharding must divide it.
      seed: with the step, all that decides which examples are seen.
      start_step: first step; any step costs the same to start at.
      sharding: how the leading axis of every array lies over the devices.
      workers: reading threads.
      leave_out: (epoch, sample) pairs whose rows are not read, and come as zeros with mask 0.
      order: a method's own `rows_of(steps) -> ids, epochs, mask` (`Method.order`); None: the source's
        own stream (see `stream_of`).

    Returns:
      An iterator of {features..., "mask", "sample", "epoch"}, each with leading axis B; its
      `close()` stops the threads.
    """
    stream, rows = stream_of(source), local_rows(sharding, batch_size)
    steps_per_block = max(1, ORDER_BLOCK // batch_size)

    @functools.lru_cache(maxsize=4)
    def block_rows(block: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        steps = block * steps_per_block + np.arange(steps_per_block)
        if order is not None:
            return tuple(x[:, rows] for x in order(steps))
        ids, epochs = stream(seed, steps[:, None] * batch_size + rows)
        return ids, epochs, np.ones(ids.shape, np.float32)

    def batch_of(step: int) -> Batch:
        found = block_rows(step // steps_per_block)
        ids, epochs, mask = (x[step % steps_per_block] for x in found)
        mask = mask.copy()
        if leave_out:
            pairs = zip(epochs.tolist(), ids.tolist(), strict=True)
            mask *= [pair not in leave_out for pair in pairs]
        columns = read_unmasked(source, ids, mask, epochs)
        return _place(columns, ids, epochs, mask, rows, batch_size, sharding)

    return _ahead(batch_of, itertools.count(start_step), workers)


def eval_batches(
    source: Source,
    *,
    batch_size: int,
    sharding: Sharding,
) -> Iterator[Batch]:
    """Yields every example once, in order; the last batch repeats the last example with mask 0.

    All hosts yield the same ceil(len(source) / B) batches. Arguments as in `train_batches`.
    """
    size = len(source)
    rows = local_rows(sharding, batch_size)

    def batch_of(step: int) -> Batch:
        positions = step * batch_size + rows
        mask = (positions < size).astype(np.float32)
        ids = np.minimum(positions, size - 1)
        columns = source.read(ids)
        return _place(columns, ids, np.zeros_like(ids), mask, rows, batch_size, sharding)

    return _ahead(batch_of, range(-(-size // batch_size)), WORKERS)


def local_rows(sharding: Sharding, batch_size: int) -> np.ndarray:
    """The rows of the global batch that this process's devices hold: sorted, without repeats.

    Devices that hold the same rows (those along a tensor axis) share one read.
    """
    indices = sharding.addressable_devices_indices_map((batch_size,)).values()
    parts = {index[0].indices(batch_size)[:2] for index in indices}
    return np.unique(np.concatenate([np.arange(start, stop) for start, stop in parts]))


def _ahead(batch_of: Callable[[int], Batch], steps: Iterable[int], workers: int) -> Iterator[Batch]:
    """The batches of `steps` in order, AHEAD of them made by threads before they are asked for."""
    # Queues alone: a batch that is there costs who asks half of what an executor's futures do, most of it to
    # wake a thread, and Python's lock is kept. A quick step would feel the rest.
    steps, asked, under_way = iter(steps), SimpleQueue(), deque()

    def ask(count: int) -> None:
        for step in itertools.islice(steps, count):
            under_way.append(SimpleQueue())
            asked.put((step, under_way[-1]))

    for _ in range(workers):
        threading.Thread(target=_make, args=(batch_of, asked), name="batches").start()
    try:
        ask(AHEAD + 1)
        while under_way:
            yield _made(under_way.popleft().get())
            ask(1)
    finally:
        with contextlib.suppress(Empty):
            while True:
                asked.get_nowait()
        for _ in range(workers):
            asked.put(None)


def _make(batch_of: Callable[[int], Batch], asked: SimpleQueue) -> None:
    """What a thread does: makes the batches that are asked for, until None is, or the program ends."""
    while threading.main_thread().is_alive():
        try:
            wanted = asked.get(timeout=1.0)
        except Empty:
            continue
        if wanted is None:
            return
        step, answer = wanted
        try:
            answer.put(batch_of(step))
        except BaseException as error:  # told where the batch is asked for
            answer.put(error)


def _made(found: Any) -> Batch:
    if isinstance(found, BaseException):
        raise found
    return found


def read_unmasked(
    source: Source, ids: np.ndarray, mask: np.ndarray, epochs: np.ndarray
) -> dict[str, np.ndarray]:
    """The examples `ids` (N,) of `epochs`; those of `mask` 0 are not read and are zeros.

    What differs from epoch to epoch a source gives by `read_epochs(ids, epochs)`, if it has that. Zeros,
    because a NaN would reach the gradient of the weights through a loss of weight 0.
    """
    real = mask > 0
    of_epochs = getattr(source, "read_epochs", lambda ids, epochs: source.read(ids))
    if real.all():
        return of_epochs(ids, epochs)
    columns = zeros(source.features, len(ids))
    if real.any():
        for name, values in of_epochs(ids[real], epochs[real]).items():
            columns[name][real] = values
    return columns


def _place(
    columns: dict[str, np.ndarray],
    ids: np.ndarray,
    epochs: np.ndarray,
    mask: np.ndarray,
    rows: np.ndarray,
    batch_size: int,
    sharding: Sharding,
) -> Batch:
    """Makes global arrays of the local rows, each device getting its own part, and waits until they are there."""
    local = {
        **columns,
        "mask": mask,
        "sample": ids.astype(np.int32),
        "epoch": epochs.astype(np.int32),
    }

    def place(values: np.ndarray) -> jax.Array:
        def part(index: tuple[slice, ...]) -> np.ndarray:
            start, stop, _ = index[0].indices(batch_size)
            first = np.searchsorted(rows, start)  # a device's rows are one run of `rows`
            return values[first : first + stop - start]

        return jax.make_array_from_callback((batch_size, *values.shape[1:]), sharding, part)

    # The one transfer that is meant: a loop under transfer_guard="disallow" finds all others.
    with jax.transfer_guard_host_to_device("allow"):
        return jax.block_until_ready({key: place(values) for key, values in local.items()})
