"""What a run will take: memory, FLOPs, what is sent, time and cost, from its compiled step. Plain data.

Whose each figure is: the compiler's (of the very program that would run), a formula's, or an assumption.
"""

from __future__ import annotations

import hashlib
import os
import re
import resource
import time
from collections.abc import Mapping
from typing import Any

import jax

from bigjax.build.parts import abstract_batch
from bigjax.build.program import Program
from bigjax.core.errors import UserError, first_line
from bigjax.mesh.offload import HOST
from bigjax.plan import buffers, collectives, flops, sharding_report
from bigjax.plan.roofline import roofline
from bigjax.plan.sharding_report import amount
from bigjax.plan.topology import Topology

COMPILER, FORMULA, ASSUMPTION = "compiler", "formula", "assumption"
LARGEST = 8  # parameters, and as many operations, named where a program does not fit
# Spares a compiler what changes no buffer and no collective: machine code, which nobody runs here.
QUICK = {
    "cpu": {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True},
    "gpu": {
        "xla_backend_optimization_level": 0,
        "xla_llvm_disable_expensive_passes": True,
        "xla_gpu_autotune_level": 0,
    },
    "tpu": None,
}
# What libtpu says of a program that does not fit, in its own units.
_USED = re.compile(r"Used ([\d.]+[KMGT]?) of ([\d.]+[KMGT]?) hbm")
_NEEDS = re.compile(
    r"Exceeded hbm capacity by ([\d.]+[KMGT]?)|Exceeds hbm capacity by ([\d.]+[KMGT]?)"
)
_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


def answer(
    program: Program,
    features: Mapping[str, Any],
    batch_size: int,
    steps: int,
    topology: Topology,
    *,
    narrow: bool,
    price: float | None = None,
    beat: float | None = None,
) -> dict[str, Any]:
    """All that is known of a run before it runs.

    Args:
      program: on a mesh of the topology's devices.
      features, batch_size: as for `sharding_report.report`.
      steps: of the run.
      narrow: whether it computes in 16 bits.
      price: of a device for an hour, in any currency.
      beat: seconds of a step; a step that needs more by a lower bound, or state that is larger than a
        device, is not compiled: {"left_out": why}. None: it is compiled whatever it takes.

    Raises:
      UserError: the step cannot be compiled for these devices, for another reason than memory.
    """
    if beat is not None and (why := too_large(program, topology)):
        return {"left_out": why}
    found = sharding_report.held(program)
    batch = abstract_batch(program.mesh, dict(features), batch_size)
    began = time.perf_counter()
    counted = flops.of_step(
        program.train_step, program.formula, program.state, batch, program.frozen
    )
    if beat is not None and (why := too_slow(program, topology, counted, narrow, beat)):
        return {"left_out": why}
    lowered = sharding_report.lowered_step(program, batch)
    found["program"] = hashlib.sha256(lowered.as_text().encode()).hexdigest()
    lowering = time.perf_counter() - began
    compiled, refusal = compile_or_refusal(lowered, topology)
    found |= {
        "topology": topology.name,
        "platform": topology.platform,
        "batch_size": batch_size,
        "steps": steps,
        "flops": counted,
        "seconds": {"lower": lowering, "compile": time.perf_counter() - began - lowering},
        "planner_bytes": 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss,
    }
    found["memory"] = memory(compiled, refusal, found["bytes_per_device"], batch, topology)
    text = compiled and collectives.printed(compiled)
    found["largest"] = largest(found["parameters"], refusal, text)
    rows = text and collectives.of_text(text, program.mesh.size)
    found["collectives"] = rows and collectives.by_axis(rows, program.mesh, topology.node)
    found |= speed(found, compiled, topology, batch_size, steps, features, narrow, price)
    return found


def too_large(program: Program, topology: Topology) -> str:
    """Why a program cannot fit, whatever its compiler makes of it; "" if it may."""
    held, room = updated_bytes(program), capacity(topology)[0]
    if room is None or held <= room:
        return ""
    return f"does not fit: parameters and optimizer alone take {amount(held)} of {amount(room)}"


def too_slow(
    program: Program, topology: Topology, counted: Mapping[str, float], narrow: bool, beat: float
) -> str:
    """Why a step takes more than `beat` seconds at best, by a lower bound of its roofline; "" if it may not.

    The products are those of the whole roofline; what is trained is at least read and written once.
    """
    if topology.chip is None:
        return ""
    least = roofline(
        topology.chip,
        topology.size,
        flops=products(counted),
        moved=2 * updated_bytes(program),
        collectives=None,
        narrow=narrow,
    )
    if least["step_seconds"] <= beat:
        return ""
    alone = f"{least['bound']} alone takes {1e3 * least['step_seconds']:.4g} ms of a step"
    return f"slower: {alone}, the fastest {1e3 * beat:.4g} ms in all"


def updated_bytes(program: Program) -> int:
    """Bytes on a device of what each step updates: it is an argument and a result of every program."""
    state = program.state
    leaves = jax.tree.leaves((state.params, state.opt_state, state.ema))
    return sharding_report.bytes_per_device(
        [leaf for leaf in leaves if leaf.sharding.memory_kind != HOST]
    )


def compile_or_refusal(lowered: Any, topology: Topology) -> tuple[Any, str]:
    """(the compiled program, "") or (None, the compiler's message that it needs too much memory)."""
    try:
        return lowered.compile(compiler_options=QUICK[topology.platform]), ""
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" in str(error) and _USED.search(str(error)):
            return None, str(error)
        raise UserError(
            f"--topology={topology.name}: the compiler refuses this step: {first_line(error)}; another "
            "mesh, model.remat or model.attention may pass"
        ) from None


def memory(
    compiled: Any,
    refusal: str,
    held: Mapping[str, int],
    batch: Mapping[str, Any],
    topology: Topology,
) -> dict[str, Any]:
    """Bytes on each device: rows of (what, bytes, by), the peak, the capacity, and what is missing.

    peak is arguments + results that take no argument's place + temporaries + code.
    """
    rows = [(name, size, FORMULA) for name, size in held.items() if size]
    rows.append(("batch", sharding_report.bytes_per_device(batch), FORMULA))
    room, by = capacity(topology)
    if compiled is None:
        used, available = _USED.search(refusal).groups()
        peak, room, by = _bytes(used), _bytes(available), COMPILER
        return dict(rows=rows, peak=peak, capacity=room, capacity_by=by, short=peak - room)
    stats = compiled.memory_analysis()
    if stats is None:
        return dict(rows=rows, peak=None, capacity=room, capacity_by=by, short=None)
    fresh = stats.output_size_in_bytes - stats.alias_size_in_bytes
    rows += [
        ("arguments: all of the above", stats.argument_size_in_bytes, COMPILER),
        ("gradients, activations, other temporaries", stats.temp_size_in_bytes, COMPILER),
        ("of them all gradients, where they live at once", held["params"], FORMULA),
        ("results in no argument's place", fresh, COMPILER),
        ("code", stats.generated_code_size_in_bytes, COMPILER),
    ]
    peak = sum(size for _, size, says in rows if says == COMPILER)
    short = None if room is None else max(0, peak - room)
    return dict(
        rows=[row for row in rows if row[1]], peak=peak, capacity=room, capacity_by=by, short=short
    )


def capacity(topology: Topology) -> tuple[int | None, str]:
    """(bytes that a program may use on a device, whose figure it is).

    JAX takes three quarters of a GPU, or XLA_PYTHON_CLIENT_MEM_FRACTION of it; simulated devices
    share this machine's memory.
    """
    if topology.platform == "cpu":
        whole = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        return whole // topology.size, f"{ASSUMPTION}: this machine's memory, shared evenly"
    if topology.platform == "tpu":
        return topology.chip.memory, f"{ASSUMPTION}: as published"
    share = float(os.environ.get("XLA_PYTHON_CLIENT_MEM_FRACTION", "0.75"))
    return int(share * topology.chip.memory), f"{ASSUMPTION}: {share:.0%} of the GPU, JAX's default"


def largest(
    parameters: list[dict[str, Any]], refusal: str, text: str | None
) -> list[dict[str, Any]]:
    """The largest results of operations on a device, then the largest parameters.

    Where a compiler has refused they are its own largest buffers; else those of its program, of which
    some may share a place.
    """
    named = re.findall(
        r"Size: ([\d.]+[KMGT])\n(?:.*\n){0,2}?\s*Operator: op_name=\"([^\"]+)\"", refusal
    )
    made = [{"what": name, "bytes": _bytes(size)} for size, name in named]
    if text:
        made = buffers.largest_results(text, LARGEST)
    rows = sorted(parameters, key=lambda row: -row["bytes_per_device"])
    kept = [{"what": row["path"], "bytes": row["bytes_per_device"]} for row in rows]
    return [*made[:LARGEST], *kept[:LARGEST]]


def speed(
    found: Mapping[str, Any],
    compiled: Any,
    topology: Topology,
    batch_size: int,
    steps: int,
    features: Mapping[str, Any],
    narrow: bool,
    price: float | None,
) -> dict[str, Any]:
    """The roofline and what follows from it; nothing where the chip, or the program, is not known."""
    given = costs(compiled)
    own = {"compiler_flops_per_device": given.get("flops")}
    if topology.chip is None or compiled is None:
        return own | {"roofline": None, "run": None}
    moved, says = bytes_moved(compiled, given)
    counted = found["flops"]
    roof = roofline(
        topology.chip,
        topology.size,
        flops=products(counted),
        moved=moved,
        collectives=found["collectives"],
        narrow=narrow,
        bubble=found["pipeline"]["bubble"] if found["pipeline"] else 0.0,
    )
    step = roof["step_seconds"]
    run: dict[str, Any] = {"samples_per_second": batch_size / step}
    if len(features.get("tokens", ((), None))[0]) == 1:
        run["tokens_per_second"] = run["samples_per_second"] * features["tokens"][0][0]
    whole = topology.size * topology.chip.flops
    # The formulas' FLOPs and those of the program's products differ by a little: no more than all of it.
    ceiling = {name: min(1.0, count / (step * whole)) for name, count in counted.items()}
    run["mfu_ceiling"] = ceiling
    run["seconds"] = steps * step
    run["device_hours"] = run["seconds"] * topology.size / 3600
    if price is not None:
        run["cost"] = price * run["device_hours"]
    return own | {"roofline": {**roof, "moved": moved, "moved_by": says}, "run": run}


def products(counted: Mapping[str, float]) -> float:
    """The FLOPs of a step that take time: those counted in its program; else the model's own formula's."""
    return counted.get(flops.COUNTED, 0.0) or max(counted.values(), default=0.0)


def costs(compiled: Any) -> dict[str, float]:
    """The compiler's own counts of one device's program; {} where it has none."""
    found = compiled.cost_analysis() if compiled is not None else None
    return dict(found[0] if isinstance(found, list) else found or {})


def bytes_moved(compiled: Any, given: Mapping[str, float]) -> tuple[float, str]:
    """(bytes to and from a device's memory in a step, whose figure).

    At the least each argument is read, each result written, and the temporaries' memory written and
    read once. A compiler counts a loop's body once, so the larger figure is taken.
    """
    stats = compiled.memory_analysis()
    least = stats.argument_size_in_bytes + stats.output_size_in_bytes + 2 * stats.temp_size_in_bytes
    accessed = given.get("bytes accessed", 0.0)
    if accessed > least:
        return accessed, COMPILER
    return float(least), f"{FORMULA}: arguments + results + 2 x temporaries"


def _bytes(text: str) -> int:
    """ "15.75G" -> bytes."""
    number, unit = (text[:-1], text[-1]) if text[-1] in _UNITS else (text, "")
    return round(float(number) * _UNITS[unit])
