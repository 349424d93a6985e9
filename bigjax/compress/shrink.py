"""Chains of steps on a finished run: a folder for each step, one table, one page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from bigjax.compress import folder as folders
from bigjax.compress import measure
from bigjax.compress.chain import Options, parsed
from bigjax.loop.open import Opened, check_split
from bigjax.report import charts
from bigjax.report.page import table, write_page
from bigjax.run.files import write_json

FOLDER = "shrink"
BEFORE = "before"
# What a task is judged by, the first that it has; and whether more is better.
MAIN = (("bits_per_byte", False), ("accuracy", True), ("loss", False))


def shrink(
    run: Opened, chains: Sequence[str], split: str, options: Options
) -> list[dict[str, Any]]:
    """Applies each chain to the run, step upon step; returns the table's rows, "before" first.

    The model after each step is a run of its own in WORKDIR/shrink/CHAIN, such as
    "prune:0.9,int8"; beside them `table.json` and `shrink.html`.

    Raises:
      UserError: a step is unknown (nothing is written then), or does not fit the model.
    """
    check_split(run.config, split)
    steps = [parsed(text) for text in chains]  # all of them, before the first is taken
    models: dict[str, Opened] = {BEFORE: run}
    for chain in steps:
        now, name = run, ""
        for word, step, argument in chain:
            name = f"{name},{word}" if name else word
            if name not in models:
                changed = step(now, argument, options)
                models[name] = folders.write(changed, run.workdir / FOLDER / name, run.step)
            now = models[name]
    found = rows(models, split)
    _write(run, found, split)
    return found


def rows(models: Mapping[str, Opened], split: str) -> list[dict[str, Any]]:
    """The table: what each model costs, and how good it is."""
    costs = measure.costs(models, split)
    found = []
    for name, run in models.items():
        cost, numbers = costs[name], measure.metrics(run, split)
        metric = next((one for one, _ in MAIN if one in numbers), next(iter(numbers)))
        value, low, high = numbers[metric]
        found.append(
            {
                "model": name,
                metric: value,
                "low": low,
                "high": high,
                "kB on disk": cost.disk / 1000,
                "kB in memory": cost.held / 1000,
                "parameters": cost.parameters,
                "FLOPs": cost.flops,
                "ms": 1000 * cost.latency,
                "rows a second": cost.throughput,
            }
        )
    return found


def pareto(found: Sequence[Mapping[str, Any]], metric: str, more_is_better: bool) -> list[int]:
    """Rows that no other is both smaller and better than, the smallest first."""
    sign = 1 if more_is_better else -1
    order = sorted(
        range(len(found)), key=lambda i: (found[i]["kB on disk"], -sign * found[i][metric])
    )
    front: list[int] = []
    for i in order:
        if not front or sign * found[i][metric] > sign * found[front[-1]][metric]:
            front.append(i)
    return front


def _write(run: Opened, found: list[dict[str, Any]], split: str) -> None:
    folder, metric = run.workdir / FOLDER, list(found[0])[1]
    better = dict(MAIN).get(metric, False)
    front = pareto(found, metric, better)
    line = {"none is both smaller and better": [_point(found[i], metric) for i in front]}
    dots = {row["model"]: [_point(row, metric)] for row in found}
    device = run.setup.program.mesh.devices.flat[0].device_kind
    write_json(folder / "table.json", found)
    write_page(
        folder / "shrink.html",
        "shrink.html",
        title=f"{run.workdir.resolve().name}, shrunk",
        facts=f"{split} · step {run.step} · {device}",
        table=table(found),
        notes=[
            f"low, high: 95 % bootstrap interval of {metric}, over parts of {split}",
            "on disk: the weights alone, deflated; parameters: those that are not zero; FLOPs: of a "
            "forward pass, an example; ms: one example, the median of calls taken in turns",
        ],
        chart=charts.chart(f"{metric} against size", {**line, **dots}),
        across="kB on disk",
    )


def _point(row: Mapping[str, Any], metric: str) -> tuple[float, float]:
    return row["kB on disk"], row[metric]
