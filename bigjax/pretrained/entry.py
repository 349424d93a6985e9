"""One line of a name map: which published tensor is which of our leaves, and how its axes are laid out.

A family's map is a list of these. It is read forwards to load a published checkpoint and backwards
to export one, so the two cannot disagree. Pure; knows no file format and no device.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import einops
import numpy as np


@dataclass(frozen=True)
class Entry:
    """A published tensor and the leaf or leaves it becomes.

    Attributes:
      name: the tensor's published name.
      paths: our leaves, collection first: "params/block_0/attention/query/kernel".
      pattern: an einops pattern from the published axes to ours, such as "(n h) d -> d n h"; None
        where they are the same. With several paths its result has a leading axis of one part a path.
      sizes: the lengths of axes that the pattern splits off.
      optional: a known kind of checkpoint lacks it; our leaves then start from scratch.
    """

    name: str
    paths: tuple[str, ...]
    pattern: str | None = None
    sizes: Mapping[str, int] = field(default_factory=dict)
    optional: bool = False

    def load(self, tensor: np.ndarray) -> tuple[np.ndarray, ...]:
        """The arrays of `paths` from the published tensor.

        Raises:
          ValueError: the tensor's shape does not fit the pattern.
        """
        try:
            if self.pattern is not None:
                tensor = einops.rearrange(tensor, self.pattern, **self.sizes)
        except einops.EinopsError as error:
            raise ValueError(_reason(error)) from None
        if len(self.paths) == 1:
            return (tensor,)
        if len(tensor) != len(self.paths):
            raise ValueError(f"holds {len(tensor)} parts, not {len(self.paths)}")
        return tuple(tensor)

    def save(self, arrays: Sequence[np.ndarray]) -> np.ndarray:
        """The published tensor from the arrays of `paths`."""
        array = arrays[0] if len(self.paths) == 1 else np.stack(arrays)
        if self.pattern is None:
            return array
        published, ours = self.pattern.split("->")
        named = {size: n for size, n in self.sizes.items() if size in ours}
        return np.ascontiguousarray(einops.rearrange(array, f"{ours} -> {published}", **named))


def _reason(error: Exception) -> str:
    """The last line of an einops message, which says what does not fit."""
    return str(error).strip().splitlines()[-1].strip()
