"""A trial's hyperparameters and results as TensorBoard's HParams tab reads them. No TensorFlow."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bigjax.config.resolve import Config, flatten

LEFT_OUT = ("log.", "checkpoint.", "check.", "mesh.", "sharding.", "data.", "evaluate.")


def write(folder: Path, config: Config, metrics: Mapping[str, Any]) -> None:
    """Writes the trial as one HParams session into its tensorboard/, unless the run has none."""
    if not config.get("log.tensorboard"):
        return
    from tensorboardX import SummaryWriter
    from tensorboardX.summary import hparams

    values = {
        key: value if isinstance(value, bool | int | float) else str(value)
        for key, value in flatten(config.values).items()
        if not key.startswith(LEFT_OUT) and value is not None
    }
    scalars = {k: float(v) for k, v in metrics.items() if isinstance(v, int | float)}
    with SummaryWriter(str(folder / "tensorboard"), filename_suffix=".hparams") as writer:
        for summary in hparams(values, scalars):
            writer.file_writer.add_summary(summary)
