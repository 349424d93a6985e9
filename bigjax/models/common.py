"""What the small model families share: activations by name, and the initialiser each one wants."""

from __future__ import annotations

from collections.abc import Callable

import flax.linen as nn
import jax

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


def kernel_init(name: str) -> nn.initializers.Initializer:
    """He et al. 2015 for rectifiers (variance 2 / fan_in), else LeCun 1998 (variance 1 / fan_in)."""
    return nn.initializers.he_normal() if name in RECTIFIERS else nn.initializers.lecun_normal()
