"""The pages that a person looks at: report.html of a run or a pipeline of runs, and a sweep's page.

Reads only the folder's files and writes only the page: one file, no script, nothing fetched. How it
looks is in `templates/`; here is what it says. Whatever is missing or cut short (a run still going,
or killed) is left out and said.
"""

from __future__ import annotations

import base64
import functools
import json
import logging
import math
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bigjax.config.values import flatten
from bigjax.core.errors import said
from bigjax.report import charts
from bigjax.run import clock, pictures
from bigjax.run.files import read_json, write_atomic
from bigjax.run.public import public
from bigjax.run.result import read_result
from bigjax.run.text import cell, clip, columns_of, duration
from bigjax.run.writers import read_metrics

log = logging.getLogger("bigjax")

MOST_CLASSES = 40  # of a confusion matrix drawn in full; beyond it, only its most confused pairs
MOST_PAIRS = 20
ENDS = ("_low", "_high")  # of an interval, after the name of a metric
MOST_PICTURES = 4  # of one name: the newest
EVERY = 10.0  # seconds between two pages of a run that goes on, at least
SHARE = 0.02  # of the time, at most, that is spent on them

Folder = str | Path


def write_report(workdir: Folder, problem: str = "") -> Path:
    """Writes `report.html` of the run in `workdir` from what the folder holds; returns its path.

    `problem` says why a run without a result has ended.
    """
    workdir = Path(workdir)
    config, manifest = (read_json(workdir / f"{n}.json") or {} for n in ("config", "manifest"))
    result = read_result(workdir) or {}
    lines = read_metrics(workdir / "metrics.jsonl")
    names = manifest.pop("class_names", None)
    names = names if isinstance(names, list) else []
    final = result.get("metrics") or {k: v for x in lines for k, v in x.items() if k != "step"}
    matrices = {k: v for k, v in final.items() if k.rpartition("/")[2] == "confusion_matrix"}
    return write_page(
        workdir / "report.html",
        "run.html",
        title=workdir.resolve().name,
        workdir=workdir,
        result=result,
        last_step=lines[-1]["step"] if lines else None,
        problem=problem,
        metrics=table(_by_split(final)),
        intervals=table(_intervals(final)),
        pictures=_pictures(workdir),
        curves=_charts(lines),
        classes=table(_by_class(final, names)),
        matrices={k.rpartition("/")[0]: _matrix(v, names) for k, v in matrices.items()},
        time=table(clock.rows(result["time"])) if "time" in result else None,
        time_facts=clock.lines(result["time"]) if "time" in result else [],
        sections={"Config": _sections(config), "Environment": _sections(manifest)},
    )


class LiveReport:
    """Keeps the report of a run that goes on up to date: `refresh` at each line that is logged.

    As a context manager around the loop it also leaves a page of a run that is stopped or fails.
    Costs at most SHARE of the time. A page that cannot be written is a warning, not the run's end.
    """

    def __init__(self, workdir: Path):
        self._workdir, self._next = workdir, 0.0

    def refresh(self) -> None:
        if time.monotonic() >= self._next:
            self.write()

    def __enter__(self) -> LiveReport:
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: object) -> None:
        if error is not None:
            self.write(said(error))

    def write(self, problem: str = "") -> None:
        began = time.monotonic()
        try:
            write_report(self._workdir, problem)
        except Exception as error:
            log.warning("no report: %s: %s", type(error).__name__, error)
        now = time.monotonic()
        self._next = now + max(EVERY, (now - began) / SHARE)


def write_pipeline_report(
    workdir: Folder,
    title: str,
    table_rows: Sequence[Mapping[str, object]],
    stages: Mapping[str, str],
) -> Path:
    """Writes `report.html` of a pipeline of runs; returns its path.

    `table_rows` are the summary's rows by column name, where a list of numbers (one a seed) is shown
    as mean ± standard deviation with the numbers under it; `stages` maps a run's name to its folder
    relative to `workdir`, SEED/STAGE or STAGE: its report is linked, and the runs of one stage are
    one curve. Stages that are not finished, or not begun, are shown as such.
    """
    workdir = Path(workdir)
    runs: dict[str, list[list[dict]]] = {}
    for folder in stages.values():
        runs.setdefault(Path(folder).name, []).append(
            read_metrics(workdir / folder / "metrics.jsonl")
        )
    shown = {column for row in table_rows for column in row}
    logged = {name for lines in runs.values() for run in lines for line in run for name in line}
    evaluated = sorted(n for n in logged if n.startswith("eval/") and n.split("/")[-1] in shown)
    return write_page(
        workdir / "report.html",
        "pipeline.html",
        title=title,
        table=table(table_rows),
        has_seeds=any(
            isinstance(v, (list, tuple)) and len(v) > 1 for row in table_rows for v in row.values()
        ),
        curves=mean_curves(runs, ("train/loss", *evaluated)),
        stages={
            name: (folder, read_json(workdir / folder / "result.json") or {})
            for name, folder in stages.items()
        },
    )


def write_page(path: Path, template: str, **values: Any) -> Path:
    """Writes a page, atomically; what `values` there must be, the template says."""
    write_atomic(path, _templates().get_template(template).render(values))
    return path


def mean_curves(
    runs: Mapping[str, Sequence[list[dict]]], names: Sequence[str]
) -> list[charts.Chart]:
    """A chart a metric: for each label the mean over its runs, in a band of one deviation (n - 1).

    Args:
      runs: label -> the lines of each of its runs' metrics.jsonl.
      names: of metrics; for "train/loss" the mean over the steps is drawn where it is logged. A
        metric that has not been logged twice has no chart.
    """
    found = []
    for name in names:
        series = {label: _band(lines, name) for label, lines in runs.items()}
        if max(map(len, series.values()), default=0) > 1:
            found.append(charts.chart(name, series))
    return found


def _band(runs: Sequence[list[dict]], name: str) -> list[tuple[float, ...]]:
    """(step, mean, low, high) at the steps that all runs have; (step, value) of a single run.

    A run that has not logged the metric yet does not count.
    """
    by_run = [
        {line["step"]: value for line in lines if (value := _value(line, name)) is not None}
        for lines in runs
    ]
    by_run = list(filter(None, by_run))
    shared = sorted(set.intersection(*map(set, by_run))) if by_run else []
    if len(by_run) == 1:
        return [(step, by_run[0][step]) for step in shared]
    band = []
    for step in shared:
        values = np.asarray([run[step] for run in by_run], np.float64)
        mean, sd = float(values.mean()), float(values.std(ddof=1))
        band.append((step, mean, clip(mean - sd, name), clip(mean + sd, name)))
    return band


def _value(line: Mapping[str, Any], name: str) -> float | None:
    if name == "train/loss" and "train_mean/loss" in line:
        return line["train_mean/loss"]
    return line.get(name)


def _charts(lines: Sequence[dict]) -> list[charts.Chart]:
    """One chart per metric's last name: train_mean/loss and eval/test/loss share one.

    The loss comes first, then what is evaluated, then the rest.
    """
    found: dict[str, dict[str, list[tuple[float, float]]]] = {}
    has_mean = any("train_mean/loss" in line for line in lines)
    for line in lines:
        for name, value in line.items():
            if has_mean and name == "train/loss":
                continue  # one batch's noise
            if name != "step" and isinstance(value, (int, float)):
                series = found.setdefault(name.rpartition("/")[2], {})
                series.setdefault(name, []).append((line["step"], float(value)))
    evaluated = {k for k, s in found.items() if any(name.startswith("eval/") for name in s)}
    order = sorted(found, key=lambda name: (name != "loss", name not in evaluated))
    return [charts.chart(k, found[k]) for k in order if max(map(len, found[k].values())) > 1]


def _by_split(metrics: Mapping[str, object]) -> list[dict[str, object]]:
    """A row per metric, a column per split, so that train and test stand side by side."""
    rows: dict[str, dict[str, object]] = {}
    inside = {f"{row['metric']}{end}" for row in _intervals(metrics) for end in ENDS}
    for name, value in metrics.items():
        if not isinstance(value, list) and name not in inside:
            split, _, metric = name.rpartition("/")
            rows.setdefault(metric, {"metric": metric})[split or "value"] = float(value)
    return list(rows.values())


def _intervals(metrics: Mapping[str, object]) -> list[dict[str, object]]:
    """A row per metric that is logged with the ends of an interval, NAME_low and NAME_high."""
    return [
        {
            "metric": name,
            "value": value,
            "from": metrics[name + ENDS[0]],
            "to": metrics[name + ENDS[1]],
        }
        for name, value in metrics.items()
        if all(isinstance(metrics.get(name + end), float) for end in ENDS)
    ]


def _by_class(metrics: Mapping[str, object], names: Sequence[str]) -> list[dict[str, object]]:
    """A row per class, a column per metric that is a list with one number a class."""
    lists = {
        name: [float(number) for number in value]
        for name, value in metrics.items()
        if isinstance(value, list) and not any(isinstance(item, list) for item in value)
    }
    count = max(map(len, lists.values()), default=0)
    return [
        {"class": name, **{k: values[i] for k, values in lists.items() if i < len(values)}}
        for i, name in enumerate(_class_names(names, count))
    ]


def _class_names(names: Sequence[str], count: int) -> list[str]:
    """As the data names them; a model may have more classes than the data."""
    return [str(names[i]) if i < len(names) else str(i) for i in range(count)]


def _matrix(matrix: list[list[float]], names: Sequence[str]) -> dict[str, Any]:
    """Rows of (count, shade 0..1) for the template, or of many classes the most confused pairs."""
    names = _class_names(names, len(matrix))
    if len(matrix) > MOST_CLASSES:
        pairs = [
            {"true": names[i], "predicted": names[j], "count": count}
            for i, row in enumerate(matrix)
            for j, count in enumerate(row)
            if i != j and count
        ]
        return {"pairs": table(sorted(pairs, key=lambda pair: -pair["count"])[:MOST_PAIRS])}
    # A cell's shade is its share of the row; the root lets a few confusions still be seen.
    rows = [[(n, 0.06 + 0.5 * math.sqrt(n / (sum(row) or 1))) for n in row] for row in matrix]
    return {"names": names, "rows": rows}


def _pictures(workdir: Path) -> dict[str, dict[int, str]]:
    """name -> step -> the file as base64, the newest few."""
    return {
        name: {
            step: base64.b64encode(path.read_bytes()).decode()
            for step, path in list(files.items())[-MOST_PICTURES:]
        }
        for name, files in pictures.saved(workdir).items()
    }


def _sections(tree: dict) -> dict[str, list[tuple[str, str]]]:
    """The nested dict as one list per top-level section; loose values come first, under ""."""
    nested = {key: value for key, value in tree.items() if isinstance(value, dict) and value}
    loose = {key: value for key, value in tree.items() if key not in nested}
    return {
        key: [(name, _shown(name, item)) for name, item in flatten(value).items()]
        for key, value in {"": loose, **nested}.items()
        if value
    }


def _shown(name: str, value: object) -> str:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return public(name, text)


def table(rows: Sequence[Mapping[str, object]]) -> dict[str, Any] | None:
    """`text.table` for the template; None without rows.

    columns: (name, whether numbers); rows: cells of (text, the single numbers of a list).
    """
    if not rows:
        return None
    columns = columns_of(rows)
    is_number = [not any(isinstance(row.get(column), str) for row in rows) for column in columns]

    def parts(value: object) -> list[str]:
        several = isinstance(value, (list, tuple)) and len(value) > 1
        return [cell(part) for part in value] if several else []

    cells = [[(cell(row.get(c, "")), parts(row.get(c))) for c in columns] for row in rows]
    return {"columns": list(zip(columns, is_number, strict=True)), "rows": cells}


@functools.cache
def _templates() -> Any:
    import jinja2  # 0.05 s

    loader = jinja2.PackageLoader("bigjax.report")
    options = dict(trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined)
    environment = jinja2.Environment(loader=loader, autoescape=True, **options)
    environment.filters.update(cell=cell, duration=duration)
    environment.globals.update(charts=charts)
    return environment
