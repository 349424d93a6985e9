"""The Python API, for a script or a notebook: what the command line does, in one line each."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bigjax.config.resolve import resolve
from bigjax.loop import open as opened
from bigjax.loop import train as loop
from bigjax.loop.open import Opened


def train(
    config: Mapping[str, Any],
    workdir: str | Path,
    *,
    overrides: Sequence[str] = (),
    allow_changed: Sequence[str] = (),
) -> Opened:
    """Trains a run in its folder, or goes on with the one that is there; returns it opened.

    Args:
      config: an experiment's config: a ConfigDict, or a dict.
      workdir: the run's folder.
      overrides: "KEY=VALUE", as after `--config.`.
      allow_changed: config keys that may differ from the run's in the folder.

    Raises:
      UserError: the input is wrong; the message is the line that the command line prints.
      BadNumbers, CheckpointError: see `bigjax.loop.train.train`.
    """
    folder = Path(os.path.expanduser(workdir))
    loop.train(resolve(config, overrides), folder, allow_changed=allow_changed)
    return open_run(folder)


def open_run(workdir: str | Path, *, overrides: Sequence[str] = (), trust: bool = False) -> Opened:
    """The run in a folder, at its newest good checkpoint.

    trust: the folder may name code outside bigjax, which is then imported.

    Raises:
      UserError: the folder holds no run, or no checkpoint.
    """
    return opened.open_run(Path(os.path.expanduser(workdir)), overrides, trust=trust)
