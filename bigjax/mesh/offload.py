"""The optimizer's state in the host's memory, where the platform lets a compiled step reach it.

The step fetches it to the device, and puts it back, as part of its program. Knows no configs.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import Mesh

from bigjax.core.errors import UserError

HOST = "pinned_host"


def on_host(layout: Any, abstract: Any, mesh: Mesh) -> Any:
    """The layout of a `TrainState` with the optimizer's arrays in host memory; scalars stay.

    Args:
      layout, abstract: the state's tree of NamedSharding, and of shapes.
      mesh: where it lies.

    Raises:
      UserError: the devices cannot reach the host's memory.
    """
    device = mesh.local_devices[0]
    kinds = sorted(memory.kind for memory in device.addressable_memories())
    if HOST not in kinds:
        raise UserError(
            f"config.sharding.offload_optimizer: {device.device_kind} has no {HOST} memory "
            f"(it has {', '.join(kinds)}); use optimizer.state_dtype='bfloat16' or mesh.fsdp"
        )
    opt_state = jax.tree.map(
        lambda sharding, leaf: sharding.with_memory_kind(HOST) if leaf.ndim else sharding,
        layout.opt_state,
        abstract.opt_state,
    )
    return layout.replace(opt_state=opt_state)


def fetching(step: Callable[..., Any], layout: Any) -> Callable[..., Any]:
    """`step(state, ...)` with the optimizer's state fetched to the devices first.

    Args:
      step: a pure function of a `TrainState` and more.
      layout: the state's tree of NamedSharding, in device memory.
    """

    def fetched(state: Any, *rest: Any) -> Any:
        opt_state = jax.device_put(state.opt_state, layout.opt_state)
        return step(state.replace(opt_state=opt_state), *rest)

    return fetched
