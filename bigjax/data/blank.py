"""Examples without features: for methods that make their own data, such as rollouts of an environment."""

from __future__ import annotations

import dataclasses
import hashlib

import numpy as np

from bigjax.core.errors import UserError
from bigjax.data.sources import Features


@dataclasses.dataclass(frozen=True)
class Blank:
    """So many examples, which are told apart by their number alone."""

    examples: int = 1024

    def __post_init__(self) -> None:
        if self.examples < 1:
            raise UserError(f"examples: {self.examples} must be at least 1")

    def open(self, split: str) -> BlankRows:
        """Any name is a split."""
        return BlankRows(self.examples)


class BlankRows:
    """The Source."""

    class_names = num_classes = None

    def __init__(self, examples: int) -> None:
        self._examples, self.features = examples, Features()

    def __len__(self) -> int:
        return self._examples

    def read(self, ids: np.ndarray) -> dict[str, np.ndarray]:
        return {}

    def fingerprint(self) -> str:
        return hashlib.sha256(f"blank {self._examples}".encode()).hexdigest()
