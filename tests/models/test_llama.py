"""Llama's promises beside its parity with transformers: names of axes, meshes, sizes that do not fit."""

import flax.linen as nn
import jax
import numpy as np
import pytest

from bigjax.core.errors import UserError
from bigjax.models.llama import PRESETS, Llama
from tests import test_sharding_matrix as matrix

SIZES = dict(vocab=16, layers=1, width=16, heads=4, kv_heads=2, mlp_width=24, context=8)
TOKENS = np.random.default_rng(0).integers(0, 16, (2, 8)).astype(np.int32)


def abstract(**changes):
    model = Llama(**{**SIZES, **changes})
    return jax.eval_shape(lambda: model.init(jax.random.key(0), TOKENS, train=False))["params"]


def test_every_parameter_names_every_axis():
    boxed = abstract()
    names, shapes = nn.get_partition_spec(boxed), jax.tree.map(np.ndim, nn.unbox(boxed))
    assert jax.tree.map(len, names, is_leaf=lambda x: isinstance(x, tuple)) == shapes
    named = {name for spec in jax.tree.leaves(names) for name in spec}
    assert named == {"vocab", "embed", "heads", "kv_heads", "head", "mlp"}
    routed = nn.get_partition_spec(abstract(experts=4))
    named |= {name for spec in jax.tree.leaves(routed) for name in spec}
    assert {name for name, _ in Llama.LOGICAL_RULES} <= named | {"group"}  # of activations


@pytest.mark.parametrize(
    "name, millions", [("smollm2_135m", 134.5), ("1b", 1100.0)], ids=["smollm2_135m", "1b"]
)
def test_presets_have_the_published_number_of_parameters(name, millions):
    found = sum(leaf.size for leaf in jax.tree.leaves(nn.unbox(abstract(**PRESETS[name]))))
    assert found / 1e6 == pytest.approx(millions, abs=0.1)


def test_tying_saves_the_second_table():
    assert "unembedding" in abstract() and "unembedding" not in abstract(tied=True)


@pytest.fixture
def family(monkeypatch):
    found = (dict(type="llama", **SIZES), dict(type="language_model"), {"tokens": matrix.TOKENS})
    monkeypatch.setitem(matrix.FAMILIES, "llama", found)
    return "llama"


@pytest.mark.slow
def test_eight_devices_give_the_numbers_of_one(family):
    matrix.test_eight_devices_give_the_numbers_of_one(family, "data 2 x fsdp 2 x tensor 2")


def test_fewer_key_heads_than_devices_to_split_them_over_are_refused_by_name(family):
    with pytest.raises(UserError, match=r"key/kernel .*tensor 4 does not divide dimension 2"):
        matrix.program_of(family, **matrix.CASES["tensor 4"], devices=8)


@pytest.mark.parametrize(
    "changes, says",
    [
        (dict(context=4), r"model\.context: 4 is less than the 8 tokens"),
        (dict(heads=3), r"model\.heads: 3 heads do not share width 16"),
        (dict(heads=16, kv_heads=16), r"model\.heads: 16 heads of width 1 .*rotary"),
        (dict(kv_heads=3), r"model\.kv_heads: 3 key heads do not serve 4 heads"),
    ],
    ids=str,
)
def test_wrong_sizes_are_refused_by_name(changes, says):
    with pytest.raises(UserError, match=says):
        abstract(**changes)
