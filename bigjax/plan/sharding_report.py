"""What lies where and what is sent: a program's parameters, memory and collectives, without running it.

The step is compiled from shapes alone; no array is made. `report` gives plain data for machines,
`text` the same for people. Knows no config and no file.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from bigjax.build.parts import abstract_batch
from bigjax.build.program import Program
from bigjax.core.errors import UserError
from bigjax.core.rules import paths
from bigjax.plan.collectives import by_axis, of_program
from bigjax.run.text import table

REPLICATED_LIMIT = 2**20  # bytes; a larger parameter is replicated only where a rule says so
SPLITTING_AXES = ("fsdp", "tensor")


def report(program: Program, features: dict[str, Any], batch_size: int) -> dict[str, Any]:
    """The sharding report of a program's train step, which is compiled for it.

    Args:
      program: as `build_program` makes it; its mesh may be of simulated devices.
      features: of the train split: name -> (shape of an example, dtype).
      batch_size: global.

    Returns:
      mesh: axis -> size, those above 1. parameters: a dict each. bytes_per_device: of what lies on
      every device, and the compiler's figure for what the step needs beside it. collectives: a dict
      for each kind and mesh axes, or None where the compiler does not show its program. pipeline:
      stages, microbatches, rounds and bubble, or None.

    Raises:
      UserError: a large parameter is replicated though no rule says so.
    """
    found = held(program)
    compiled = lowered_step(program, abstract_batch(program.mesh, features, batch_size)).compile()
    memory, sent = compiled.memory_analysis(), of_program(compiled, program.mesh.size)
    found["bytes_per_device"]["activations"] = None if memory is None else memory.temp_size_in_bytes
    if sent is not None:
        sent = by_axis(sent, program.mesh, lambda device: device.process_index)
    return {**found, "collectives": sent}


def held(program: Program) -> dict[str, Any]:
    """What lies on every device between steps, as `report` gives it; nothing is compiled."""
    parameters = parameter_rows(program)
    check_replicated(parameters, dict(program.mesh.shape))
    state = program.state
    rest = (state.collections, state.rng, state.hyper, state.step, state.memory, state.loss_scale)
    return {
        "mesh": {axis: size for axis, size in program.mesh.shape.items() if size > 1},
        "devices": program.mesh.size,
        "parameters": parameters,
        "pipeline": program.pipeline,
        "bytes_per_device": {
            "params": bytes_per_device(state.params),
            "optimizer": bytes_per_device(state.opt_state),
            "moving average": bytes_per_device(state.ema),
            "other state": bytes_per_device(rest),
            **{name: bytes_per_device(tree) for name, tree in program.frozen.items()},
        },
    }


def lowered_step(program: Program, batch: dict[str, Any]) -> Any:
    """The train step of a run, lowered from shapes alone; `.compile()` it."""
    return program.train_step.lower(program.state, batch, program.frozen)


def parameter_rows(program: Program) -> list[dict[str, Any]]:
    """One dict a parameter: path, shape, dtype, rule (and its pattern), spec, bytes_per_device."""
    rows = []
    for path, leaf in paths(program.state.params).items():
        placement = program.placed[path]
        rows.append(
            {
                "path": path,
                "shape": list(leaf.shape),
                "dtype": str(leaf.dtype),
                "pattern": placement.pattern,
                "rule": placement.rule,
                "spec": [
                    list(axes) if isinstance(axes, tuple) else axes for axes in placement.spec
                ],
                "bytes_per_device": bytes_per_device(leaf),
            }
        )
    return rows


def check_replicated(parameters: Sequence[dict[str, Any]], mesh: dict[str, int]) -> None:
    """Refuses a parameter above `REPLICATED_LIMIT` that every device holds whole, unsaid.

    Said is it by a rule with the word `replicate`. No mesh axis that splits parameters, no fault.

    Raises:
      UserError: there are such parameters; the first is named, with its rule.
    """
    if all(mesh[axis] == 1 for axis in SPLITTING_AXES):
        return
    unsaid = [
        row
        for row in parameters
        if row["bytes_per_device"] > REPLICATED_LIMIT
        and not row["spec"]
        and "replicate" not in str(row["rule"]).replace("+", " ").split()
    ]
    if not unsaid:
        return
    first, sizes = unsaid[0], {axis: mesh[axis] for axis in SPLITTING_AXES if mesh[axis] > 1}
    others = f" (and {len(unsaid) - 1} more)" if len(unsaid) > 1 else ""
    axes = " x ".join(f"{axis} {size}" for axis, size in sizes.items())
    raise UserError(
        f"config.sharding.rules: {first['path']} {tuple(first['shape'])} of "
        f"{amount(first['bytes_per_device'])}{others} would lie whole on every device of {axes}: "
        f"the rule ({first['pattern']!r}, {first['rule']!r}) does not split it. "
        f"Split it, or say ({first['path']!r}, 'replicate')"
    )


def bytes_per_device(tree: Any) -> int:
    """Bytes of a tree of abstract arrays with shardings, on one device."""
    return sum(
        math.prod(leaf.sharding.shard_shape(leaf.shape)) * np.dtype(leaf.dtype).itemsize
        for leaf in jax.tree.leaves(tree)
    )


def text(found: dict[str, Any]) -> str:
    """A report as tables."""
    mesh = " x ".join(f"{axis} {size}" for axis, size in found["mesh"].items()) or "no axis above 1"
    rows = [
        {
            "parameter": row["path"],
            "shape": " x ".join(map(str, row["shape"])) or "scalar",
            "dtype": row["dtype"],
            "rule": f"{row['pattern']} -> {row['rule']}",
            "spec": ", ".join(_spec_word(axes) for axes in row["spec"]) or "replicated",
            "per device": amount(row["bytes_per_device"]),
        }
        for row in found["parameters"]
    ]
    sizes = {name: size for name, size in found["bytes_per_device"].items() if size != 0}
    totals = [
        {"on each device": name, "size": "unknown" if size is None else amount(size)}
        for name, size in sizes.items()
    ]
    parts = [
        f"{found['devices']} devices: {mesh}",
        table(rows),
        table(totals),
    ]
    if found["pipeline"]:
        parts.append(pipeline_line(found["pipeline"]))
    if found["collectives"] is None:
        parts.append("the compiler does not show this program, so its collectives are unknown")
    elif not found["collectives"]:
        parts.append("no collectives")
    else:
        sent = [
            {
                "a step": c["kind"],
                "over": c["axes"],
                "count": c["count"],
                "result per device": amount(c["bytes"]),
            }
            for c in found["collectives"]
        ]
        parts.append(table(sent))
    return "\n\n".join(parts)


def pipeline_line(pipeline: dict[str, Any]) -> str:
    """What a pipeline's shape costs, for people."""
    rounds = pipeline["rounds"]
    return (
        "pipeline: {stages} stages, {microbatches} microbatches{}; each stage is idle for {bubble:.0%} of the "
        "blocks' time (the bubble)".format(f", {rounds} rounds" * (rounds > 1), **pipeline)
    )


def amount(size: int) -> str:
    """Bytes for people: "512 B", "1.5 MiB"."""
    for power, unit in ((3, "GiB"), (2, "MiB"), (1, "KiB")):
        if size >= 1024**power:
            return f"{size / 1024**power:.3g} {unit}"
    return f"{size} B"


def _spec_word(axes: Any) -> str:
    return "-" if axes is None else axes if isinstance(axes, str) else " x ".join(axes)
