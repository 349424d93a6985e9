"""sweep.html: the table, parallel coordinates, and curves with bands. One file, nothing fetched."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape
from pathlib import Path
from urllib.parse import quote

import numpy as np

from bigjax.report.charts import COLORS
from bigjax.report.page import STYLE, write_page
from bigjax.report.sweep_charts import Axis, band_chart, legend, parallel_coordinates
from bigjax.run.writers import read_metrics
from bigjax.sweep import results
from bigjax.sweep.results import Group, Results
from bigjax.sweep.trials import FOLDER, describe

TIGHT = ".tight td, .tight th { white-space: nowrap; padding-right: 12px; font-size: 12.5px }"
MOST_CURVES = len(COLORS)  # points whose curves are drawn: the best ones
MOST_LINES = 1000  # of the parallel coordinates
MOST_TRIALS = 500  # that are listed with links


def write(found: Results, workdir: Path) -> Path:
    """Writes `sweep.html` in the sweep's folder; returns its path."""
    title = workdir.resolve().name
    ranked = _ranked(found)
    ended = sum(row.status == "done" for row in found.rows)
    facts = f"{found.sweep.experiment} · {ended} of {len(found.rows)} trials finished"
    body = [f'<h1>{escape(title)}</h1><p class="facts">{escape(facts)}</p>']
    body.append(_failures(found))
    if ranked:
        body.append(f"<h2>Points</h2>{_coordinates(found, ranked)}")
    body.append(f"<h2>Results</h2>{_table(results.table_rows(found))}")
    body += [f'<p class="note">{escape(note)}</p>' for note in results.notes(found)]
    if ranked:
        body.append(_curves(found, ranked[:MOST_CURVES], workdir))
    body.append(_trials(found, workdir))
    return write_page(workdir / "sweep.html", title, body, STYLE + TIGHT)


def _failures(found: Results) -> str:
    """Each reason once, with the trials that failed for it."""
    reasons: dict[str, list[str]] = {}
    for row in found.rows:
        if row.status == "failed":
            reasons.setdefault(row.reason, []).append(row.trial.name)
    return "".join(
        f'<div class="warn"><details><summary>{len(names)} failed: {escape(reason)}</summary>'
        f"{'<br>'.join(map(escape, names[:MOST_TRIALS]))}</details></div>"
        for reason, names in reasons.items()
    )


def _ranked(found: Results) -> list[Group]:
    """The groups with a finite mean, the best first."""
    finite = [group for group in found.groups if math.isfinite(group.summary.mean)]
    return sorted(finite, key=lambda g: g.summary.mean, reverse=found.sweep.mode == "max")


def _coordinates(found: Results, ranked: Sequence[Group]) -> str:
    """A line a point: its values, then its mean; the warmer, the better."""
    keys = list(dict.fromkeys(key for group in ranked for key in group.point))
    axes = [Axis.of(key, [group.point.get(key) for group in ranked]) for key in keys]
    axes.append(Axis.of(found.sweep.metric, [group.summary.mean for group in ranked]))
    drawn = ranked[:MOST_LINES]
    lines = [[*(g.point.get(key) for key in keys), g.summary.mean] for g in drawn]
    titles = [f"{describe(g.point)}: {results.number(g.summary.mean)}" for g in drawn]
    note = ""
    if len(ranked) > len(drawn):
        note = f'<p class="note">the best {len(drawn)} of {len(ranked)} points</p>'
    return parallel_coordinates(axes, lines, titles) + note


def _curves(found: Results, groups: Sequence[Group], workdir: Path) -> str:
    """The training loss and the metric over the steps: mean, and a band of one deviation."""
    runs = {
        id(group): [
            read_metrics(row.trial.folder(workdir) / "metrics.jsonl")
            for row in group.rows
            if row.status == "done"
        ]
        for group in groups
    }
    figures = []
    for name in ("train/loss", found.sweep.metric):
        series = [_bands(runs[id(group)], name) for group in groups]
        if max(map(len, series)) > 1:
            figures.append(f"<figure><h3>{escape(name)}</h3>{band_chart(series)}</figure>")
    if not figures:
        return ""
    keys = legend([describe(group.point) or found.sweep.experiment for group in groups])
    note = '<p class="note">mean and one standard deviation over the seeds; the best points</p>'
    return f'<h2>Curves</h2><div class="charts">{"".join(figures)}</div><p>{keys}</p>{note}'


def _bands(runs: Sequence[list[dict]], name: str) -> list[tuple[float, float, float, float]]:
    """(step, mean, low, high) at the steps that all runs have."""
    by_run = [{line["step"]: line[name] for line in lines if name in line} for lines in runs]
    shared = sorted(set.intersection(*map(set, by_run))) if by_run else []
    found = []
    for step in shared:
        values = np.asarray([run[step] for run in by_run], np.float64)
        mean, sd = values.mean(), values.std(ddof=1) if len(values) > 1 else 0.0
        found.append((step, float(mean), float(mean - sd), float(mean + sd)))
    return found


def _table(rows: Sequence[dict[str, str]]) -> str:
    if not rows:
        return '<p class="note">no trial yet</p>'
    head = "".join(f"<th>{escape(column)}</th>" for column in rows[0])
    lines = [
        "<tr>" + "".join(f"<td>{escape(value)}</td>" for value in row.values()) + "</tr>"
        for row in rows
    ]
    return f'<div class="wide tight"><table><tr>{head}</tr>{"".join(lines)}</table></div>'


def _trials(found: Results, workdir: Path) -> str:
    parts = []
    for row in found.rows[:MOST_TRIALS]:
        value = results.number(row.metrics.get(found.sweep.metric, math.nan))
        name = escape(row.trial.name)
        if (row.trial.folder(workdir) / "report.html").exists():
            name = f'<a href="{FOLDER}/{quote(row.trial.name)}/report.html">{name}</a>'
        parts.append(f"<tr><td>{name}</td><td>{row.status}</td><td>{value}</td></tr>")
    more = len(found.rows) - len(parts)
    note = f'<p class="note">and {more} more: see sweep.csv</p>' if more > 0 else ""
    head = f"<tr><th>trial</th><th></th><th>{escape(found.sweep.metric)}</th></tr>"
    table = f'<div class="wide"><table>{head}{"".join(parts)}</table></div>'
    return f"<h2>Trials</h2><details><summary>{len(found.rows)}</summary>{table}{note}</details>"
