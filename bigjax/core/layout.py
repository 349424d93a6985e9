"""What a model may say of its arrays' layout over devices: names of axes; whose mesh, it does not know.

And what it may ask: for which platform it is compiled, which need not be there.
"""

from __future__ import annotations

import contextlib
import contextvars
from collections.abc import Callable, Iterator

import jax

_LAYOUT: contextvars.ContextVar[Callable[..., jax.Array] | None] = contextvars.ContextVar(
    "layout", default=None
)
_PLATFORM: contextvars.ContextVar[str | None] = contextvars.ContextVar("platform", default=None)


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


def unlaid() -> contextlib.AbstractContextManager[None]:
    """Within, `constrain` says nothing: for arrays that are an example's or a client's own."""
    return laid_out(lambda x, names: x)


def batch_axes() -> tuple[str, ...] | None:
    """The mesh axes a batch is split over where the step is written per device, for `nn.BatchNorm`.

    None under `jit`, where an array is the global one and so are its statistics.
    """
    return jax.sharding.get_abstract_mesh().manual_axes or None


def platform() -> str:
    """What a program that is traced now will run on: "cpu", "gpu" or "tpu"."""
    return _PLATFORM.get() or jax.default_backend()


@contextlib.contextmanager
def compiled_for(platform: str) -> Iterator[None]:
    """Within, programs are compiled for devices that are not there (see `bigjax.plan`)."""
    token = _PLATFORM.set(platform)
    try:
        yield
    finally:
        _PLATFORM.reset(token)
