"""The verb that trains. Thin: what it does is in `bigjax.loop`."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from typing import Any

from bigjax.config import resolve as configs
from bigjax.config.values import TRUST_ALL
from bigjax.loop import stages
from bigjax.loop.train import train
from bigjax.run import clock
from bigjax.run.text import metrics_table, table


def train_verb(
    raw: Any, overrides: Sequence[str], options: argparse.Namespace, stop: Callable[[], bool]
) -> None:
    """Trains, or goes on with, the run in the folder; ends in a table."""
    if stages.is_pipeline(raw):
        allowed = options.allow_changed
        print(stages.train_pipeline(raw, overrides, options.workdir, stop, allowed, options.trust))
        return
    config = configs.resolve(raw, overrides, [TRUST_ALL] * options.trust)
    result = train(config, options.workdir, stop=stop, allow_changed=options.allow_changed)
    print(metrics_table(result["metrics"]))
    if "time" in result:
        print("\n" + table(clock.rows(result["time"]), ["time", "seconds", "share"]))
        print("\n".join(clock.lines(result["time"])))
    print(f"report: {options.workdir / 'report.html'}")
