"""The FLOPs of one training step, counted from the program itself and by the model's own formula.

A multiplication and an addition are two. Nothing is compiled or run, and nothing is raised: a figure
that cannot be had is missing, and the log says why.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator
from typing import Any

from bigjax.core.errors import said

log = logging.getLogger(__name__)

COUNTED = "matrix products and convolutions"


def of_step(
    train_step: Any, formula: Callable[[Any], dict[str, float]], *arguments: Any
) -> dict[str, float]:
    """FLOPs of one step by convention: name -> figure.

    Args:
      train_step: the jitted step; if it was traced for these very arguments before, that is used.
      formula: a batch -> the model's own figures for it (`bigjax.build.parts.Network.flops`).
      arguments: the step's: the state, the batch (None: no step was run, nothing is counted), ...
    """
    batch = arguments[1]
    if batch is None:
        return {}
    counted = figure(lambda: {COUNTED: of_jaxpr(train_step.trace(*arguments).jaxpr.jaxpr)})
    return counted | figure(lambda: formula(batch))


def figure(count: Callable[[], dict[str, float]]) -> dict[str, float]:
    """What `count` gives; nothing, with a line in the log, where it fails: a run is worth more."""
    try:
        return count()
    except Exception as error:  # a user's model may raise anything
        log.warning("no FLOPs: %s", said(error))
        return {}


def of_jaxpr(jaxpr: Any) -> float:
    """FLOPs of the matrix products and convolutions of a jaxpr, over all devices.

    The body of a scan counts as often as it runs, the dearest branch of a cond once, the body of a
    while loop, whose length is not known, once. Rematerialisation counts, being computed. Kernels
    that are no jaxpr (Pallas, cuDNN attention) count as nothing.
    """
    return sum(of_equation(equation) for equation in jaxpr.eqns)


def of_equation(equation: Any) -> float:
    name, parameters = equation.primitive.name, equation.params
    if name == "dot_general":
        (contracted, _), _ = parameters["dimension_numbers"]
        depth = math.prod(equation.invars[0].aval.shape[axis] for axis in contracted)
        return 2.0 * equation.outvars[0].aval.size * depth
    if name == "conv_general_dilated":
        kernel = equation.invars[1].aval.shape
        features = kernel[parameters["dimension_numbers"].rhs_spec[0]]
        # A dilated input is mostly zeros that a strided backward pass put there.
        zeros = math.prod(parameters["lhs_dilation"])
        per_output = math.prod(kernel) / features / zeros
        return 2.0 * equation.outvars[0].aval.size * per_output
    inner = [of_jaxpr(body) for value in parameters.values() for body in bodies(value)]
    if name == "cond":
        return max(inner)
    if name == "scan":
        return sum(inner) * parameters["length"]
    if name == "shard_map":  # what one device does
        sizes = parameters["mesh"].shape
        manual = parameters.get("newly_manual_axes") or parameters["manual_axes"]
        return sum(inner) * math.prod(sizes[axis] for axis in manual)
    return sum(inner)


def bodies(value: Any) -> Iterator[Any]:
    """The jaxprs in a parameter of an equation."""
    for item in value if isinstance(value, tuple | list) else (value,):
        if hasattr(item, "eqns"):
            yield item
        elif hasattr(item, "jaxpr") and hasattr(item.jaxpr, "eqns"):
            yield item.jaxpr
