"""Whether two trees are the same bits: of a step that is executed twice, or replayed."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from bigjax.build.program import Program
from bigjax.core.errors import RunFailed

UNSIGNED = {1: jnp.uint8, 2: jnp.uint16, 4: jnp.uint32, 8: jnp.uint64}
CAUSES = (
    "the machine computed wrongly once, or the program is not deterministic there (on GPUs: "
    "XLA_FLAGS=--xla_gpu_deterministic_ops=true)"
)


class Different(RunFailed):
    """A step executed again gave something else."""


def differing(a: Any, b: Any) -> list[str]:
    """Paths of the leaves of two like trees that are not the same bits; compared on the device."""
    same = jax.device_get(_same(a, b))
    return [
        jax.tree_util.keystr(path, simple=True, separator="/")
        for path, leaf in jax.tree_util.tree_leaves_with_path(same)
        if not leaf
    ]


@jax.jit
def _same(a: Any, b: Any) -> Any:
    return jax.tree.map(lambda x, y: jnp.all(_bits(x) == _bits(y)), a, b)


def _bits(x: jax.Array) -> jax.Array:
    if jnp.issubdtype(x.dtype, jnp.floating):
        return jax.lax.bitcast_convert_type(x, UNSIGNED[x.dtype.itemsize])
    return x


def some(leaves: list[str], most: int = 3) -> str:
    """The first few names, and how many more there are."""
    more = f" and {len(leaves) - most} more leaves" if len(leaves) > most else ""
    return ", ".join(leaves[:most]) + more


def check_again(
    step: int, program: Program, before: Any, batch: Any, frozen: Any, after: Any
) -> None:
    """Executes one step of a run that is under way again, and compares the states on the device.

    Args:
      before, after: the state before the step (a copy: it is donated) and the one it gave.

    Raises:
      Different: they are not the same bits.
    """
    again, _ = program.train_step(before, batch, frozen)
    if differ := differing(after, again):
        raise Different(
            f"step {step}: executed twice, it gives two values of {some(differ)}: {CAUSES}"
        )
