"""sweep.html: what of a sweep's results goes where on its page (`bigjax.report`)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from bigjax.report import charts
from bigjax.report.charts import Axis
from bigjax.report.page import mean_curves, table, write_page
from bigjax.run.text import columns_of
from bigjax.run.writers import read_metrics
from bigjax.sweep import results
from bigjax.sweep.results import Group, Results
from bigjax.sweep.trials import FOLDER, describe

MOST_CURVES = len(charts.COLORS)  # points whose curves are drawn: the best ones
MOST_LINES = 1000  # of the parallel coordinates
MOST_TRIALS = 500  # that are listed with links


def write(found: Results, workdir: Path) -> Path:
    """Writes `sweep.html` in the sweep's folder; returns its path."""
    sweep = found.sweep
    ranked = [group for group in results.ranked(found) if math.isfinite(group.summary.mean)]
    ended = sum(row.status == "done" for row in found.rows)
    failures: dict[str, list[str]] = {}
    for row in found.rows:
        if row.status == "failed":
            failures.setdefault(row.reason, []).append(row.trial.name)
    notes = results.notes(found)
    if len(ranked) > MOST_LINES:
        notes.append(f"points drawn: the best {MOST_LINES} of {len(ranked)}")
    runs = {
        describe(group.point) or sweep.experiment: [
            read_metrics(row.trial.folder(workdir) / "metrics.jsonl")
            for row in group.rows
            if row.status == "done"
        ]
        for group in ranked[:MOST_CURVES]
    }
    return write_page(
        workdir / "sweep.html",
        "sweep.html",
        title=workdir.resolve().name,
        facts=f"{sweep.experiment} · {ended} of {len(found.rows)} trials finished",
        failures=failures,
        coordinates=_coordinates(found, ranked) if len(ranked) > 1 else None,  # of what differs
        table=table(results.table_rows(found)),
        notes=notes,
        curves=mean_curves(runs, ("train/loss", sweep.metric)),
        metric=sweep.metric,
        trials=[_trial(found, row, workdir) for row in found.rows[:MOST_TRIALS]],
        more_trials=max(0, len(found.rows) - MOST_TRIALS),
    )


def _coordinates(found: Results, ranked: Sequence[Group]) -> charts.Coordinates:
    """A line a point: its values, then its mean; the warmer, the better."""
    keys = columns_of([group.point for group in ranked])
    axes = [Axis.of(key, [group.point.get(key) for group in ranked]) for key in keys]
    axes.append(Axis.of(found.sweep.metric, [group.summary.mean for group in ranked]))
    drawn = ranked[:MOST_LINES]
    lines = [[*(g.point.get(key) for key in keys), g.summary.mean] for g in drawn]
    titles = [f"{describe(g.point)}: {results.number(g.summary.mean)}" for g in drawn]
    return charts.parallel_coordinates(axes, lines, titles)


def _trial(found: Results, row: results.Row, workdir: Path) -> tuple[str, str, str, str]:
    name, value = row.trial.name, row.metrics.get(found.sweep.metric, math.nan)
    has_page = (row.trial.folder(workdir) / "report.html").exists()
    link = f"{FOLDER}/{name}/report.html" if has_page else ""
    return name, link, row.status, results.number(value)
