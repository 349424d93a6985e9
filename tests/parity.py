"""What the parity tests of published weights share: load into a model, and write back."""

import jax
import numpy as np
from flax import linen as nn

from bigjax.config import resolve as configs
from bigjax.config.config import made
from bigjax.core.rules import map_with_path, paths
from bigjax.core.settings import Init
from bigjax.pretrained.export import fill_published
from bigjax.pretrained.load import derived_model, open_checkpoint, read_published


def model_values(folder, family, **given):
    """`config.model` as a config that names the checkpoint would hold it."""
    _, module = open_checkpoint(str(folder), family)
    init = dict(source=str(folder), family=family)
    derived = derived_model(init, dict(type=module.TYPE, **given), needed=("any",))
    return configs._complete_section("model", derived)


def randomized(module):
    """A torch module whose zeros and ones (biases, norms) are random, so that a swapped name shows."""
    for parameter in module.parameters():
        if parameter.numel() > 1 and parameter.detach().std() == 0:
            parameter.data += 0.3 * parameter.data.new_empty(parameter.shape).normal_()
    return module


def assert_named(model, boxed):
    """Every axis of every parameter has a logical name, and those that a mesh may split are among them."""
    names = nn.get_partition_spec(boxed)
    shapes = jax.tree.map(lambda a: a.ndim, nn.unbox(boxed))
    assert jax.tree.map(len, names, is_leaf=lambda x: isinstance(x, tuple)) == shapes
    found = {name for spec in jax.tree.leaves(names) for name in spec}
    assert {name for name, _ in model.LOGICAL_RULES} <= found


def build(values):
    """The Linen module of `config.model` values."""
    return made("model", "model", values)


def load(folder, family, inputs, init=None, **given):
    """(model, variables, values): the published weights in our model, which is made from scratch only
    where a leaf asks for it."""
    values = model_values(folder, family, **given)
    model = build(values)
    here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    make = lambda: nn.unbox(model.init(jax.random.key(0), *inputs, train=False))  # noqa: E731
    abstract = jax.eval_shape(make)
    leaves = {
        path: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=here)
        for path, leaf in paths(abstract).items()
    }

    def scratch(names):
        made = paths(jax.jit(make)())
        return {name: made[name] for name in names}

    settings = Init(source=str(folder), family=family, **(init or {}))
    found = read_published(settings, values, leaves, scratch)
    return model, map_with_path(lambda path, _: found[path], abstract), values


def export(variables, values, family, folder, **along):
    """Writes the variables as a folder in the family's published layout."""
    folder.mkdir()
    fill_published(folder, jax.tree.map(np.asarray, variables), values, family, **along)
    return folder
