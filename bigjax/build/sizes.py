"""Sizes of the model that follow from the train split: its outputs, the tokens it knows, the side of its images."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax

from bigjax.build.parts import example_batch, fitted
from bigjax.config.config import Config
from bigjax.core.errors import UserError
from bigjax.core.transforms import apply_transforms
from bigjax.data.sources import open_splits
from bigjax.tasks.base import Task


def sizes_of_data(config: Config, wanted: Sequence[str]) -> dict[str, int]:
    """Key of `config.model` -> what the train split decides; without those that it does not.

    Args:
      config: has the sections data and task.
      wanted: of "outputs", "vocab" and "image"; the data is opened only if something can come of it.

    Raises:
      UserError: the data cannot be opened, or its images are not square.
    """
    task: Any = config.make("task")
    outputs = getattr(type(task), "outputs", Task.outputs) is not Task.outputs
    asked = [key for key in wanted if key != "outputs" or outputs]
    if not asked:
        return {}
    source = open_splits(config.section("data"), ["train"])["train"]
    decided = {"vocab": getattr(source, "vocab_size", None)}
    if "outputs" in asked:
        decided["outputs"] = task.outputs(source)
    if "image" in asked:
        given = getattr(task, "input", None)
        decided["image"] = _side(config, source, given if isinstance(given, str) else "image")
    return {key: decided[key] for key in asked if decided[key] is not None}


def _side(config: Config, source: Any, key: str) -> int | None:
    """The side of the images that the model is given: the data's, after `data.preprocess`.

    Raises:
      UserError: they are not square.
    """
    if key not in source.features or len(source.features[key][0]) != 3:
        return None
    transforms = fitted(config.make("data.preprocess"), source)
    seen = jax.eval_shape(
        lambda: apply_transforms(transforms, example_batch(source.features, 1), jax.random.key(0))
    )
    _, height, width, _ = seen[key].shape
    if height != width:
        raise UserError(
            f"config.model.image: the images of the data are {height}x{width}, and squares are "
            'needed: dict(type="resize", size=...) in data.preprocess makes them'
        )
    return height
