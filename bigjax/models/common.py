"""What the small model families share: activations by name, and the initialiser each one wants."""

from __future__ import annotations

import math
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp

from bigjax.core.errors import UserError, did_you_mean

RECTIFIERS = ("relu", "relu6", "leaky_relu", "elu", "gelu", "silu", "swish", "hard_swish")
SATURATING = ("tanh", "sigmoid", "hard_tanh", "hard_sigmoid", "soft_sign", "softplus", "selu")


def choose(what: str, word: str, choices: tuple[str, ...]) -> str:
    """Returns `word` if it is one of `choices`; a UserError naming them otherwise."""
    if word not in choices:
        hint = did_you_mean(word, choices)
        raise UserError(f"{what}: unknown '{word}'{hint}; known: {', '.join(choices)}")
    return word


def activation(name: str) -> Callable[[jax.Array], jax.Array]:
    """The elementwise function of this name in flax.linen; UserError if there is none."""
    return getattr(nn, choose("model.activation", name, RECTIFIERS + SATURATING))


def of_length_one(x: jax.Array) -> jax.Array:
    """Rows (..., D) scaled to length 1, in float32; rows of zeros stay so."""
    x = x.astype(jnp.float32)
    square = jnp.sum(jnp.square(x), axis=-1, keepdims=True)
    return x * jax.lax.rsqrt(jnp.maximum(square, 1e-24))


def kernel_init(name: str) -> nn.initializers.Initializer:
    """He et al. 2015 for rectifiers (variance 2 / fan_in), else LeCun 1998 (variance 1 / fan_in)."""
    return nn.initializers.he_normal() if name in RECTIFIERS else nn.initializers.lecun_normal()


@jax.custom_jvp
def gelu(x: jax.Array) -> jax.Array:
    """x Phi(x) with the error function itself (Hendrycks and Gimpel 2016, section 2), in x's dtype.

    Computed in float32 or wider. JAX's own is written with erfc, which with its derivative takes
    longer on a CPU.
    """
    wide = _wide(x)
    return (wide * _normal_cdf(wide)).astype(x.dtype)


@gelu.defjvp
def _gelu_jvp(primals, tangents):
    (x,), (dx,) = primals, tangents
    wide = _wide(x)
    density = jnp.exp(-0.5 * wide**2) / math.sqrt(2 * math.pi)
    slope = _normal_cdf(wide) + wide * density
    return gelu(x), (slope * dx).astype(x.dtype)


def _normal_cdf(x: jax.Array) -> jax.Array:
    return 0.5 + 0.5 * jax.lax.erf(x * math.sqrt(0.5))


def _wide(x: jax.Array) -> jax.Array:
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))
