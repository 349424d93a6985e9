"""What the parity tests of published weights share: load into a model, and write back."""

import jax
import numpy as np
from flax import linen as nn

from bigjax.config import resolve as configs
from bigjax.core.rules import map_with_path, paths
from bigjax.core.settings import Init
from bigjax.pretrained.export import export_folder
from bigjax.pretrained.load import derived_model, open_checkpoint, read_published


def model_values(folder, family, **given):
    """`config.model` as a config that names the checkpoint would hold it."""
    _, module = open_checkpoint(str(folder), family)
    init = dict(source=str(folder), family=family)
    derived = derived_model(init, dict(type=module.TYPE, **given), needed=("any",))
    return configs._complete_section("model", derived)


def build(values):
    """The Linen module of `config.model` values."""
    return configs._construct("model", "model", values)


def load(folder, family, inputs, init=None, **given):
    """(model, variables, values): the published weights in our model, made by calling it on `inputs`."""
    values = model_values(folder, family, **given)
    model = build(values)
    scratch = nn.unbox(jax.jit(lambda: model.init(jax.random.key(0), *inputs, train=False))())
    settings = Init(source=str(folder), family=family, **(init or {}))
    leaves = paths(scratch)
    found = read_published(settings, values, leaves, lambda names: {n: leaves[n] for n in names})
    return model, map_with_path(lambda path, _: found[path], scratch), values


def export(variables, values, family, folder):
    """Writes the variables as a folder in the family's published layout."""
    export_folder(jax.tree.map(np.asarray, variables), values, family, folder)
    return folder
