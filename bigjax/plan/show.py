"""A plan for people: tables in the terminal, and the same ones as plan.html. Pure but for `write`."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bigjax.plan.chips import Chip
from bigjax.plan.roofline import TERMS
from bigjax.plan.sharding_report import amount, pipeline_line
from bigjax.report.page import table as page_table
from bigjax.report.page import write_page
from bigjax.run.text import duration, rate, table

Section = tuple[str, list[dict[str, Any]]]  # title, rows

BOUNDS = {
    "compute": "the chip's arithmetic",
    "memory": "the chip's memory bandwidth",
    "intra": "the links within a slice or node",
    "cross": "the network between slices or nodes",
}


def headline(plan: Mapping[str, Any]) -> str:
    """One line: whether it fits."""
    mesh = " x ".join(f"{axis} {size}" for axis, size in plan["mesh"].items()) or "one device"
    where = (
        f"{plan['topology']}: {plan['devices']} devices ({mesh}), {plan['batch_size']} rows a step"
    )
    memory = plan["memory"]
    if memory["short"] is None:
        return f"{where}: whether it fits is not known"
    peak, room = amount(memory["peak"]), amount(memory["capacity"])
    if memory["short"]:
        return f"{where}: DOES NOT FIT: a device needs {peak} of {room}, {memory['short']:,} bytes too many"
    return f"{where}: fits: a device needs {peak} of {room}"


def sections(plan: Mapping[str, Any], chip: Chip | None) -> list[Section]:
    """The tables of a plan: (title, rows)."""
    found = [("Memory on each device", _memory(plan)), ("FLOPs of a step", _flops(plan))]
    if plan["memory"]["short"]:
        rows = [{"": row["what"], "on a device": amount(row["bytes"])} for row in plan["largest"]]
        found.append(("Largest on a device", rows))
    if plan["collectives"]:
        title = "Sent in a step (counts, results: compiler; what a device sends: formula of the best ways)"
        found.append((title, _collectives(plan["collectives"])))
    if plan["roofline"]:
        found.append(("At best (assumption)", _roofline(plan["roofline"], chip)))
        found.append(("The run, at best (assumption)", _run(plan)))
    return found


def notes(plan: Mapping[str, Any], chip: Chip | None) -> list[str]:
    """What a reader must know beside the tables."""
    said = plan["remarks"] or ["the program is the one that a run compiles"]
    said = [*said, f"StableHLO {plan['program'][:16]}"]
    if not plan["data_is_there"]:
        said.append("the data is not here: shapes are those that the config says")
    if plan["pipeline"]:
        said.append(pipeline_line(plan["pipeline"]))
    if plan["collectives"] is None:
        said.append("what is sent is not known: the compiler does not show this program")
    elif not plan["collectives"]:
        said.append("nothing is sent between devices")
    if chip is None:
        said.append(
            "no time: simulated devices have no published figures; name a chip, such as v5e:4x4"
        )
    else:
        said.append(f"figures of the chip: {chip.sources}; of its peak: bigjax/run/clock.py")
        if plan["platform"] == "gpu":
            said.append(
                "GPU: kernels that a real GPU would tune, and NCCL's own buffers, are not in it"
            )
    seconds = plan["seconds"]
    said.append(
        f"lowered in {seconds['lower']:.1f} s, compiled in {seconds['compile']:.1f} s, with "
        f"{amount(plan['planner_bytes'])} of this machine's memory"
    )
    return said


def _memory(plan: Mapping[str, Any]) -> list[dict[str, Any]]:
    memory = plan["memory"]
    rows = [{"": what, "bytes": amount(size), "by": by} for what, size, by in memory["rows"]]
    if memory["peak"] is not None:
        rows.append({"": "peak", "bytes": amount(memory["peak"]), "by": "compiler"})
    if memory["capacity"] is not None:
        rows.append(
            {"": "capacity", "bytes": amount(memory["capacity"]), "by": memory["capacity_by"]}
        )
    return rows


def _flops(plan: Mapping[str, Any]) -> list[dict[str, Any]]:
    rows = [{"": name, "FLOPs": f"{n:.4g}", "by": "formula"} for name, n in plan["flops"].items()]
    own = plan["compiler_flops_per_device"]
    if own is not None:
        by = "compiler (a loop's body once)"
        rows.append({"": "one device's program", "FLOPs": f"{own:.4g}", "by": by})
    return rows


def _collectives(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    return [
        {
            "": row["kind"],
            "axis": row["axes"],
            "count": row["count"],
            "results": amount(row["bytes"]),
            "a device sends": amount(row["inside"]),
            "over the slow network": amount(row["across"]) if row["across"] else "-",
        }
        for row in rows
    ]


def _roofline(roof: Mapping[str, Any], chip: Chip) -> list[dict[str, Any]]:
    figures = {
        "compute": f"{roof['peak_flops'] / 1e12:.4g} TFLOP/s",
        "memory": f"{chip.bandwidth / 1e9:.4g} GB/s; {amount(round(roof['moved']))} by {roof['moved_by']}",
        "intra": f"{chip.intra / 1e9:.4g} GB/s",
        "cross": f"{chip.cross / 1e9:.4g} GB/s",
    }
    rows = [
        {
            "": BOUNDS[term] + (" <- bound" if term == roof["bound"] else ""),
            "a step": _time(seconds),
            "published": figures[term],
            "assumption": TERMS[term],
        }
        for term, seconds in roof["seconds"].items()
    ]
    if roof["bubble_seconds"]:
        bubble = {"": "of the arithmetic, the pipeline's bubble", "published": "-"}
        says = "formula: (p - 1) / (m v + p - 1), the blocks taken for all of it"
        rows.insert(1, {**bubble, "a step": _time(roof["bubble_seconds"]), "assumption": says})
    return rows


def _run(plan: Mapping[str, Any]) -> list[dict[str, Any]]:
    run = plan["run"]
    rows = [("step", _time(plan["roofline"]["step_seconds"]))]
    rows.append(("samples a second", rate(run["samples_per_second"])))
    if "tokens_per_second" in run:
        rows.append(("tokens a second", rate(run["tokens_per_second"])))
    rows += [(f"MFU at most, {name}", f"{x:.1%}") for name, x in run["mfu_ceiling"].items()]
    rows.append((f"{plan['steps']:,} steps", duration(run["seconds"])))
    rows.append(("device-hours", f"{run['device_hours']:,.4g}"))
    if "cost" in run:
        rows.append(("cost", f"{run['cost']:,.2f}"))
    return [{"": name, "value": value} for name, value in rows]


def compared(labels: Sequence[str], plans: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """A row a plan: what differs between them."""
    rows = []
    for label, plan in zip(labels, plans, strict=True):
        if "refused" in plan:
            rows.append({"": label, "fits": "refused", "why": plan["refused"][:160]})
            continue
        if "left_out" in plan:
            rows.append({"": label, "fits": "not compiled", "why": plan["left_out"]})
            continue
        memory, sent = plan["memory"], plan["collectives"]
        step = plan["roofline"] and plan["roofline"]["step_seconds"]
        rows.append(
            {
                "": label,
                "fits": {None: "?", 0: "yes"}.get(memory["short"], "NO"),
                "peak": amount(memory["peak"]) if memory["peak"] is not None else "?",
                "sent": "?" if sent is None else amount(_total(sent)),
                "step at best": _time(step) if step else "?",
                "bound": plan["roofline"]["bound"] if step else "",
                "why": "",
            }
        )
    return rows


def rank(plan: Mapping[str, Any]) -> tuple[float, float] | None:
    """The lower the better: (seconds of a step at best, bytes of the peak); None if it does not fit, or
    was not compiled."""
    if "refused" in plan or "left_out" in plan or plan["memory"]["short"]:
        return None
    roof, peak = plan["roofline"], plan["memory"]["peak"]
    return roof["step_seconds"] if roof else 0.0, math.inf if peak is None else peak


def _total(rows: Sequence[Mapping[str, Any]]) -> int:
    return sum(row["inside"] + row["across"] for row in rows)


def text(title: str, rows: Sequence[Mapping[str, Any]]) -> str:
    return f"{title}\n{table(rows)}"


def write(
    path: Path, title: str, head: str, tables: Sequence[Section], said: Sequence[str]
) -> Path:
    """Writes plan.html; returns its path."""
    shown = [(name, page_table(rows)) for name, rows in tables if rows]
    return write_page(path, "plan.html", title=title, head=head, tables=shown, notes=said)


def _time(seconds: float) -> str:
    for size, unit in ((1, "s"), (1e-3, "ms")):
        if seconds >= size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds / 1e-6:.3g} us"
