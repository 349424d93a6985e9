"""What the small model families share: activations by name, and the initialiser each one wants."""

from __future__ import annotations

import contextlib
import contextvars
from collections.abc import Callable, Iterator

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


_LAYOUT: contextvars.ContextVar[Callable[..., jax.Array] | None] = contextvars.ContextVar(
    "layout", default=None
)


def constrain(x: jax.Array, *names: str | None) -> jax.Array:
    """Names the axes of an activation, for whoever lays the step out over devices; else just x."""
    layout = _LAYOUT.get()
    return x if layout is None else layout(x, names)


@contextlib.contextmanager
def laid_out(layout: Callable[[jax.Array, tuple], jax.Array]) -> Iterator[None]:
    """Within, `constrain(x, *names)` is `layout(x, names)`."""
    token = _LAYOUT.set(layout)
    try:
        yield
    finally:
        _LAYOUT.reset(token)


def batch_axes() -> tuple[str, ...] | None:
    """The mesh axes a batch is split over where the step is written per device, for `nn.BatchNorm`.

    None under `jit`, where an array is the global one and so are its statistics.
    """
    return jax.sharding.get_abstract_mesh().manual_axes or None
