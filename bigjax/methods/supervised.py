"""Supervised training: the task's loss of the model's outputs. All answers are `Method`'s own."""

from __future__ import annotations

import dataclasses

from bigjax.core.method import Method


@dataclasses.dataclass(frozen=True)
class Supervised(Method):
    """The default of `config.method`."""
