"""Which row of which part of a mixture comes at a step: a pure function of (seed, step). On the host.

A step's rows are shared out among the parts by their weights, in proportions that are kept over the
whole run and not step by step: see `shared_out`. Of its own rows a part gives the shuffled, endless
stream that it would give alone (`bigjax.core.order`), from where the steps before have left it.
"""

from __future__ import annotations

import functools
import zlib
from collections.abc import Mapping

import jax
import numpy as np

from bigjax.core.errors import UserError
from bigjax.core.order import Stream, sample_ids
from bigjax.core.schedules import Schedule

HALF = 0.5 + 2.0**-20  # halves are rounded up, however the sum of many shares was rounded


class Mixing:
    """The order of a mixture's examples; part i has the ids from offsets[i] up to offsets[i + 1].

    Args:
      sizes: part -> number of its examples.
      weights: part -> its weight, 0 or more; only their ratios count.
      schedules: part -> what its weight is multiplied by at each step; absent: 1.
      batch_size: rows of a step.
      total_steps: of the whole run; of each one the counts are kept, 8 bytes a step and part.
      streams: part -> the order of its examples, where it is not the shuffled stream of all.

    Raises:
      UserError: at some step no part has a weight.
    """

    def __init__(
        self,
        sizes: Mapping[str, int],
        weights: Mapping[str, float],
        schedules: Mapping[str, Schedule],
        seed: int,
        batch_size: int,
        total_steps: int,
        streams: Mapping[str, Stream] | None = None,
    ) -> None:
        self.names, self._batch_size = tuple(sizes), batch_size
        self._sizes = np.array([sizes[name] for name in self.names])
        self._offsets = np.concatenate([[0], np.cumsum(self._sizes)])
        self._streams = [
            (streams or {}).get(name) or functools.partial(sample_ids, size=size)
            for name, size in sizes.items()
        ]
        # A part's order is its own, whatever it is mixed with.
        self._seeds = [seed + (zlib.crc32(name.encode()) << 32) for name in self.names]
        table = np.stack([_weights(n, weights, schedules, total_steps) for n in self.names], axis=1)
        if not (table.sum(axis=1) > 0).all():
            step = int(np.argmin(table.sum(axis=1) > 0))
            raise UserError(f"config.data.mixture: at step {step + 1} no part has a weight above 0")
        self._before = shared_out(table, batch_size)

    def rows_of(self, steps: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """ids and epochs, int64 (S, B), and a mask of ones, of steps (S,) from 0 on.

        Steps beyond the run are those of its last step over again: nobody learns from them.
        """
        steps = np.minimum(np.asarray(steps), len(self._before) - 2)
        first = self._before[steps]
        counts = self._before[steps + 1] - first
        part, within = (np.empty((len(steps), self._batch_size), np.int64) for _ in range(2))
        for row, own in enumerate(counts):
            which = np.repeat(np.arange(len(own)), own)
            number = np.arange(len(which)) - np.repeat(np.cumsum(own) - own, own)
            # Spread over the batch: its halves, and any device's rows, are mixed as the whole is.
            spread = np.argsort((number + 0.5) / own[which], kind="stable")
            part[row], within[row] = which[spread], number[spread]
        ids, epochs = np.empty_like(part), np.empty_like(part)
        for i, seed in enumerate(self._seeds):
            own = part == i
            positions = (first[:, i, None] + within)[own]
            ids[own], epochs[own] = self._streams[i](seed, positions)
        return ids + self._offsets[part], epochs, np.ones(ids.shape, np.float32)

    def measure(self, step: int) -> dict[str, float]:
        """How many examples of each part `step` steps have read, and how often it was gone through."""
        read = self._before[step]
        counts = {
            f"mixture/{name}/examples": int(n) for name, n in zip(self.names, read, strict=True)
        }
        epochs = read / self._sizes
        return counts | {
            f"mixture/{name}/epochs": float(n) for name, n in zip(self.names, epochs, strict=True)
        }


def shared_out(weights: np.ndarray, batch_size: int) -> np.ndarray:
    """How many rows of each part come before each step, so that no proportion ever drifts.

    The stream of all rows is split in two, the heaviest part and the rest; the rest is split so again,
    and so on. Of a stream of which R_t rows come in step t, a part with the share q_t of it has had
    round(sum_t q_t R_t) before a step. That is never fewer than before, the parts add up to B k after k steps,
    and after any number of steps the j-th heaviest of constant weights is less than (1 + H(j - 1)) / 2 rows
    from its exact share of the run, H(n) = 1 + 1/2 + ... + 1/n: under 1 of two parts, 1.92 of ten.

    Args:
      weights: float64 (steps, parts), a positive sum in each row.

    Returns:
      int64 (steps + 1, parts): [k, i] is how many rows of part i the steps 0 .. k - 1 hold.
    """
    steps, parts = weights.shape
    heaviest_first = np.argsort(-weights[0], kind="stable")
    before = np.zeros((steps + 1, parts), np.int64)
    rest = np.full(steps, batch_size, np.int64)  # rows of each step that are not shared out yet
    ordered = weights[:, heaviest_first]
    tails = np.cumsum(ordered[:, ::-1], axis=1)[:, ::-1]
    for j, part in enumerate(heaviest_first):
        share = np.divide(ordered[:, j], tails[:, j], out=np.zeros(steps), where=tails[:, j] > 0)
        exact = np.cumsum(share * rest) if j < parts - 1 else np.cumsum(rest)
        before[1:, part] = np.floor(exact + HALF)
        rest = rest - np.diff(before[:, part])
    return before


def _weights(
    name: str, weights: Mapping[str, float], schedules: Mapping[str, Schedule], total_steps: int
) -> np.ndarray:
    """The weight of a part at each step, float64 (total_steps,), the same on any machine."""
    schedule = schedules.get(name)
    if schedule is None:
        return np.full(total_steps, float(weights[name]))
    schedule.check(total_steps)
    with jax.default_device(jax.local_devices(backend="cpu")[0]), jax.enable_x64(True):
        factors = np.asarray(schedule(np.arange(total_steps, dtype=np.float64), total_steps))
    # Libraries of cosines differ in the last bits, which decide nothing once they are rounded off.
    return weights[name] * np.round(factors * 2.0**30) / 2.0**30
