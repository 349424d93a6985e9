"""How long a step takes at best, from published figures alone. Pure.

Williams, Waterman and Patterson 2009, "Roofline": a step takes at least as long as each of its
resources is busy; at best they all overlap.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from bigjax.plan.chips import Chip

# What a term assumes beside the published figure.
TERMS = {
    "compute": "products at the chip's peak",
    "memory": "each byte moved once at full bandwidth",
    "intra": "all links of a chip busy, nothing in the way",
    "cross": "the network card busy, nothing in the way",
}


def roofline(
    chip: Chip,
    devices: int,
    *,
    flops: float,
    moved: float,
    collectives: Sequence[Mapping[str, Any]] | None,
    narrow: bool,
    bubble: float = 0.0,
) -> dict[str, Any]:
    """The least seconds of a step for each resource, and which of them bounds it.

    Args:
      flops: of a step, over all devices.
      moved: bytes read from and written to a device's memory.
      collectives: as `collectives.by_axis` gives them; None: unknown, and taken for none.
      narrow: whether products are of 16-bit numbers.
      bubble: idle part of a pipeline's time. `flops` holds it: a stage out of turn computes on a copy.

    Returns:
      seconds: term -> seconds. bound: the longest term. step_seconds: its seconds. ridge: FLOPs a byte
      from which on a program is bound by compute. bubble_seconds: so much of compute is a pipeline's
      bubble, if the blocks are all of it; less where what is before and after them counts.
    """
    peak = chip.flops * (1.0 if narrow else chip.float32)
    rows = collectives or ()
    seconds = {
        "compute": flops / (devices * peak),
        "memory": moved / chip.bandwidth,
        "intra": sum(row["inside"] for row in rows) / chip.intra,
        "cross": sum(row["across"] for row in rows) / chip.cross,
    }
    bound = max(seconds, key=lambda term: seconds[term])
    return {
        "seconds": seconds,
        "bound": bound,
        "step_seconds": seconds[bound],
        "peak_flops": peak,
        "ridge": peak / chip.bandwidth,
        "bubble_seconds": bubble * seconds["compute"],
    }
