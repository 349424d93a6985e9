"""An ONNX graph, by `jax2onnx`: for onnxruntime and whatever else reads ONNX. The batch may be of any size.

The graph is data; its weights must be inside it, as a name of a file beside could be any file's.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.extend import core

from bigjax.core.errors import UserError, first_line, to_install
from bigjax.export.answer import Answer, Spec, live, program_of
from bigjax.export.card import Card

GRAPH = "model.onnx"
CONVERTER = "--no-deps jax2onnx==0.17.1"  # refuses our orbax-checkpoint, runs with it
PACKAGES = "equinox onnx onnx-ir onnxruntime"
INLINED = ("jit", "pjit", "closed_call", "custom_jvp_call", "custom_vjp_call")


def write(answer: Answer, names: Mapping[str, Spec], variables: Any, folder: Path) -> None:
    """Writes the graph of the model's forward pass, weights inside.

    Raises:
      UserError: the packages are not installed; jax2onnx cannot say an operation of the model.
    """
    try:
        from jax2onnx import to_onnx
    except ImportError as error:
        commands = f"{to_install(CONVERTER)} && {to_install(PACKAGES)}"
        raise UserError(f"--format=onnx needs {error.name}: {commands}") from None
    function, (rows,) = program_of(answer, names, variables, weights_inside=True)
    specs = [rows[name] for name in sorted(rows)]
    plain = plainly(function, rows)
    closed, shapes = jax.make_jaxpr(lambda *flat: _apart(plain(*flat)), return_shape=True)(*specs)
    graph = core.jaxpr_as_fun(live(closed)[0])
    try:
        found = to_onnx(
            graph, inputs=specs, input_names=sorted(rows), output_names=sorted(shapes)
        ).SerializeToString()
    except Exception as error:  # the converter raises many kinds for what it does not know
        reason = first_line(error)
        raise UserError(f"--format=onnx: jax2onnx cannot convert this model: {reason}") from None
    (folder / GRAPH).write_bytes(found)


def read(card: Card) -> Callable[[Mapping[str, np.ndarray]], dict[str, np.ndarray]]:
    """`run(inputs)` of a graph, by onnxruntime on the CPU.

    Raises:
      UserError: the packages are not installed; it is no graph, or has weights or operations outside.
    """
    try:
        import onnx
        import onnxruntime
    except ImportError as error:
        raise UserError(f"{GRAPH} needs {error.name}: {to_install(PACKAGES)}") from None
    path = card.folder / GRAPH
    try:
        model = onnx.load(path, load_external_data=False)
        outside = [t.name for t in _tensors(model.graph) if t.data_location == t.EXTERNAL]
        if outside:
            raise UserError(f"{path}: has the weights '{outside[0]}' in another file: refused")
        session = onnxruntime.InferenceSession(
            model.SerializeToString(), providers=["CPUExecutionProvider"]
        )
    except UserError:
        raise
    except Exception as error:  # protobuf and onnxruntime raise many kinds
        reason = first_line(error)
        raise UserError(f"{path}: no graph that onnxruntime runs ({reason[:120]})") from None
    names = [output.name for output in session.get_outputs()]
    return lambda rows: dict(zip(names, session.run(None, dict(rows)), strict=True))


def plainly(function: Callable[..., Any], *arguments: Any) -> Callable[..., Any]:
    """The function of flat arguments without what jax2onnx or onnxruntime does not know.

    Calls are inlined; a choice between platforms is its default; padding is concatenation (jax2onnx's `pad`
    knows no symbolic batch); a pool is the largest of shifted slices (its pools count the batch as a side);
    a running maximum is of floats, and a choice of booleans is logic (onnxruntime has neither).
    """
    closed, shapes = jax.make_jaxpr(function, return_shape=True)(*arguments)
    tree = jax.tree.structure(shapes)
    return lambda *flat: jax.tree.unflatten(tree, _evaluate(closed, flat))


def _apart(outputs: Any) -> Any:
    """The outputs, of which no two are one array: jax2onnx has one name for each."""
    seen: set[int] = set()

    def own(x: Any) -> Any:
        if id(x) in seen:
            return x & True if x.dtype == bool else lax.add(x, lax.full_like(x, 0))
        seen.add(id(x))
        return x

    return jax.tree.map(own, outputs)


def _evaluate(closed: Any, arguments: Sequence[Any]) -> list[Any]:
    jaxpr = closed.jaxpr
    values = dict(zip(jaxpr.constvars, closed.consts, strict=True))
    values |= dict(zip(jaxpr.invars, arguments, strict=True))

    def read(variable: Any) -> Any:
        return variable.val if isinstance(variable, core.Literal) else values[variable]

    for eqn in jaxpr.eqns:
        operands, name, params = list(map(read, eqn.invars)), eqn.primitive.name, eqn.params
        if name == "platform_index":
            found = [None]
        elif params.get("branches_platforms"):
            branch = params["branches"][params["branches_platforms"].index(None)]
            found = _evaluate(branch, operands[1:])
        elif name in INLINED:
            found = _evaluate(params.get("jaxpr") or params["call_jaxpr"], operands)
        elif name == "pad":
            found = [_padded(*operands, params["padding_config"])]
        elif name == "select_n" and operands[1].dtype == bool and len(operands) == 3:
            which, no, yes = operands
            found = [(which & yes) | (~which & no)]
        elif name == "cummax" and operands[0].dtype == np.int32:
            # Exact below 2 ** 24: these are places and documents.
            floats = eqn.primitive.bind(operands[0].astype(np.float32), **params)
            found = [floats.astype(np.int32)]
        elif name == "reduce_window_max":
            found = [_largest(*operands, **params)]
        else:
            found = eqn.primitive.bind(*operands, **params)
            found = found if eqn.primitive.multiple_results else [found]
        values.update(zip(eqn.outvars, found, strict=True))
    return list(map(read, jaxpr.outvars))


def _padded(x: Any, value: Any, config: Sequence[tuple[int, int, int]]) -> Any:
    """`lax.pad`, by concatenation where nothing is put between or cut off."""
    if any(low < 0 or high < 0 or between for low, high, between in config):
        return lax.pad(x, value, config)
    for axis, (low, high, _) in enumerate(config):
        ends = [
            jnp.broadcast_to(value, (*x.shape[:axis], count, *x.shape[axis + 1 :]))
            for count in (low, high)
        ]
        parts = [*ends[:1] * bool(low), x, *ends[1:] * bool(high)]
        x = lax.concatenate(parts, axis) if len(parts) > 1 else x
    return x


def _largest(
    x: Any,
    *,
    window_dimensions: Sequence[int],
    window_strides: Sequence[int],
    padding: Any,
    **_: Any,
) -> Any:
    """`lax.reduce_window` of a maximum: the largest of shifted slices."""
    x = _padded(x, np.array(-np.inf, x.dtype), [(*pad, 0) for pad in padding])
    kept = [
        (side - window) // stride + 1
        for side, window, stride in zip(x.shape, window_dimensions, window_strides, strict=True)
    ]
    found = None
    for corner in itertools.product(*map(range, window_dimensions)):
        ends = [
            start + (n - 1) * stride + 1
            for start, n, stride in zip(corner, kept, window_strides, strict=True)
        ]
        part = lax.slice(x, corner, ends, window_strides)
        found = part if found is None else jnp.maximum(found, part)
    return found


def _tensors(graph: Any) -> list[Any]:
    """Every constant of a graph and of the graphs within it."""
    found = list(graph.initializer)
    for node in graph.node:
        for attribute in node.attribute:
            found += [attribute.t, *attribute.tensors]
            for inner in (attribute.g, *attribute.graphs):
                found += _tensors(inner) if inner.node or inner.initializer else []
    return found
