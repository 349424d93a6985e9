"""Emoji as a TFDS builder: 1,911 pictures in colour of ten categories. Downloads nothing."""

from __future__ import annotations

import numpy as np
import tensorflow_datasets as tfds

from bigjax.core.errors import UserError
from bigjax.data.builders import ArraysBuilder, every_fifth

SIDE = 64  # pixels
CATEGORIES = (
    "Smileys & Emotion",
    "People & Body",
    "Component",
    "Animals & Nature",
    "Food & Drink",
    "Travel & Places",
    "Activities",
    "Objects",
    "Symbols",
    "Flags",
)


class Emoji(ArraysBuilder, skip_registration=True):
    """Google's emoji, 64x64 RGB on white, with their Unicode category; every fifth is test.

    The fifths are counted in Unicode's order within each category. It lists what looks alike side by
    side (a man, a woman, a person running), so that most test pictures have a relative in training.

    columns: image uint8 (N, 64, 64, 3) and label int64 (N,), a place in `CATEGORIES`.
    order: int (N,), the rows in Unicode's order.
    """

    name = "bigjax_emoji"
    about = "Noto emoji by Google, as npm's emoji-datasource-google 16.0.0 carries them."

    def __init__(
        self,
        *,
        columns: dict[str, np.ndarray] | None = None,
        order: np.ndarray | None = None,
        **kwargs,
    ):
        self._columns, self._order = columns, order
        super().__init__(**kwargs)

    def feature_dict(self) -> dict:
        return {
            "image": tfds.features.Tensor(shape=(SIDE, SIDE, 3), dtype=np.uint8),
            "label": tfds.features.ClassLabel(names=list(CATEGORIES)),
        }

    def splits(self) -> dict[str, dict[str, np.ndarray]]:
        if self._columns is None:
            raise UserError("emoji is not here yet: run scripts/fetch_data emoji")
        by_category = np.argsort(self._columns["label"][self._order], kind="stable")
        return every_fifth(self._columns, self._order[by_category])
