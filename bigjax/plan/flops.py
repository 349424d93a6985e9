"""The FLOPs of one training step, counted from the program itself and by the field's formula.

A multiplication and an addition are two. Pure; nothing is compiled or run.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

from bigjax.core.rules import paths

COUNTED = "matrix products and convolutions"


def of_step(train_step: Any, model: Mapping[str, Any], task: Any, state: Any, *rest: Any) -> dict:
    """FLOPs of one step by convention.

    Args:
      train_step: the jitted step; called with these very arguments before, tracing is cached.
      model: the model's section of the config: a Transformer's formula is added to the count.
      task: the run's task, whose first input are the tokens.
      state, rest: the step's arguments: the batch (None: no step was run, nothing is counted), ...
    """
    if rest[0] is None:
        return {}
    found = {COUNTED: of_jaxpr(train_step.trace(state, *rest).jaxpr.jaxpr)}
    if {"layers", "heads", "width", "context"} <= model.keys():
        tokens = task.input if isinstance(task.input, str) else task.input[0]
        parameters = multiplied(model, state.params)
        found |= transformer(parameters, model["layers"], model["width"], *rest[0][tokens].shape)
    return found


def multiplied(model: Mapping[str, Any], params: Any) -> int:
    """How many of a Transformer's parameters multiply; tables that are only looked up do not.

    The embedding multiplies where it also gives the logits: with a tied or a masked-LM head.
    """
    sizes = {path: leaf.size for path, leaf in paths(params).items()}
    tables = ["positions", "types"]
    if not model.get("tied", True) or model.get("head", "mlm") != "mlm":
        tables.append("embedding")
    return sum(sizes.values()) - sum(sizes.get(table, 0) for table in tables)


def transformer(parameters: int, layers: int, width: int, batch: int, length: int) -> dict:
    """6 N + 12 L D T a token (Chowdhery et al. 2022, "PaLM", appendix B), forward and backward.

    The second term is attention's, over the whole square of T x T; as a causal mask leaves half of
    that, some count 6 L D T. Both are given, by name.

    Args:
      parameters: N, those that multiply: a table that is only looked up does not count.
      layers, width: L and D, heads times their width.
      batch, length: sequences, and T tokens in each.
    """
    attention, tokens = layers * width * length, batch * length
    return {
        "6N + 12LDT": float(tokens * (6 * parameters + 12 * attention)),
        "6N + 6LDT, causal": float(tokens * (6 * parameters + 6 * attention)),
    }


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
