"""A shrunk model as a run's folder: `predict`, `evaluate` and `export` open it like any other."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from bigjax.build.assemble import assemble
from bigjax.build.parts import key_data, split_key
from bigjax.build.weights import BASE_FILE, contents
from bigjax.compress.chain import Changed
from bigjax.core.adapt import BASE
from bigjax.core.rules import paths
from bigjax.loop.open import Opened
from bigjax.run import manifest
from bigjax.run.checkpoint import Checkpoints, Origin


def write(changed: Changed, folder: Path, step: int) -> Opened:
    """Writes the model as a run of `step` updates, whole or not at all; returns it, opened.

    An older folder of the same name gives way.
    """
    part = folder.with_name(f".{folder.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    setup = assemble(changed.config, part)
    place = lambda leaf, like: jax.device_put(jnp.array(leaf), like.sharding)  # noqa: E731
    variables = jax.tree.map(place, changed.variables, setup.program.variables)
    rng = np.asarray(split_key(key_data(setup.seed))[1])
    state, base = setup.program.init_from(variables, rng, setup.hyper)
    state = state.replace(step=jnp.full_like(state.step, step))
    base = _with(base, changed.held)
    frozen = {BASE: base} if base else {}
    session = manifest.begin(part, manifest.describe(setup, setup.program.mesh, setup.sources), [])
    try:
        part.mkdir(parents=True)
        manifest.record(part, setup, session, step, contents(frozen))
        if base:
            np.savez_compressed(part / BASE_FILE, **on_disk(base))
        origin = Origin(
            session.run, setup.fingerprint, setup.train.batch_size, session.about["versions"]
        )
        checkpoints = Checkpoints(part, setup.checkpoint, origin)
        checkpoints.save(step, state, {})
        checkpoints.close()
        shutil.rmtree(folder, ignore_errors=True)
        part.rename(folder)
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return Opened(folder, changed.config, setup, state, frozen)


def _with(base: Any, held: Mapping[str, Any]) -> Any:
    leaves = traverse_util.flatten_dict(base, sep="/") | dict(held)
    return traverse_util.unflatten_dict(leaves, sep="/")


def on_disk(tree: Any) -> dict[str, np.ndarray]:
    """Path -> array as a file holds it: NumPy's formats have no numbers of eight bits with a point."""
    found = {path: np.asarray(jax.device_get(leaf)) for path, leaf in paths(tree).items()}
    return {p: x.view(np.uint8) if x.dtype.itemsize == 1 else x for p, x in found.items()}
