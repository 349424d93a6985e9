"""What TensorBoard shows of a run, in `WORKDIR/tensorboard`; no TensorFlow.

Scalars, the config as text and as hyperparameters, pictures, histograms. Runs below one folder, such
as a sweep's trials, are one experiment of the HParams tab: `tensorboard --logdir=SWEEP/trials`.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
from PIL import Image

from bigjax.config.resolve import flatten

# Sections that say nothing of what is learned.
NO_HYPERPARAMETERS = (
    "log.",
    "checkpoint.",
    "check.",
    "mesh.",
    "sharding.",
    "data.",
    "evaluate.",
)


class TensorBoard:
    """One start's event file."""

    def __init__(self, workdir: Path, purge_step: int | None):
        """`purge_step`: what earlier starts wrote from this step on is hidden; None at the first."""
        with _hidden("torch"):  # which tensorboardX imports where it is installed: seconds
            from tensorboardX import SummaryWriter  # 0.3 s

        # The suffix keeps two starts within one second from sharing, and emptying, one file.
        self._writer = SummaryWriter(
            str(workdir / "tensorboard"),
            purge_step=purge_step,
            flush_secs=10,
            filename_suffix=f".{os.getpid()}.{time.monotonic_ns()}",
        )
        path = workdir / "config.json"
        self._config = json.loads(path.read_text()) if path.exists() else {}
        if self._config and purge_step in (None, 1):
            self._writer.add_text("config", f"```\n{json.dumps(self._config, indent=2)}\n```")

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def picture(self, step: int, name: str, path: Path) -> None:
        with Image.open(path) as picture:
            pixels = np.asarray(picture.convert("RGB"))
        self._writer.add_image(name, pixels, step, dataformats="HWC")

    def histograms(self, step: int, arrays: Mapping[str, np.ndarray]) -> None:
        for name, array in arrays.items():
            self._writer.add_histogram(name, array, step)

    def hyperparameters(self, metrics: Mapping[str, float]) -> None:
        """Adds the run as one session of the HParams tab: its config's values and its metrics."""
        from tensorboardX.summary import hparams

        values = {
            key: value if isinstance(value, bool | int | float) else str(value)
            for key, value in flatten(self._config).items()
            if not key.startswith(NO_HYPERPARAMETERS) and value is not None
        }
        for summary in hparams(values, dict(metrics)):
            self._writer.file_writer.add_summary(summary)

    def close(self) -> None:
        self._writer.close()


@contextlib.contextmanager
def _hidden(module: str) -> Iterator[None]:
    """Within, an import of the module fails, unless it is imported already."""
    imported = module in sys.modules
    if not imported:
        sys.modules[module] = None
    try:
        yield
    finally:
        if not imported:
            del sys.modules[module]
