"""From the trials' folders to the table: read, group, choose on validation, compare. Runs nothing."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from bigjax.core.errors import UserError, did_you_mean
from bigjax.run.files import write_atomic
from bigjax.run.result import read_result
from bigjax.run.text import clip, columns_of, interval, table
from bigjax.sweep import statistics
from bigjax.sweep.describe import Point, Sweep
from bigjax.sweep.statistics import Summary
from bigjax.sweep.trials import Trial, describe, short_names, status, why_failed


@dataclass(frozen=True)
class Row:
    """One trial and how it ended; metrics are scalars only, {} without a result."""

    trial: Trial
    status: str
    reason: str = ""
    metrics: Mapping[str, float] = field(default_factory=dict)


@dataclass
class Group:
    """The trials of one point, over its seeds.

    Attributes:
      method: the values of `sweep.by`; the whole point without it.
      values: seed -> the metric that is chosen by.
      test: seed -> the test metric.
      chosen: the best of its method.
      best: the best of all.
      difference: from the baseline by `values`, and its p-value after Holm's correction.
    """

    point: Point
    method: Point
    rows: list[Row]
    values: dict[int, float]
    test: dict[int, float]
    summary: Summary
    chosen: bool = False
    best: bool = False
    difference: Summary | None = None
    p_holm: float = math.nan


@dataclass(frozen=True)
class Results:
    """All that the table, the CSV and the page show."""

    sweep: Sweep
    rows: list[Row]
    groups: list[Group]
    baseline: Group | None


def load(sweep: Sweep, trials: Sequence[Trial], workdir: Path) -> Results:
    """Reads the trials' folders.

    Raises:
      UserError: the finished runs have no such metric, or the baseline is none of the points.
    """
    rows = [_row(trial, trial.folder(workdir)) for trial in trials if trial.in_table]
    for name in filter(None, (sweep.metric, sweep.test_metric)):
        known = next((row.metrics for row in rows if row.metrics), None)
        if known is not None and name not in known:
            raise UserError(
                f"metric '{name}': the runs have none such{did_you_mean(name, known)}; they have "
                f"{', '.join(known)}"
            )
    by_point: dict[str, list[Row]] = {}
    for row in rows:
        by_point.setdefault(json.dumps(row.trial.point, sort_keys=True), []).append(row)
    groups = [_group(sweep, members) for members in by_point.values()]
    return _compared(sweep, rows, groups)


def _row(trial: Trial, folder: Path) -> Row:
    if (result := read_result(folder)) is None:
        return Row(trial, status(folder), why_failed(folder))
    numbers = {k: float(v) for k, v in result["metrics"].items() if isinstance(v, float | int)}
    return Row(trial, "done", "", numbers)


def _group(sweep: Sweep, rows: list[Row]) -> Group:
    point = rows[0].trial.point
    method = {key: point.get(key) for key in sweep.by} if sweep.by else point
    values, test = (
        {row.trial.seed: row.metrics[name] for row in rows if row.metrics and name}
        for name in (sweep.metric, sweep.test_metric)
    )
    return Group(point, method, rows, values, test, _summary(sweep.metric, values, sweep.interval))


def _summary(metric: str, values: Mapping[int, float], how: str = "t") -> Summary:
    found = statistics.summarize(list(values.values()), how)
    return replace(found, low=clip(found.low, metric), high=clip(found.high, metric))


def _compared(sweep: Sweep, rows: list[Row], groups: list[Group]) -> Results:
    """Marks the chosen groups, and compares with the baseline those that compete with it."""

    def score(group: Group) -> tuple[int, float]:
        """More finished seeds first: a point that fails for some seeds is not the best."""
        return group.summary.n, group.summary.mean * (1 if sweep.mode == "max" else -1)

    finished = [group for group in groups if math.isfinite(group.summary.mean)]  # NaN is never best
    methods: dict[str, list[Group]] = {}
    for group in finished if sweep.by else []:
        methods.setdefault(json.dumps(group.method, sort_keys=True), []).append(group)
    competing = [max(members, key=score) for members in methods.values()] or finished
    for group in competing if sweep.by else []:
        group.chosen = True
    if finished:
        best = max(finished, key=score)
        best.best = best.chosen = True
    baseline = _baseline(sweep, competing, groups) if sweep.baseline and finished else None
    if baseline is not None:
        others = [group for group in competing if group is not baseline]
        for group in others:
            group.difference = statistics.paired(group.values, baseline.values)
        adjusted = statistics.holm([group.difference.p for group in others])
        for group, p in zip(others, adjusted, strict=True):
            group.p_holm = p
    return Results(sweep, rows, groups, baseline)


def _baseline(sweep: Sweep, competing: list[Group], groups: list[Group]) -> Group | None:
    def matches(group: Group) -> bool:
        return all(group.point.get(key) == value for key, value in sweep.baseline.items())

    found = [group for group in competing if matches(group)]
    if not found and any(matches(group) for group in groups):
        return None  # not finished yet
    if len(found) != 1:
        raise UserError(
            f"baseline {describe(sweep.baseline)}: {len(found) or 'no'} points match; exactly one must"
        )
    return found[0]


def write_csv(results: Results, path: Path) -> None:
    """One line a trial: name, status, reason, seed, the point's keys, then every scalar metric."""
    keys = columns_of([row.trial.point for row in results.rows])
    metrics = columns_of([row.metrics for row in results.rows])
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["trial", "status", "reason", "seed", *keys, *metrics])
    for row in results.rows:
        point = [row.trial.point.get(key, "") for key in keys]
        values = [repr(row.metrics[name]) if name in row.metrics else "" for name in metrics]
        writer.writerow([row.trial.name, row.status, row.reason, row.trial.seed, *point, *values])
    write_atomic(path, text.getvalue())


def ranked(results: Results) -> list[Group]:
    """The groups, the best mean first; those without a finite mean last."""
    sign = -1 if results.sweep.mode == "max" else 1

    def place(group: Group) -> tuple[bool, bool, float]:
        mean = group.summary.mean
        finite = math.isfinite(mean)
        return not group.values, not finite, sign * mean if finite else 0.0

    return sorted(results.groups, key=place)


def table_rows(results: Results) -> list[dict[str, str]]:
    """The table's rows, by column, as text; the best point first."""
    keys = columns_of([group.point for group in results.groups])
    names, rows = short_names(keys), []
    for group in ranked(results):
        s, d = group.summary, group.difference
        others = {r.status for r in group.rows} - {"done"}
        counts = [f"{sum(r.status == w for r in group.rows)} {w}" for w in sorted(others)]
        mark = ["best"] if group.best else ["chosen"] if group.chosen else []
        row = {"": ", ".join(mark + counts)}
        row |= {names[key]: number(group.point.get(key, "")) for key in keys}
        mean = str(s.mean) if group.values and not math.isfinite(s.mean) else number(s.mean)
        row |= {"n": str(s.n), "mean": mean, "sd": number(s.sd)}
        row |= {"95 % interval": interval(s.low, s.high)}
        if results.baseline is not None:
            row["difference"] = "baseline" if group is results.baseline else ""
            row |= {"95 % of it": "", "p": "", "p (Holm)": "", "d_z": ""}
            if d is not None:
                row["difference"], row["95 % of it"] = number(d.mean), interval(d.low, d.high)
                row |= {"p": number(d.p), "p (Holm)": number(group.p_holm), "d_z": number(d.d_z)}
        rows.append(row)
    return rows


def notes(results: Results) -> list[str]:
    """What the table's numbers are, what was chosen, and how it does on the test metric."""
    sweep, found = results.sweep, []
    how = "Student's t" if sweep.interval == "t" else "bootstrap, BCa"
    seeds = max((group.summary.n for group in results.groups), default=0)
    most = "highest" if sweep.mode == "max" else "lowest"
    found.append(
        f"{sweep.metric} over up to {seeds} seeds, {most} is best; sd: n - 1; interval: {how}"
    )
    compared = [group for group in results.groups if group.difference is not None]
    if compared:
        found.append(
            f"difference from {describe(results.baseline.method)}, paired by seed: paired t test, "
            f"Holm's correction over {len(compared)} comparisons, d_z = mean / sd of the differences"
        )
    chosen = [group for group in results.groups if group.chosen]
    if sweep.note:
        found.append(sweep.note)
    if sweep.select_on_test and chosen:
        found.append("chosen on TEST data, as select_on_test says: its result is too good")
    for group in chosen:
        text = f"{'best' if group.best else 'chosen'}: {describe(group.point) or sweep.experiment}"
        if group.test:
            text += f": {sweep.test_metric} {_test_mean(sweep, group)}"
        found.append(text)
    baseline = results.baseline
    if baseline is not None and sweep.test_metric:
        if not baseline.chosen:
            found.append(
                f"baseline: {describe(baseline.point)}: {sweep.test_metric} {_test_mean(sweep, baseline)}"
            )
        others = [group for group in chosen if group is not baseline]
        pairs = [statistics.paired(group.test, baseline.test) for group in others]
        adjusted = statistics.holm([pair.p for pair in pairs])
        for group, d, p in zip(others, pairs, adjusted, strict=True):
            found.append(
                f"{sweep.test_metric}, {describe(group.method)} against the baseline: "
                f"{number(d.mean)} {interval(d.low, d.high)}, p (Holm) {number(p)}, d_z {number(d.d_z)}, "
                f"n {d.n}"
            )
    return found


def failures(results: Results) -> list[str]:
    """A line for each failed trial."""
    return [f"{r.trial.name}: {r.reason}" for r in results.rows if r.status == "failed"]


def text_table(results: Results) -> str:
    """The table for a terminal."""
    return "\n".join([table(table_rows(results)), "", *notes(results)])


def write_markdown(results: Results, path: Path) -> None:
    rows = table_rows(results)
    columns = columns_of(rows)
    lines = [f"# {results.sweep.experiment}", "", _markdown_line(columns)]
    lines.append(_markdown_line(["---"] * len(columns)))
    lines += [_markdown_line([row[column] for column in columns]) for row in rows]
    lines += ["", *(f"- {note}" for note in notes(results))]
    if failed := failures(results):
        lines += ["", "## Failed", "", *(f"- {line}" for line in failed)]
    write_atomic(path, "\n".join(lines) + "\n")


def number(value: Any) -> str:
    """A value in a table: a float in 4 digits, NaN as nothing."""
    if isinstance(value, float):
        return "" if math.isnan(value) else f"{value:.4g}"
    return str(value)


def _test_mean(sweep: Sweep, group: Group) -> str:
    s = _summary(sweep.test_metric, group.test)
    if s.n < 2:
        return f"{number(s.mean)} (one seed)"
    return f"{number(s.mean)} (sd {number(s.sd)}, 95 % {interval(s.low, s.high)}, n {s.n})"


def _markdown_line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(str(cell).replace("|", "\\|") for cell in cells) + " |"
