"""The train split as far as a plan needs it: the data need not be there where its shapes are said."""

from __future__ import annotations

import hashlib
from typing import Any

from bigjax.build.assemble import open_sources
from bigjax.config.resolve import Config
from bigjax.core.errors import UserError
from bigjax.data.sources import Features


def train_split(config: Config) -> tuple[Any, bool]:
    """(the train split, whether it is there); else one of the shapes that the config says.

    Raises:
      UserError: the data is not there, and only the data knows its shapes.
    """
    try:
        return open_sources(config, ())["train"], True
    except (UserError, OSError):
        features = getattr(config.section("data").source, "features", None)
        if features is None:
            raise
        return Shapes(features, config.get("train.steps")), False


class Shapes:
    """A Source that has shapes and no examples."""

    class_names = num_classes = None

    def __init__(self, features: Features, steps: int | None) -> None:
        self.features, self._steps = features, steps

    def __len__(self) -> int:
        if self._steps is None:
            raise UserError(
                "config.train: how many steps so many epochs or examples are, the data says, and it "
                "is not here; give config.train.steps"
            )
        return 1

    def read(self, ids: Any) -> dict[str, Any]:
        raise UserError(
            "config.data: a transform of the run is fitted to the examples, and they are not here"
        )

    def fingerprint(self) -> str:
        return hashlib.sha256(repr(self.features).encode()).hexdigest()
