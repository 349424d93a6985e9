"""What devices send each other in one run of a compiled program, read from its text.

The text is XLA's optimised HLO. Bytes are those of one device; a loop's body counts at each turn (once
where the text does not say how many turns it takes).
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

COLLECTIVES = (
    "all-gather",
    "all-reduce",
    "reduce-scatter",
    "all-to-all",
    "ragged-all-to-all",
    "collective-permute",
    "collective-broadcast",
)

_HEAD = re.compile(r"(ENTRY )?%?([\w.-]+) \(.*\{$")
_CALLED = re.compile(
    r"\b(?:body|calls|to_apply|branch_computations|called_computations)=\{?([^},]+(?:, [^}=]+)?)\}?"
)
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')
_CONDITION = re.compile(r"\bcondition=%?([\w.-]+)")
_UP_TO = re.compile(r"ROOT .* compare\(.*%?([\w.-]+)\), direction=LT")
# libtpu shows a collective that runs beside products once in each of the fusions that it spans.
_SPANNING = re.compile(r'channel_id=(\d+),.*"async_collective_fusion_config"')
_COLLECTIVE = re.compile(rf" = (.+?) ({'|'.join(COLLECTIVES)})(-start)?\(")
_ARRAY = re.compile(r"(pred|bf16|[a-z]+?(\d+)\w*)\[([\d,]*)\]")
_LISTED = re.compile(r"(?:replica_groups|source_target_pairs)=\{(\{[\d,{} ]*\})\}")
_IOTA = re.compile(r"replica_groups=\[(\d+),(\d+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?")
_MESH = re.compile(
    r"replica_groups=mesh\[([^\]]*)\](?:, device_ids=\(\[([\d,]+)\](?:T\(([\d,]+)\))?\))? \{([^}]*)\}"
)
_MESH_AXIS = re.compile(r"'([^']*)'=(\d+)")
_NAMED_AXIS = re.compile(r"'([^']*)'(?::\((\d+)\)(\d+))?")


def of_program(compiled: Any, devices: int) -> list[dict[str, Any]] | None:
    """`of_text` of a compiled program; None where its compiler does not show it."""
    text = printed(compiled)
    return None if text is None else of_text(text, devices)


def printed(compiled: Any) -> str | None:
    """The optimised HLO of a compiled program; None where the compiler fails to print it, as some do."""
    try:
        return compiled.as_text()
    except (jax.errors.JaxRuntimeError, NotImplementedError):
        return None


def of_text(text: str, devices: int) -> list[dict[str, Any]]:
    """The collectives of an optimised HLO module, one dict for each kind and set of groups.

    Returns:
      kind, count; bytes: of their results; groups: int (groups, devices of each), places in the
      mesh, row by row, or None where the text says it in a way that is not known here.
    """
    lines, entry = computations(text)
    counts: Counter[tuple[str, str]] = Counter()
    sizes: Counter[tuple[str, str]] = Counter()
    groups: dict[tuple[str, str], np.ndarray | None] = {}
    seen: set[str] = set()

    def add(computation: str, times: int) -> None:
        for line in lines.get(computation, ()):
            if found := _COLLECTIVE.search(line):
                if spanning := _SPANNING.search(line):
                    if spanning[1] in seen:
                        continue
                    seen.add(spanning[1])
                members = groups_of(line, devices)
                key = (found[2], "?" if members is None else str(members.tolist()))
                groups[key] = members
                counts[key] += times
                sizes[key] += times * result_bytes(found[1], found[2], bool(found[3]))
                continue
            turns = trips(line, lines)
            for called in _CALLED.findall(line):
                for one in called.split(", "):
                    add(one.strip().lstrip("%"), times * turns)

    add(entry, 1)
    order = sorted(groups, key=lambda key: COLLECTIVES.index(key[0]))
    return [
        {"kind": key[0], "count": counts[key], "bytes": sizes[key], "groups": groups[key]}
        for key in order
    ]


def trips(line: str, lines: dict[str, list[str]]) -> int:
    """How often a line's computation runs: of a loop as XLA notes it, or, where it does not (libtpu), as
    its condition compares a counter from zero with a constant; 1 of anything else."""
    if noted := _TRIPS.search(line):
        return int(noted[1])
    condition = _CONDITION.search(line)
    body = lines.get(condition[1], []) if condition else []
    if bound := next(filter(None, map(_UP_TO.search, body)), None):
        constant = re.compile(rf"%?{re.escape(bound[1])} = s32\[\]\S* constant\((\d+)\)")
        for found in filter(None, map(constant.search, body)):
            return int(found[1])
    return 1


def computations(text: str) -> tuple[dict[str, list[str]], str]:
    """(name -> lines of each computation of an HLO module, the name of the one that is run)."""
    lines: dict[str, list[str]] = {}
    entry = name = ""
    for line in text.splitlines():
        if head := _HEAD.match(line):
            name = head[2]
            lines[name] = []
            entry = name if head[1] else entry
        elif name:
            lines[name].append(line)
    return lines, entry


def by_axis(
    rows: Sequence[dict[str, Any]], mesh: Any, node: Callable[[Any], Any]
) -> list[dict[str, Any]]:
    """The rows of `of_text` by kind and mesh axes.

    Args:
      mesh: whose devices the groups' numbers are, row by row.
      node: device -> what it shares the fast network with.

    Returns:
      kind, axes ("data x fsdp", "?"), count, bytes of results, inside and across: bytes that one
      device must send at least (`sent`).
    """
    nodes = np.array([str(node(device)) for device in mesh.devices.flat])
    found: dict[tuple[str, str], dict[str, Any]] = {}
    for row in rows:
        groups, axes = np.arange(mesh.size)[None], "?"
        if row["groups"] is not None:
            groups, axes = row["groups"], axes_of_groups(row["groups"], mesh)
        members, spans = groups.shape[1], max(len(set(nodes[group])) for group in groups)
        if members == 1 or not axes:
            continue  # a group of one sends nothing, nor a permutation that leaves all in place
        empty = dict(kind=row["kind"], axes=axes, count=0, bytes=0, inside=0, across=0)
        total = found.setdefault((row["kind"], axes), empty)
        inside, across = sent(row["kind"], row["bytes"], members, spans)
        total["count"] += row["count"]
        total["bytes"] += row["bytes"]
        total["inside"] += round(inside)
        total["across"] += round(across)
    return list(found.values())


def sent(kind: str, size: float, members: int, nodes: int = 1) -> tuple[float, float]:
    """(bytes within a node, bytes between nodes) that each device must send at the least.

    The counts of the bandwidth-optimal algorithms (Patarasuk and Yuan 2009, "Bandwidth optimal
    all-reduce algorithms"; Thakur et al. 2005, "Optimization of collective communication operations
    in MPICH"), in two levels: first within the nodes, then what has been put together between them.

    Args:
      size: bytes of the result on one device.
      members: devices of a group. nodes: over how many nodes they lie, evenly.
    """
    own = members // nodes  # of a node
    if kind in ("collective-permute", "collective-broadcast"):
        return (0.0, size) if nodes > 1 else (size, 0.0)
    if kind == "reduce-scatter":
        return size * nodes * (own - 1), size * (nodes - 1)
    if kind == "all-reduce":
        return 2 * size * (own - 1) / own, 2 * size * (nodes - 1) / nodes / own
    if kind == "all-gather":
        return size * (own - 1) / own, size * (nodes - 1) / nodes / own
    return size * (own - 1) / members, size * (members - own) / members


def groups_of(line: str, devices: int) -> np.ndarray | None:
    """The groups of a collective's line, int (groups, devices of each); None: written in no known way."""
    everyone = np.arange(devices)
    if found := _IOTA.search(line):
        return _counted(found[3], found[4]).reshape(int(found[1]), int(found[2]))
    if found := _MESH.search(line):
        return _of_mesh(found[1], _counted(found[2] or str(devices), found[3]), found[4])
    if found := _LISTED.search(line):
        groups = [[int(n) for n in part.split(",")] for part in found[1][1:-1].split("},{") if part]
        return np.array(groups) if len({len(group) for group in groups}) == 1 else None
    return everyone[None] if "replica_groups={}" in line else None


def _counted(dims: str, order: str | None) -> np.ndarray:
    """0, 1, ... in the shape `dims`, with its axes in another order: "4,2" and "1,0"."""
    sizes = [int(size) for size in dims.split(",")]
    numbers = np.arange(math.prod(sizes)).reshape(sizes)
    return numbers.transpose([int(axis) for axis in order.split(",")]) if order else numbers


def _of_mesh(sizes: str, numbers: np.ndarray, named: str) -> np.ndarray | None:
    """Groups along some axes of a mesh of these numbers, such as "'a'=4,'b'=2" and "'b'".

    "'a':(2)2" is a part of an axis: its 2 devices behind 2 slower ones.
    """
    axes = {name: int(size) for name, size in _MESH_AXIS.findall(sizes)}
    if math.prod(axes.values()) != numbers.size:
        return None
    along = {name: (before, size) for name, before, size in _NAMED_AXIS.findall(named)}
    dims: list[int] = []
    kept = []
    for name, size in axes.items():
        before, own = along.get(name, ("", ""))
        is_part = bool(own)
        if name in along:
            kept.append(len(dims) + is_part)
        dims += [int(before), int(own), size // (int(before) * int(own))] if is_part else [size]
    order = [n for n in range(len(dims)) if n not in kept] + kept
    members = math.prod(dims[n] for n in kept)
    return numbers.reshape(dims).transpose(order).reshape(-1, members)


def axes_of_groups(groups: np.ndarray, mesh: Any) -> str:
    """The mesh axes along which the devices of a group differ: "data x fsdp"."""
    places = np.stack(np.unravel_index(groups, mesh.devices.shape))  # axis, group, member
    differ = (places != places[:, :, :1]).any(axis=(1, 2))
    return " x ".join(axis for axis, says in zip(mesh.axis_names, differ, strict=True) if says)


def result_bytes(result: str, kind: str, is_start: bool) -> int:
    """Bytes of an operation's result, from its type's text, such as "(f32[8,4]{1,0}, bf16[2])"."""
    arrays = [_array_bytes(*match) for match in _ARRAY.findall(result)]
    if is_start and kind != "all-reduce":  # its type holds the operands too, before the results
        arrays = arrays[len(arrays) // 2 :] if kind != "collective-permute" else arrays[1:2]
    return sum(arrays)


def _array_bytes(dtype: str, bits: str, dims: str) -> int:
    elements = math.prod(int(dim) for dim in dims.split(",") if dim)
    return elements * (1 if dtype == "pred" else 2 if dtype == "bf16" else -(-int(bits) // 8))
