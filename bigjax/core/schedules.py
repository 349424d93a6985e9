"""Learning-rate schedules as dimensionless factors of the peak learning rate.

`schedule(step, total_steps)` is pure jax.numpy in `step`, the number of updates already done (0 for the
first), and returns a scalar; the peak stays outside and may be traced. Every schedule may begin with
`warmup_steps` of linear growth from 0; its own curve starts where the warm-up ends.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp

from bigjax.core.errors import UserError


@dataclass(frozen=True)
class Schedule:
    """Linear warm-up, then `decay`, which each schedule defines."""

    warmup_steps: int = 0

    def __post_init__(self) -> None:
        if self.warmup_steps < 0:
            raise UserError(
                f"config.optimizer.schedule.warmup_steps: must not be negative, got {self.warmup_steps}"
            )

    def __call__(self, step: jax.typing.ArrayLike, total_steps: int) -> jax.Array:
        """Returns the factor of the peak learning rate for the update after `step` updates."""
        step = jnp.asarray(step, jnp.result_type(float))
        decay = self.decay(jnp.maximum(step, self.warmup_steps), total_steps)
        if self.warmup_steps == 0:
            return decay
        return jnp.where(step < self.warmup_steps, step / self.warmup_steps, decay)

    def check(self, total_steps: int) -> None:
        """Raises UserError if the schedule makes no sense in a run of `total_steps` steps."""
        if self.warmup_steps > total_steps:
            raise UserError(
                f"config.optimizer.schedule.warmup_steps: {self.warmup_steps} steps of warm-up do not fit into a run "
                f"of {total_steps} steps"
            )

    def decay(self, step: jax.Array, total_steps: int) -> jax.Array:
        """Returns the factor at `step` >= warmup_steps."""
        raise NotImplementedError

    def _progress(self, step: jax.Array, total_steps: int) -> jax.Array:
        """Returns how much of the run after the warm-up is done, in [0, 1]."""
        return jnp.clip((step - self.warmup_steps) / max(1, total_steps - self.warmup_steps), 0, 1)


@dataclass(frozen=True)
class Constant(Schedule):
    """1 after the warm-up."""

    def decay(self, step: jax.Array, total_steps: int) -> jax.Array:
        return jnp.ones_like(step)


@dataclass(frozen=True)
class Cosine(Schedule):
    """final + (1 - final) (1 + cos(pi t)) / 2, t in [0, 1] (Loshchilov & Hutter 2017, eq. 5)."""

    final: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_final(self.final)

    def decay(self, step: jax.Array, total_steps: int) -> jax.Array:
        half_wave = (1 + jnp.cos(jnp.pi * self._progress(step, total_steps))) / 2
        return self.final + (1 - self.final) * half_wave


@dataclass(frozen=True)
class Linear(Schedule):
    """1 - (1 - final) t, t in [0, 1]."""

    final: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_final(self.final)

    def decay(self, step: jax.Array, total_steps: int) -> jax.Array:
        return 1 - (1 - self.final) * self._progress(step, total_steps)


@dataclass(frozen=True)
class Step(Schedule):
    """factor ** (number of boundaries reached).

    Boundaries are steps (int) or fractions of the whole run (float in (0, 1)).
    """

    boundaries: Sequence[int | float] = (0.5, 0.75)
    factor: float = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.factor < 0:
            raise UserError(
                f"config.optimizer.schedule.factor: must not be negative, got {self.factor}"
            )
        for boundary in self.boundaries:
            if boundary <= 0 or (isinstance(boundary, float) and boundary >= 1):
                raise UserError(
                    "config.optimizer.schedule.boundaries: each is a step (int, 1 or more) or a fraction of the run "
                    f"(float between 0 and 1), got {boundary!r}"
                )

    def check(self, total_steps: int) -> None:
        super().check(total_steps)
        for boundary in self.boundaries:
            if boundary >= total_steps:
                raise UserError(
                    f"config.optimizer.schedule.boundaries: {boundary} is not inside a run of {total_steps} steps"
                )

    def decay(self, step: jax.Array, total_steps: int) -> jax.Array:
        reached = sum(
            (step >= (b * total_steps if isinstance(b, float) else b)).astype(step.dtype)
            for b in self.boundaries
        )
        return self.factor ** jnp.asarray(reached, step.dtype)


@dataclass(frozen=True)
class Piecewise(Schedule):
    """Constant pieces: (step, factor) pairs in rising order, each factor holding from its step on.

    Before the first pair the factor is 1. Factors are relative to the peak, not to one another.
    """

    pieces: Sequence[tuple[int, float]] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        pairs = [isinstance(piece, Sequence) and len(piece) == 2 for piece in self.pieces]
        if not pairs or not all(pairs):
            raise UserError(
                "config.optimizer.schedule.pieces: expected (step, factor) pairs, at least one"
            )
        steps, factors = zip(*self.pieces, strict=True)
        if steps[0] < 0 or any(a >= b for a, b in itertools.pairwise(steps)):
            raise UserError(
                f"config.optimizer.schedule.pieces: steps must rise from 0 or more, got {steps}"
            )
        if min(factors) < 0:
            raise UserError(
                f"config.optimizer.schedule.pieces: factors must not be negative, got {factors}"
            )

    def decay(self, step: jax.Array, total_steps: int) -> jax.Array:
        factor = jnp.ones_like(step)
        for start, value in self.pieces:
            factor = jnp.where(step >= start, value, factor)
        return factor


@dataclass(frozen=True)
class Rsqrt(Schedule):
    """1 / sqrt(1 + (step - warmup_steps) / timescale).

    With timescale == warmup_steps this is sqrt(warmup_steps / step), the schedule of Vaswani et al.
    2017, eq. 3, relative to its peak.
    """

    timescale: int = 10_000

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.timescale <= 0:
            raise UserError(
                f"config.optimizer.schedule.timescale: must be positive, got {self.timescale}"
            )

    def decay(self, step: jax.Array, total_steps: int) -> jax.Array:
        return jax.lax.rsqrt(1 + (step - self.warmup_steps) / self.timescale)


def _check_final(final: float) -> None:
    if not 0 <= final <= 1:
        raise UserError(
            f"config.optimizer.schedule.final: a fraction of the peak learning rate, got {final}"
        )
