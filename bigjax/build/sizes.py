"""Sizes of the model that follow from the train split: its outputs, and the tokens it knows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from bigjax.config.config import Config
from bigjax.data.sources import open_splits
from bigjax.tasks.base import Task


def sizes_of_data(config: Config, wanted: Sequence[str]) -> dict[str, int]:
    """Key of `config.model` -> what the train split decides; without those that it does not.

    Args:
      config: has the sections data and task.
      wanted: of "outputs" and "vocab"; the data is opened only if something can come of it.

    Raises:
      UserError: the data cannot be opened.
    """
    task: Any = config.make("task")
    outputs = getattr(type(task), "outputs", Task.outputs) is not Task.outputs
    asked = [key for key in wanted if key == "vocab" or outputs]
    if not asked:
        return {}
    source = open_splits(config.section("data"), ["train"])["train"]
    decided = {"vocab": getattr(source, "vocab_size", None)}
    if "outputs" in asked:
        decided["outputs"] = task.outputs(source)
    return {key: decided[key] for key in asked if decided[key] is not None}
