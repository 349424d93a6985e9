"""The adapters of a run as the library `peft` keeps them, checked: read back, they make the run's model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import traverse_util

from bigjax.core.adapt import BASE, MODEL
from bigjax.core.errors import UserError
from bigjax.core.rules import paths
from bigjax.mesh import distributed
from bigjax.methods.lora import DoRA, LoRA
from bigjax.pretrained.export import fill_published, published_tensors
from bigjax.pretrained.load import open_checkpoint
from bigjax.pretrained.peft import OWN_BASE, base_of, is_adapter
from bigjax.pretrained.peft_write import write_adapters
from bigjax.run.files import publish

EXACT = 1e-6  # of the largest number of a tensor


def export_adapters(run: Any, variables: Any, family: str | None, folder: Path) -> float:
    """Writes the adapters of a run; returns how far the merged model is off, see `EXACT`.

    Args:
      run: a `bigjax.loop.open.Opened`. variables: the merged model's, on the host.

    Raises:
      UserError: the run has no LoRA or DoRA, or one that peft's files cannot say; the folder is there.
    """
    parts = run.config.make("adapt")
    model = run.setup.values["model"]
    if family is None:
        raise UserError(f"--format=peft: a model of type '{model['type']}' has no published layout")
    if len(parts) != 1 or type(parts[0]) not in (LoRA, DoRA):
        names = ", ".join(part.NAME for part in parts) or "none"
        raise UserError(
            f"--format=peft: needs one config.adapt, of type lora or dora; the run has {names}"
        )
    if folder.exists():
        raise UserError(f"--output={folder}: is there already")
    init = run.config.section("init")
    merged = init and is_adapter(init.source) and init.adapters == "merge"
    published = bool(init and init.family) and not merged
    trained = jax.tree.map(
        distributed.whole, run.state.params if run.state.ema is None else run.state.ema
    )
    kept = paths(trained.get(MODEL, {}))
    found = []

    def write(private: Path) -> None:
        if not published:  # what the adapters are of is nowhere else
            (private / OWN_BASE).mkdir()
            leaves = {**paths(run.frozen[BASE]), **kept}
            params = {path: np.asarray(distributed.whole(x)) for path, x in leaves.items()}
            base = {**variables, "params": traverse_util.unflatten_dict(params, sep="/")}
            fill_published(private / OWN_BASE, base, model, family)
        source = OWN_BASE
        if published:
            source = base_of(init.source) if is_adapter(init.source) else init.source
        write_adapters(private, parts[0], trained, variables, model, family, source)
        found.append(_off(variables, model, family, private))
        if not found[0] <= EXACT:
            raise UserError(
                f"--format=peft: read back, the merged model is {found[0]:.2g} off the run's, {EXACT:g} is "
                "allowed; nothing is kept"
            )

    publish(folder, write)
    return found[0]


def _off(variables: Any, model: Any, family: str, folder: Path) -> float:
    """The largest difference of a tensor of the merged model, as a part of its largest number."""
    read, layout = open_checkpoint(str(folder), family)
    worst = 0.0
    for name, tensor in published_tensors(paths(variables), layout.entries(dict(model))).items():
        other = read.read(name)
        if other.shape != tensor.shape:
            return float("inf")
        scale = max(float(np.max(np.abs(tensor), initial=0.0)), 1e-30)
        off = np.max(np.abs(np.float64(other) - np.float64(tensor)), initial=0.0)
        worst = float(np.max([worst, off / scale]))
    return worst
