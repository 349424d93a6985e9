"""The largest results of a compiled program's operations, with the part of the model that each is of.

Read from XLA's optimised HLO. Which of them live at once it does not say: some share a place.
"""

from __future__ import annotations

import re
from typing import Any

from bigjax.plan.collectives import computations, result_bytes

_RESULT = re.compile(r"^\s*(?:ROOT )?%?[\w.-]+ = (\(.*?\)|\S+) ([\w-]+)\(")
_NAME = re.compile(r'op_name="([^"]+)"')
_INSIDE = re.compile(r"\b(?:calls|to_apply)=%?([\w.-]+)")
# Results that are another one's place under a new name, or were there before the step.
_NO_PLACE = {"parameter", "tuple", "get-tuple-element", "bitcast", "constant", "while"}


def largest_results(text: str, most: int) -> list[dict[str, Any]]:
    """what: the traced operation's path, "jit(train_step)/jvp(GPT2)/block_0/mlp/up/dot_general". bytes.

    One row a path, of the largest of its results, on one device.
    """
    lines, _ = computations(text)
    # What is inside of a fusion is never written out.
    inside = {name for body in lines.values() for line in body for name in _INSIDE.findall(line)}
    sizes: dict[str, int] = {}
    for computation, body in lines.items():
        for line in body if computation not in inside else ():
            found, name = _RESULT.match(line), _NAME.search(line)
            if found and name and found[2] not in _NO_PLACE:
                size = result_bytes(found[1], found[2], found[2].endswith("-start"))
                sizes[name[1]] = max(size, sizes.get(name[1], 0))
    order = sorted(sizes, key=lambda name: -sizes[name])
    return [{"what": name, "bytes": sizes[name]} for name in order[:most]]
