"""report.html of a run, and of a pipeline of runs: what a person looks at when it is over.

Reads only the run folder's files and writes only the page: one file, no script, nothing fetched.
Whatever is missing or cut short (a run still going, or killed) is left out and said.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from urllib.parse import quote

from bigjax.report.charts import legend, line_chart
from bigjax.run import clock
from bigjax.run.files import write_atomic
from bigjax.run.writers import cell, duration, read_metrics

MOST_CLASSES = 40  # of a confusion matrix drawn in full; beyond it, only its most confused pairs
MOST_PAIRS = 20

STYLE = """
:root { --ink: #1f2937; --soft: #6b7280; --line: #e5e7eb; --blue: 37, 99, 235; --red: 220, 38, 38 }
* { box-sizing: border-box }
body { margin: 0 auto; max-width: 1040px; padding: 32px 24px 64px; color: var(--ink);
  background: #fff; font: 15px/1.5 system-ui, "Segoe UI", Roboto, "Helvetica Neue", sans-serif }
h1 { margin: 0; font-size: 28px; line-height: 1.2; overflow-wrap: anywhere }
h2 { margin: 40px 0 12px; font-size: 18px }
h3 { margin: 0 0 4px; font-size: 14px; overflow-wrap: anywhere }
a { color: rgb(var(--blue)) }
.facts, .note, .seeds { color: var(--soft); font-size: 13px }
.facts { margin: 6px 0 0 }
.warn { border-left: 4px solid #f59e0b; background: #fffbeb; padding: 8px 12px; margin: 16px 0 }
.charts { display: grid; gap: 24px; grid-template-columns: repeat(auto-fit, minmax(min(400px, 100%), 1fr)) }
figure { margin: 0; min-width: 0; max-width: 560px }
svg { width: 100%; display: block }
svg text { fill: var(--soft); font-size: 11px; font-family: inherit }
svg polyline { fill: none; stroke-width: 1.8; stroke-linejoin: round }
svg .grid { stroke: var(--line) }
.key { margin-right: 14px; font-size: 12px; color: var(--soft); white-space: nowrap }
.key i { display: inline-block; width: 10px; height: 10px; border-radius: 5px; margin-right: 5px }
.wide { overflow-x: auto }
table { border-collapse: collapse; font-size: 14px; font-variant-numeric: tabular-nums }
th { text-align: left; font-weight: 600; color: var(--soft); font-size: 13px }
th, td { padding: 5px 18px 5px 0; border-bottom: 1px solid var(--line); vertical-align: top }
td.number, th.number { text-align: right }
td.value { font-family: ui-monospace, "SF Mono", Menlo, Consolas, "DejaVu Sans Mono", monospace;
  font-size: 13px; overflow-wrap: anywhere }
.sections { columns: 2 400px; column-gap: 40px }
.sections section { break-inside: avoid; margin-bottom: 20px }
.sections table { width: 100% }
.sections td:first-child { color: var(--soft); width: 45%; overflow-wrap: anywhere }
.matrix th, .matrix td { padding: 4px 8px; text-align: right; border: 1px solid #fff; font-size: 12px }
.matrix td { min-width: 36px }
.matrix .zero { color: #d1d5db }
.matrix th { font-weight: 500; max-width: 120px; overflow-wrap: anywhere }
"""


def write_report(workdir: str | Path) -> Path:
    """Writes `report.html` of the run in `workdir` from what the folder holds; returns its path."""
    workdir = Path(workdir)
    config, manifest, result = (
        _read_json(workdir / f"{n}.json") for n in ("config", "manifest", "result")
    )
    lines = read_metrics(workdir / "metrics.jsonl")
    final = result.get("metrics") or _last_values(lines)
    names = manifest.pop("class_names", None)
    title = workdir.resolve().name
    body = [_heading(workdir, title, result, lines)]
    if final:
        body.append(f"<h2>{'Final' if result else 'Latest'} metrics</h2>{_metrics_table(final)}")
    body.append(_charts(lines))
    body.append(_class_table(final, names))
    for name, value in final.items():
        if name.rsplit("/", 1)[-1] == "confusion_matrix":
            body.append(f"<h2>Confusion matrix: {escape(name.rsplit('/', 1)[0])}</h2>")
            body.append(_confusion_matrix(value, names))
    if "time" in result:
        body.append(_time_table(result["time"]))
    body.append(_sections("Config", config) + _sections("Environment", manifest))
    return write_page(workdir / "report.html", title, body)


def write_pipeline_report(
    workdir: str | Path,
    title: str,
    table_rows: Sequence[Mapping[str, object]],
    stages: Mapping[str, str],
) -> Path:
    """Writes `report.html` of a pipeline of runs; returns its path.

    `table_rows` are the summary's rows by column name, where a list of numbers (one a seed) is shown
    as mean ± standard deviation with the numbers under it; `stages` maps a stage's name to its run
    folder relative to `workdir`, whose report is linked.
    """
    workdir = Path(workdir)
    columns = list(dict.fromkeys(column for row in table_rows for column in row))
    body = [f"<h1>{escape(title)}</h1>", "<h2>Results</h2>", _html_table(table_rows, columns)]
    if any(isinstance(value, (list, tuple)) for row in table_rows for value in row.values()):
        body.append(
            '<p class="note">mean ± standard deviation (n - 1), one number a seed below</p>'
        )
    body.append(f"<h2>Stages</h2>{_stage_table(workdir, stages)}")
    return write_page(workdir / "report.html", title, body)


def write_page(path: Path, title: str, body: Sequence[str], style: str = STYLE) -> Path:
    """Writes a self-contained page of these parts, atomically; empty parts are left out."""
    page = (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{style}</style></head>\n<body>\n"
        + "\n".join(filter(None, body))
        + "\n</body></html>\n"
    )
    write_atomic(path, page)
    return path


def _heading(workdir: Path, title: str, result: dict, lines: Sequence[dict]) -> str:
    facts = [str(workdir)]
    if result:
        facts += [
            f"{result.get('step')} steps",
            _time(result),
            f"parameters {_fingerprint(result)}",
        ]
    heading = f'<h1>{escape(title)}</h1><p class="facts">{escape(" · ".join(facts))}</p>'
    if result:
        return heading
    last = f"its last logged step is {lines[-1]['step']}" if lines else "nothing is logged yet"
    return heading + f'<p class="warn">This run is not finished: {last}.</p>'


def _stage_table(workdir: Path, stages: Mapping[str, str]) -> str:
    number = 'class="number"'
    parts = [
        f'<div class="wide"><table><tr><th>run</th><th {number}>steps</th><th {number}>time</th>'
        "<th>parameters (sha256)</th></tr>"
    ]
    for name, folder in stages.items():
        result = _read_json(workdir / folder / "result.json")
        link = f'<a href="{quote(str(folder))}/report.html">{escape(name)}</a>'
        parts.append(
            f"<tr><td>{link}</td><td {number}>{escape(cell(result.get('step', 'not finished')))}</td>"
            f"<td {number}>{_time(result)}</td>"
            f'<td class="value">{escape(_fingerprint(result))}</td></tr>'
        )
    return "".join([*parts, "</table></div>"])


def _metrics_table(metrics: Mapping[str, object]) -> str:
    """A row per metric, a column per split, so that train and test stand side by side."""
    rows: dict[str, dict[str, object]] = {}
    for name, value in metrics.items():
        if not isinstance(value, list):
            split, _, metric = name.rpartition("/")
            rows.setdefault(metric, {"metric": metric})[split or "value"] = float(value)
    columns = list(dict.fromkeys(column for row in rows.values() for column in row))
    return _html_table(list(rows.values()), columns)


def _class_table(metrics: Mapping[str, object], names: Sequence[str] | None) -> str:
    """A row per class, a column per metric that is a list with one number a class."""
    lists = {
        name: [float(number) for number in value]
        for name, value in metrics.items()
        if isinstance(value, list) and not any(isinstance(item, list) for item in value)
    }
    length = max(map(len, lists.values()), default=0)
    names = _class_names(names, length)
    rows = [
        {"class": names[i]} | {name: values[i] for name, values in lists.items() if i < len(values)}
        for i in range(length)
    ]
    return f"<h2>Per class</h2>{_html_table(rows, ['class', *lists])}" if rows else ""


def _charts(lines: Sequence[dict]) -> str:
    """One chart per metric's last name: train/loss and eval/test/loss share one."""
    charts: dict[str, dict[str, list[tuple[float, float]]]] = {}
    for line in lines:
        for name, value in line.items():
            if name != "step" and isinstance(value, (int, float)):
                series = charts.setdefault(name.rsplit("/", 1)[-1], {})
                series.setdefault(name, []).append((line["step"], float(value)))
    figures = [
        f"<figure><h3>{escape(metric)}</h3>{line_chart(series)}{legend(list(series))}</figure>"
        for metric, series in charts.items()
        if max(map(len, series.values())) > 1
    ]
    return f'<h2>Curves</h2><div class="charts">{"".join(figures)}</div>' if figures else ""


def _confusion_matrix(matrix: list[list[float]], names: Sequence[str] | None) -> str:
    """Rows are the true classes; a cell's shade is its share of the row, red off the diagonal."""
    names = _class_names(names, len(matrix))
    if len(matrix) > MOST_CLASSES:
        return _most_confused(matrix, names)
    head = "".join(f"<th>{escape(name)}</th>" for name in names)
    parts = ['<p class="note">rows: true class; columns: predicted class</p>']
    parts.append(f'<div class="wide"><table class="matrix"><tr><th></th>{head}</tr>')
    for i, (name, row) in enumerate(zip(names, matrix, strict=True)):
        cells = "".join(_count(n, sum(row), i == j) for j, n in enumerate(row))
        parts.append(f"<tr><th>{escape(name)}</th>{cells}</tr>")
    return "".join([*parts, "</table></div>"])


def _count(count: float, row_sum: float, is_right: bool) -> str:
    if not count:
        return '<td class="zero">0</td>'
    color = "--blue" if is_right else "--red"
    shade = 0.06 + 0.5 * (count / row_sum) ** 0.5  # the root lets a few confusions still be seen
    return f'<td style="background:rgba(var({color}),{shade:.2f})">{count:g}</td>'


def _most_confused(matrix: list[list[float]], names: Sequence[str]) -> str:
    rows = [
        {"true": names[i], "predicted": names[j], "count": count}
        for i, row in enumerate(matrix)
        for j, count in enumerate(row)
        if i != j and count
    ]
    rows = sorted(rows, key=lambda row: -row["count"])[:MOST_PAIRS]
    table = _html_table(rows, ["true", "predicted", "count"])
    return f'<p class="note">The most confused pairs of classes.</p>{table}'


def _class_names(names: Sequence[str] | None, count: int) -> list[str]:
    return [str(name) for name in (names if names and len(names) == count else range(count))]


def _time_table(spent: Mapping[str, object]) -> str:
    table = _html_table(clock.rows(spent), ["time", "seconds", "share"])
    facts = escape(" · ".join(clock.lines(spent)))
    return f'<h2>Time</h2>{table}<p class="note">{facts}</p>'


def _sections(title: str, tree: dict) -> str:
    """The nested dict as one small table per top-level section; loose values come first."""
    nested = {key: value for key, value in tree.items() if isinstance(value, dict) and value}
    loose = {key: value for key, value in tree.items() if key not in nested}
    sections = {"": loose} if loose else {}
    sections |= {key: dict(_flat(value)) for key, value in nested.items()}
    tables = []
    for name, values in sections.items():
        rows = "".join(
            f'<tr><td>{escape(key)}</td><td class="value">{escape(_text(value))}</td></tr>'
            for key, value in values.items()
        )
        head = f"<h3>{escape(name)}</h3>" if name else ""
        tables.append(f"<section>{head}<table>{rows}</table></section>")
    return f'<h2>{title}</h2><div class="sections">{"".join(tables)}</div>' if tables else ""


def _flat(tree: dict, prefix: str = "") -> list[tuple[str, object]]:
    flat = []
    for key, value in tree.items():
        nested = isinstance(value, dict) and value
        flat += _flat(value, f"{prefix}{key}.") if nested else [(f"{prefix}{key}", value)]
    return flat


def _html_table(rows: Sequence[Mapping[str, object]], columns: Sequence[str]) -> str:
    """`metrics.table` as HTML; the single numbers of a list stand small under its mean."""
    number = [not any(isinstance(row.get(column), str) for row in rows) for column in columns]
    kind = ['class="number"' if is_number else "" for is_number in number]
    head = "".join(f"<th {k}>{escape(c)}</th>" for c, k in zip(columns, kind, strict=True))
    parts = [f'<div class="wide"><table><tr>{head}</tr>']
    for row in rows:
        parts.append("<tr>")
        for column, k in zip(columns, kind, strict=True):
            value = row.get(column, "")
            text = escape(cell(value))
            if isinstance(value, (list, tuple)) and len(value) > 1:
                seeds = " ".join(cell(number) for number in value)
                text += f'<div class="seeds">{escape(seeds)}</div>'
            parts.append(f"<td {k}>{text}</td>")
        parts.append("</tr>")
    return "".join([*parts, "</table></div>"])


def _read_json(path: Path) -> dict:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, json.JSONDecodeError):
        return {}
    return value if isinstance(value, dict) else {}


def _last_values(lines: Sequence[dict]) -> dict[str, object]:
    return {name: value for line in lines for name, value in line.items() if name != "step"}


def _text(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _time(result: dict) -> str:
    return duration(result["seconds"]) if "seconds" in result else ""


def _fingerprint(result: dict) -> str:
    return str(result.get("fingerprint", ""))[:12]
