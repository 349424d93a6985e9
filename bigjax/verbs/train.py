"""The verb that trains. Thin: what it does is in `bigjax.loop`."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from typing import Any

from bigjax.config import resolve as configs
from bigjax.config.values import TRUST_ALL
from bigjax.loop import stages
from bigjax.loop.train import train
from bigjax.mesh import distributed
from bigjax.run import clock
from bigjax.run.files import set_aside
from bigjax.run.text import metrics_table, table


def train_verb(
    raw: Any, overrides: Sequence[str], options: argparse.Namespace, stop: Callable[[], bool]
) -> None:
    """Trains, or goes on with, the run in the folder; ends in a table."""
    label = {"name": options.name, "tags": options.tag, "notes": options.notes}
    label = {key: value for key, value in label.items() if value}
    allowed = options.allow_changed
    if stages.is_pipeline(raw):
        if options.fresh:  # what is wrong is found before anything is set aside
            stages.resolve(raw, overrides, options.trust)
        _set_aside(options)
        trusted = options.trust
        print(stages.train_pipeline(raw, overrides, options.workdir, stop, allowed, trusted, label))
        return
    config = configs.resolve(raw, overrides, [TRUST_ALL] * options.trust)
    _set_aside(options)
    result = train(config, options.workdir, stop=stop, allow_changed=allowed, label=label)
    print(metrics_table(result["metrics"]))
    if "time" in result:
        print("\n" + table(clock.rows(result["time"]), ["time", "seconds", "share"]))
        print("\n".join(clock.lines(result["time"])))
    print(f"report: {options.workdir / 'report.html'}")


def _set_aside(options: argparse.Namespace) -> None:
    """With --fresh, keeps the run in the folder under another name."""
    if options.fresh:
        aside = set_aside(options.workdir) if distributed.is_leader() else None
        distributed.check_same("--fresh", "set aside")  # which the others wait for
        if aside:
            print(f"--fresh: the run that was there is now {aside}")
