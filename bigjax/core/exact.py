"""Random initial values that no compiler can round otherwise, however they are sharded.

A compiler may contract a * b + c into one instruction that rounds once, and does so in one loop and not
in another: one ulp between a parameter drawn whole and drawn in eight parts (jaxlib 0.12 on a CPU, in
the x * x of log1p inside erf_inv, of which every normal deviate is made). Here no product that is
inexact ever reaches a sum within one kernel, and nothing is left to a library of functions.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import ClosedJaxpr, Literal

# Giles 2010, "Approximating the erfinv function", table 1: for w < 5 and for the rest.
CENTRAL = (2.81022636e-08, 3.43273939e-07, -3.5233877e-06, -4.39150654e-06, 0.00021858087,
           -0.00125372503, -0.00417768164, 0.246640727, 1.50140941)  # fmt: skip
TAIL = (-0.000200214257, 0.000100950558, 0.00134934322, -0.00367342844, 0.00573950773,
        -0.0076224613, 0.00943887047, 1.00167406, 2.83297682)  # fmt: skip
# Cephes, logf: log(1 + f) = f - f^2 / 2 + f^3 P(f) on [sqrt(1/2), sqrt(2)).
LOG = (7.0376836292e-2, -1.1514610310e-1, 1.1676998740e-1, -1.2420140846e-1, 1.4249322787e-1,
       -1.6668057665e-1, 2.0000714765e-1, -2.4999993993e-1, 3.3333331174e-1)  # fmt: skip
LN_2 = 0.69314718
SQRT_HALF_BITS = 0x3F3504F3  # of the float32 sqrt(1/2)
# Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3": Threefry-2x32 of 20 rounds.
ROTATIONS = ((13, 15, 26, 6), (17, 29, 16, 24))
PARITY = 0x1BD11BDA


def exactly(function: Callable[..., Any]) -> Callable[..., Any]:
    """`function` with every `erf_inv` replaced and every sum kept apart from products. Pure; for jit.

    `function` makes a run's first state. Its draws are integers, which are exact anyway.
    """

    def rounded_alike(*arguments: Any) -> Any:
        closed, shapes = jax.make_jaxpr(function, return_shape=True)(*arguments)
        results = _evaluate(closed.jaxpr, closed.consts, jax.tree.leaves(arguments))
        return jax.tree.unflatten(jax.tree.structure(shapes), results)

    return rounded_alike


@jax.jit  # traced once a shape
def erf_inv(x: jax.Array) -> jax.Array:
    """The inverse error function of float32 x in [-1, 1], to 4e-7 relative (Giles 2010)."""
    w = -log((1 - x) * (1 + x))
    central = w < 5
    y = jnp.where(central, w - 2.5, jnp.sqrt(w) - 3)
    coefficients = [jnp.where(central, *pair) for pair in zip(CENTRAL, TAIL, strict=True)]
    return jnp.where(jnp.abs(x) < 1, _polynomial(coefficients, y) * x, x * jnp.inf)


def log(x: jax.Array) -> jax.Array:
    """The natural logarithm of positive, normal float32 x."""
    bits = jax.lax.bitcast_convert_type(x, jnp.int32)
    exponent = (bits - SQRT_HALF_BITS) >> 23
    f = jax.lax.bitcast_convert_type(bits - (exponent << 23), jnp.float32) - 1
    # log(1 + f) = f + f^2 (-1/2 + f P(f))
    log_1p = _add_product(f, _add_product(0.0, f, f), _polynomial((*LOG, -0.5), f))
    return _add_product(log_1p, exponent.astype(jnp.float32), jnp.float32(LN_2))


def _polynomial(coefficients: Sequence[Any], x: jax.Array) -> jax.Array:
    value = jnp.broadcast_to(jnp.float32(coefficients[0]), x.shape)
    for coefficient in coefficients[1:]:
        value = _add_product(coefficient, x, value)
    return value


def _add_product(c: Any, a: jax.Array, b: jax.Array) -> jax.Array:
    """c + a b, of halves of 12 bits whose products are exact in float32, so that it does not matter
    whether a product and its sum are rounded once or twice (Dekker 1971)."""
    a_high, b_high = (jax.lax.reduce_precision(x, 8, 11) for x in (a, b))
    a_low, b_low = a - a_high, b - b_high
    return (c + a_high * b_high) + (a_high * b_low + (a_low * b_high + a_low * b_low))


@functools.partial(jax.jit, static_argnums=1)  # traced once a shape
def random_bits(key: jax.Array, shape: Sequence[int]) -> jax.Array:
    """uint32 (*key.shape, *shape): JAX's own bits of Threefry keys, written out without a loop."""
    # A CPU's compiler puts it into one kernel with what the bits become. JAX's loop there holds the counters and
    # their copies in memory, three times the leaf that is drawn, and takes twice as long (jaxlib 0.10.2).
    words = jax.random.key_data(key).reshape(*key.shape, *(1 for _ in shape), 2)
    first, second = words[..., 0], words[..., 1]
    counts, stride = jnp.uint32(0), 1
    for axis in reversed(range(len(shape))):
        counts += jax.lax.broadcasted_iota(jnp.uint32, shape, axis) * jnp.uint32(stride)
        stride *= shape[axis]
    keys = (first, second, first ^ second ^ jnp.uint32(PARITY))
    x, y = keys[0], counts + keys[1]  # the upper halves of the counters are 0
    for turn in range(5):
        for bits in ROTATIONS[turn % 2]:
            x = x + y
            y = ((y << bits) | (y >> (32 - bits))) ^ x
        x, y = x + keys[(turn + 1) % 3], y + keys[(turn + 2) % 3] + jnp.uint32(turn + 1)
    return x ^ y


def _written_out(key: jax.Array, shape: Sequence[int], bit_width: int) -> bool:
    """Whether `random_bits` gives what the primitive of this name does."""
    partitionable = jax.config.jax_threefry_partitionable
    few = bit_width == 32 and math.prod(shape) < 2**32
    return few and partitionable and jax.random.key_impl(key) == "threefry2x32"


# Primitives that only wrap a function, by the parameter that holds it; and loops and branches.
CALLS = {"jit": "jaxpr", "pjit": "jaxpr", "checkpoint": "jaxpr", "closed_call": "call_jaxpr",
         "custom_jvp_call": "call_jaxpr", "custom_vjp_call": "call_jaxpr"}  # fmt: skip
CONTROL = ("scan", "while", "cond")


def _evaluate(jaxpr: Any, constants: Sequence[Any], arguments: Sequence[Any]) -> list[Any]:
    """The results of a traced function, in the form that `exactly` promises."""
    values = dict(zip(jaxpr.constvars, constants, strict=True))
    values.update(zip(jaxpr.invars, arguments, strict=True))

    def read(atom: Any) -> Any:
        return atom.val if isinstance(atom, Literal) else values[atom]

    for equation in _needed(jaxpr):
        name, inputs = equation.primitive.name, [read(atom) for atom in equation.invars]
        dtype = equation.outvars[0].aval.dtype
        if name == "erf_inv" and dtype == jnp.float32:
            # A kernel of its own: fused with what truncates a normal, it compiled for minutes (jaxlib 0.12).
            barrier = jax.lax.optimization_barrier
            results = [barrier(erf_inv(*barrier(inputs)))]
        elif name == "random_bits" and _written_out(*inputs, **equation.params):
            results = [random_bits(*inputs, equation.params["shape"])]
        elif name in CALLS:
            inner = equation.params[CALLS[name]]
            results = _evaluate(
                getattr(inner, "jaxpr", inner), getattr(inner, "consts", ()), inputs
            )
        else:
            if name in ("add", "sub") and jnp.issubdtype(dtype, jnp.floating):
                inputs = jax.lax.optimization_barrier(inputs)
            params = equation.params
            if name in CONTROL:
                params = {key: _rewritten(value) for key, value in params.items()}
            results = equation.primitive.bind(*inputs, **params)
            results = results if equation.primitive.multiple_results else [results]
        values.update(zip(equation.outvars, results, strict=True))
    return [read(atom) for atom in jaxpr.outvars]


def _needed(jaxpr: Any) -> list[Any]:
    """The equations that the results depend on: of initialisation, not of the forward pass that Linen runs with it."""
    wanted, kept = {v for v in jaxpr.outvars if not isinstance(v, Literal)}, []
    for equation in reversed(jaxpr.eqns):
        if wanted.intersection(equation.outvars):
            wanted.update(v for v in equation.invars if not isinstance(v, Literal))
            kept.append(equation)
    return kept[::-1]


def _rewritten(value: Any) -> Any:
    """A parameter of a loop or branch; the functions among them rewritten."""
    if isinstance(value, tuple):
        return tuple(_rewritten(v) for v in value)
    if not isinstance(value, ClosedJaxpr):
        return value
    shapes = [jax.ShapeDtypeStruct(v.aval.shape, v.aval.dtype) for v in value.jaxpr.invars]
    return jax.make_jaxpr(lambda *inputs: _evaluate(value.jaxpr, value.consts, inputs))(*shapes)
