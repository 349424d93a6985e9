"""What a model may say of its arrays' layout over devices: names of axes; whose mesh, it does not know.

And what it may ask: into how many parts a named axis is split, for which platform it is compiled
(which need not be there), and which part of the batch a block sees.
"""

from __future__ import annotations

import contextlib
import contextvars
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

import jax

FREE = "*"  # in place of an axis's name: it lies as the compiler likes


class Layout(Protocol):
    """How a step that is being traced lies over devices (`bigjax.mesh.layout`).

    sequence: how keys and values meet the queries of a split "length": "ring" or "gather".
    microbatches: at most so many pass through the pipeline; None: its choice.
    rounds: how often each goes round its stages.
    """

    sequence: str
    microbatches: int | None
    rounds: int

    def constrain(self, x: jax.Array, names: Sequence[str | None]) -> jax.Array:
        """x, its axes laid where these names say."""

    def axes(self, name: str) -> tuple[str, ...]:
        """The mesh axes above 1 that the logical axis is split over."""

    def parts(self, name: str) -> int:
        """Into how many parts the logical axis is split."""

    def per_part(self, function: Callable[..., Any], takes: Any, gives: Any) -> Callable[..., Any]:
        """The function run by each device on its own parts; logical names for arguments and results."""


_LAYOUT: contextvars.ContextVar[Layout | None] = contextvars.ContextVar("layout", default=None)
_PLATFORM: contextvars.ContextVar[str | None] = contextvars.ContextVar("platform", default=None)
_VIEW: contextvars.ContextVar[tuple[int, Callable[[jax.Array], jax.Array]] | None] = (
    contextvars.ContextVar("view", default=None)
)


def layout() -> Layout | None:
    """How the step that is being traced is laid out; None: on one device, or nobody says."""
    return _LAYOUT.get()


def parts(name: str) -> int:
    """Into how many parts the logical axis of this name is split; 1 where nobody says."""
    laid = _LAYOUT.get()
    return 1 if laid is None else laid.parts(name)


def constrain(x: jax.Array, *names: str | None) -> jax.Array:
    """Names the axes of an activation, for whoever lays the step out over devices; else just x."""
    laid = _LAYOUT.get()
    return x if laid is None else laid.constrain(x, names)


@contextlib.contextmanager
def _set(variable: contextvars.ContextVar[Any], value: Any) -> Iterator[None]:
    token = variable.set(value)
    try:
        yield
    finally:
        variable.reset(token)


def laid_out(laid: Layout | None) -> contextlib.AbstractContextManager[None]:
    """Within, arrays lie as this says."""
    return _set(_LAYOUT, laid)


def unlaid() -> contextlib.AbstractContextManager[None]:
    """Within, `constrain` says nothing: for arrays that are an example's or a client's own."""
    return laid_out(None)


def seeing(
    times: int, view: Callable[[jax.Array], jax.Array]
) -> contextlib.AbstractContextManager[None]:
    """Within, blocks see `view` of a batch of `times` as many rows: a microbatch, or another order.

    What they draw for themselves they draw for the whole batch as it stands, and view it likewise
    (`drawn`): the numbers are then those of a model that sees all at once.
    """
    return _set(_VIEW, (times, view))


def drawn(draw: Callable[[tuple[int, ...]], jax.Array], shape: Sequence[int]) -> jax.Array:
    """`draw(shape)`, as one device would draw it for the whole batch (see `seeing`)."""
    seen = _VIEW.get()
    if seen is None:
        return draw(tuple(shape))
    times, view = seen
    return view(draw((times * shape[0], *shape[1:])))


def batch_axes() -> tuple[str, ...] | None:
    """The mesh axes a batch is split over where the step is written per device, for `nn.BatchNorm`.

    None under `jit`, where an array is the global one and so are its statistics.
    """
    return jax.sharding.get_abstract_mesh().manual_axes or None


def platform() -> str:
    """What a program that is traced now will run on: "cpu", "gpu" or "tpu"."""
    return _PLATFORM.get() or jax.default_backend()


def compiled_for(platform: str) -> contextlib.AbstractContextManager[None]:
    """Within, programs are compiled for devices that are not there (see `bigjax.plan`)."""
    return _set(_PLATFORM, platform)
