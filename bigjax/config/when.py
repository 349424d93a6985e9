"""When something happens: one small object for evaluations, checkpoints, logs and profiles.

It says only when, never what, and knows nothing but the step and the length of the run.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from fractions import Fraction

from bigjax.core.errors import UserError


@dataclass(frozen=True)
class When:
    """Due steps of a run, where a step counts completed updates: 1, ..., total_steps.

    Args:
        every: an int n: every n steps and at the end; a float f in (0, 1): each time another
            fraction f of the run is complete and at the end; "end": at the end; "never".
        total_steps: length of the run in steps.
        key: the config key `every` comes from, for messages.

    Raises:
        UserError: `every` is none of these.
    """

    every: int | float | str
    total_steps: int
    key: str = "every"

    def __post_init__(self) -> None:
        every = self.every
        is_int = isinstance(every, int) and not isinstance(every, bool)
        good = (
            (is_int and every >= 1)
            or (isinstance(every, float) and 0 < every < 1)
            or (isinstance(every, str) and every in ("end", "never"))
        )
        if not good:
            raise UserError(
                f"{self.key}: expected a number of steps (int, 1 or more), a fraction of the run "
                f"(float between 0 and 1), 'end' or 'never', got {every!r}"
            )

    def due(self, step: int) -> bool:
        """Returns whether it is time, `step` updates being complete."""
        if self.every == "never" or not 1 <= step <= self.total_steps:
            return False
        if step == self.total_steps:
            return True
        if isinstance(self.every, int):
            return step % self.every == 0
        if isinstance(self.every, float):
            length, steps = self._period
            return step * steps // length > (step - 1) * steps // length
        return False

    @functools.cached_property
    def _period(self) -> tuple[int, int]:
        """Steps from one time to the next, as a fraction: of the decimal that was written, not of its float."""
        return (Fraction(str(self.every)) * self.total_steps).as_integer_ratio()
