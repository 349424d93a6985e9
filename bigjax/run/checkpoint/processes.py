"""What several processes tell each other of a checkpoint, and which of them hashes which file."""

from __future__ import annotations

import json
from typing import Any

import jax
import numpy as np
from jax._src.distributed import global_state  # no public name leads to its key-value store
from jax.experimental import multihost_utils

from bigjax.run.checkpoint.hashes import BadCheckpoint

EXCHANGE_SECONDS = 600  # how long the first process waits for the hashes of the others


def from_first(numbers: list[int]) -> list[int]:
    """The first process's whole numbers, on every process."""
    if jax.process_count() == 1:
        return numbers
    length = int(multihost_utils.broadcast_one_to_all(np.int32(len(numbers))))
    mine = np.asarray(numbers if jax.process_index() == 0 else [0] * length, np.int32)
    return multihost_utils.broadcast_one_to_all(mine).tolist()


def agree(problem: str) -> None:
    """Raises `BadCheckpoint` on every process if any one has a problem."""
    if jax.process_count() > 1:
        bad = multihost_utils.process_allgather(np.asarray(bool(problem)))
        if bad.any() and not problem:
            problem = f"process {int(bad.argmax())} found it bad"
    if problem:
        raise BadCheckpoint(problem)


def gathered(key: str, part: Any) -> list[Any]:
    """On the first process: what every other one passed. Uses no devices, so any thread may call."""
    client = global_state.client
    if jax.process_count() == 1:
        return [part]
    if jax.process_index() != 0:
        client.key_value_set(f"bigjax/{key}/{jax.process_index()}", json.dumps(part))
        return []
    others = [
        client.blocking_key_value_get(f"bigjax/{key}/{i}", EXCHANGE_SECONDS * 1000)
        for i in range(1, jax.process_count())
    ]
    return [part, *map(json.loads, others)]


def owner(name: str) -> int:
    """The process that hashes a file: the one that wrote it, where Orbax's name for it says so."""
    for part in name.split("/"):
        if part.startswith("ocdbt.process_"):
            return int(part.removeprefix("ocdbt.process_")) % jax.process_count()
    return 0


def is_mine(name: str) -> bool:
    return owner(name) == jax.process_index()
