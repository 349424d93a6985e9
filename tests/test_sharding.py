"""Meshes, rules, what follows a parameter, and the per-device way to run a step."""

import dataclasses
import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from bigjax.build.program import build_program
from bigjax.core import settings
from bigjax.core.errors import UserError
from bigjax.core.layout import constrain
from bigjax.core.method import Sums
from bigjax.core.rules import paths
from bigjax.mesh import sharding
from bigjax.mesh.placement import Vocabulary, logical_names, place, vocabulary
from bigjax.models.gpt2 import GPT2
from bigjax.models.mlp import MLP
from bigjax.models.rnn import RNN
from tests.small import small

BLOCK = "block_0/"


def mesh_of(**sizes):
    return sharding.make_mesh(settings.Mesh(**{"data": -1, **sizes}))


def shape(*sizes):
    return jax.ShapeDtypeStruct(sizes, jnp.float32)


def specs(rules, params, mesh, **kwargs):
    rules = [(".*", rules)] if isinstance(rules, str) else rules
    return {path: p.spec for path, p in place(rules, params, mesh, **kwargs).items()}


def model_specs(model, mesh, rule, x, options=None):
    """Specs of a model's parameters under one rule, with the names and words of its own."""
    boxed = jax.eval_shape(lambda: model.init(jax.random.key(0), x, train=False))["params"]
    words = vocabulary(model, options or settings.Sharding())
    names = logical_names(boxed)
    return specs(rule, nn.unbox(boxed), mesh, names=names, words=words)


TRANSFORMER = GPT2(vocab=32, layers=1, width=16, heads=4, context=8)
TOKENS = jnp.zeros((1, 8), jnp.int32)


# The mesh.


def test_absent_axes_have_size_one_and_minus_one_takes_the_rest():
    assert dict(mesh_of(fsdp=2, tensor=2).shape) == {
        "dcn": 1, "pipeline": 1, "data": 2, "fsdp": 2, "expert": 1, "sequence": 1, "tensor": 2
    }  # fmt: skip


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        (dict(fsdp=3), "fsdp 3 = 3 does not divide the 8 devices; fsdp 1, 2, 4 or 8 would"),
        (dict(fsdp=2, tensor=3), "= 6 does not divide the 8 devices; tensor 1, 2 or 4 would"),
        (dict(data=2, fsdp=2), "= 4 does not equal the 8 devices; data 4 or fsdp 4 would"),
        (dict(data=3, fsdp=3), "= 9 does not equal the 8 devices; a product of 8 would"),
    ],
)
def test_sizes_that_do_not_fit_are_refused_with_those_that_would(sizes, message):
    with pytest.raises(UserError, match=message):
        mesh_of(**sizes)


def test_batches_that_do_not_divide_are_refused_with_the_nearest_that_do():
    mesh = mesh_of(fsdp=2, tensor=2)
    assert sharding.check_batch("train.batch_size", 24, 3, mesh) == 2
    with pytest.raises(UserError, match=r"20 rows .* 4 batch devices x 3 microbatches; 12 or 24"):
        sharding.check_batch("train.batch_size", 20, 3, mesh)


@dataclasses.dataclass(frozen=True)
class Device:
    """As much of a device as the making of a mesh looks at."""

    id: int
    slice_index: int
    process_index: int
    platform: str = "cpu"
    device_kind: str = "cpu"
    client: None = None


def test_the_outer_axis_is_the_one_between_slices():
    devices = [Device(i, slice_index=i % 2, process_index=i // 4) for i in range(8)]
    mesh = sharding.make_mesh(settings.Mesh(dcn=2, fsdp=2), devices)
    assert mesh.shape["dcn"] == mesh.shape["data"] == mesh.shape["fsdp"] == 2
    assert [{d.slice_index for d in part.ravel()} for part in mesh.devices] == [{0}, {1}]
    for wrong in (4, 1):
        with pytest.raises(UserError, match=r"mesh\.dcn: there are 2 slices; 2 would do"):
            sharding.make_mesh(settings.Mesh(dcn=wrong), devices)


def test_without_slices_the_outer_axis_is_between_hosts():
    devices = [Device(i, slice_index=0, process_index=i // 2) for i in range(12)]
    mesh = sharding.make_mesh(settings.Mesh(dcn=3, fsdp=2), devices)
    hosts = [{d.process_index for d in part.ravel()} for part in mesh.devices]
    assert hosts == [{0, 1}, {2, 3}, {4, 5}]
    with pytest.raises(UserError, match="4 does not divide the 6 hosts; 1, 2, 3 or 6 would"):
        sharding.make_mesh(settings.Mesh(dcn=4), devices)


# The rules.

DIMENSIONS = st.lists(st.integers(1, 48), max_size=4).map(tuple)


@hypothesis_settings(max_examples=200, deadline=None)
@given(DIMENSIONS, st.sampled_from([1, 2, 4, 8]), st.sampled_from([0, 100, 5000]))
def test_fsdp_splits_the_largest_dimension_that_divides_and_nothing_else(dims, size, min_size):
    spec = specs(f"fsdp:{min_size}", {"w": shape(*dims)}, mesh_of(fsdp=size))["w"]
    possible = [n for n in dims if n % size == 0]
    if size == 1 or math.prod(dims) < min_size or not possible:
        assert spec == P()
    else:
        assert [axis for axis in spec if axis] == ["fsdp"]
        assert dims[len(spec) - 1] == max(possible)


ENTRY = st.sampled_from([None, "data", "fsdp", "tensor", ("fsdp", "tensor")])


@hypothesis_settings(max_examples=200, deadline=None)
@given(DIMENSIONS, st.lists(ENTRY, max_size=4), st.booleans())
def test_an_explicit_rule_splits_evenly_or_is_refused(dims, rule, then_fsdp):
    mesh = mesh_of(fsdp=2, tensor=2)
    axes = [a for entry in rule for a in ((entry,) if isinstance(entry, str) else entry or ())]
    parts = [
        math.prod(mesh.shape[a] for a in ((e,) if isinstance(e, str) else e or ())) for e in rule
    ]
    fits = (
        len(rule) <= len(dims)
        and len(set(axes)) == len(axes)
        and all(n % k == 0 for n, k in zip(dims, parts, strict=False))
    )
    params, words = {"w": shape(*dims)}, Vocabulary(tensor=[("w", tuple(rule))])
    word = "tensor + fsdp" if then_fsdp else "tensor"
    if not fits:
        with pytest.raises(UserError, match=r"config\.sharding\.rules"):
            specs(word, params, mesh, words=words)
        return
    spec = specs(word, params, mesh, words=words)["w"]
    local = NamedSharding(mesh, spec).shard_shape(dims)
    whole = [n // k for n, k in zip(dims, parts + [1] * len(dims), strict=False)]
    added = [(got, had) for got, had in zip(local, whole, strict=True) if got != had]
    assert added in ([], [(added[0][0], 2 * added[0][0])] if added else [])
    assert then_fsdp or not added


def test_tactics_compose_in_order():
    got = model_specs(TRANSFORMER, mesh_of(fsdp=2, tensor=2), "tensor + fsdp:32", TOKENS)
    assert got["embedding"] == P("tensor", "fsdp")
    assert got[BLOCK + "attention/query/kernel"] == P("fsdp", "tensor")
    assert got[BLOCK + "attention/query/bias"] == P("tensor")  # 16 elements: below the minimum
    assert got[BLOCK + "attention/out/kernel"] == P("tensor", None, "fsdp")
    assert got[BLOCK + "mlp/up/kernel"] == P("fsdp", "tensor")
    assert got[BLOCK + "mlp/down/kernel"] == P("tensor", "fsdp")
    assert got[BLOCK + "mlp_norm/scale"] == P()
    alone = model_specs(TRANSFORMER, mesh_of(fsdp=2, tensor=2), "fsdp + replicate", TOKENS)
    assert set(alone.values()) == {P()}


def test_axes_of_size_one_split_nothing_and_leave_the_dimension_free():
    got = model_specs(TRANSFORMER, mesh_of(fsdp=8), "tensor + fsdp", TOKENS)
    assert got[BLOCK + "mlp/up/kernel"] == P(None, "fsdp")
    assert set(model_specs(TRANSFORMER, mesh_of(), "tensor + fsdp", TOKENS).values()) == {P()}


def test_the_config_may_send_a_logical_name_elsewhere():
    options = settings.Sharding(logical=(("mlp", "fsdp"), ("heads", None)))
    got = model_specs(TRANSFORMER, mesh_of(fsdp=2, tensor=2), "logical", TOKENS, options)
    assert got[BLOCK + "mlp/up/kernel"] == P(None, "fsdp")
    assert got[BLOCK + "attention/query/kernel"] == P()
    assert got["embedding"] == P("tensor")


@pytest.mark.parametrize(
    ("model", "x"),
    [
        (MLP(widths=(16, 16, 16), outputs=3), jnp.zeros((1, 5))),
        (RNN(widths=(16,), outputs=3, cell="gru"), jnp.zeros((1, 4, 5))),
    ],
)
def test_every_family_ships_rules_that_split_all_its_large_parameters(model, x):
    split = model_specs(model, mesh_of(tensor=4), "tensor", x)
    assert all("tensor" in spec for path, spec in split.items() if path.endswith("kernel"))


def test_a_model_without_rules_of_its_own_is_refused_only_where_they_matter():
    params = {"w": shape(8, 8)}
    assert specs("tensor + fsdp", params, mesh_of(fsdp=4))["w"] == P("fsdp")
    with pytest.raises(UserError, match=r"ships no TENSOR_RULES .*explicit rules"):
        specs("tensor", params, mesh_of(tensor=2))


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        ("fdsp", r"'fdsp' is no rule \(did you mean 'fsdp'\?\); use replicate, fsdp"),
        ("tensor + fsdp:many", r"'fsdp:many' is no rule"),
        (3, r"3 is no rule; use"),
        ((None, None, "tensor"), r"\(for w \(6, 8\)\): more entries than dimensions"),
        (("tenser",), r"no mesh axis 'tenser' \(did you mean 'tensor'\?\)"),
        (("tensor",), r"tensor 4 does not divide dimension 6; 1, 2, 3 or 6 would"),
        (("fsdp", "fsdp"), r"a mesh axis can split one dimension only"),
    ],
)
def test_wrong_rules_are_refused_and_explained(rule, message):
    with pytest.raises(UserError, match=message):
        specs([(".*", rule)], {"w": shape(6, 8)}, mesh_of(fsdp=2, tensor=4, data=1))


def test_a_placement_tells_which_rule_matched():
    rules = ((".*kernel", "fsdp"), (".*", "replicate"))
    placed = place(rules, {"a": {"kernel": shape(8, 4), "bias": shape(4)}}, mesh_of(fsdp=4))
    assert placed["a/kernel"] == ((8, 4), ".*kernel", "fsdp", P("fsdp"))
    assert placed["a/bias"] == ((4,), ".*", "replicate", P())


# What follows a parameter.


@pytest.mark.parametrize(
    "optimizer",
    [optax.adamw(1e-3), optax.adafactor(1e-3, min_dim_size_to_factor=8), optax.contrib.muon(1e-3)],
)
def test_optimizer_state_lies_as_its_parameter(optimizer):
    params = {"a": {"kernel": shape(16, 32), "bias": shape(32)}, "b": {"kernel": shape(32, 8)}}
    rules = (("a/kernel", ("fsdp", "tensor")), ("b/kernel", ("tensor",)), (".*", "tensor"))
    words = Vocabulary(tensor=((".*", ("tensor",)),))
    mesh = mesh_of(fsdp=2, tensor=2)
    placed = place(rules, params, mesh, words=words)
    state = jax.eval_shape(optimizer.init, params)
    layout = {p: s.spec for p, s in paths(sharding.layout(placed, state, mesh)).items()}
    expected = {
        ("a/kernel", (16, 32)): P("fsdp", "tensor"),
        ("a/kernel", (16,)): P("fsdp"),
        ("a/kernel", (32,)): P("tensor"),
        ("a/bias", (32,)): P("tensor"),
        ("b/kernel", (32, 8)): P("tensor"),
        ("b/kernel", (32,)): P("tensor"),
        ("b/kernel", (8,)): P(None),
    }
    seen = 0
    for path, leaf in paths(state).items():
        known = expected.get((("/".join(path.split("/")[-2:])), leaf.shape))
        assert layout[path] == (P() if known is None else known), path
        seen += known is not None
    assert seen >= 3


def test_activations_lie_where_the_model_names_them():
    mesh = mesh_of(fsdp=2, tensor=2)
    words = Vocabulary(logical=(("vocab", "tensor"),))

    def step(x):
        return constrain(x * 2, "batch", "length", "vocab")

    constrained = jax.jit(
        sharding.activations(mesh, words, settings.Sharding())(step),
        in_shardings=sharding.replicated(mesh),
    )
    assert constrained(jnp.ones((8, 4, 6))).sharding.spec == P(("data", "fsdp"), None, "tensor")
    assert step(jnp.ones((8, 4, 6))).sharding.is_fully_replicated  # outside, a name changes nothing


# Per device, by hand.


def test_every_device_draws_its_own_random_numbers_and_pairs_add_up_exactly():
    mesh = mesh_of(fsdp=2)

    def sums(state, batch, frozen, rng):
        place = jax.lax.axis_index(sharding.BATCH_AXES)
        drawn = jnp.zeros(8).at[place].set(jax.random.uniform(rng))
        pair = (jnp.sum(batch["mask"] * batch["x"]), jnp.sum(batch["mask"]))
        return Sums({"w": drawn}, {"loss": pair}, {"mean": jnp.mean(batch["x"])})

    mask = np.array([1, 1, 0, 1] + [0] * 8 + [1] * 4, np.float32)  # some devices have no real row
    batch = {"x": np.arange(16, dtype=np.float32), "mask": mask}
    step = jax.jit(sharding.per_device(mesh)(sums))
    grads, pairs, collections, _ = step({}, batch, None, jax.random.key(0))
    assert len(np.unique(grads["w"])) == 8
    assert pairs["loss"] == (0 + 1 + 3 + 12 + 13 + 14 + 15, 7)
    assert collections == {"mean": 7.5}


@pytest.mark.parametrize(
    ("sizes", "rule", "message"),
    [
        (dict(tensor=2), "replicate", r"mesh\.tensor=2 has no use; use mesh\.data"),
        (dict(fsdp=2), "fsdp", r"the rule 'fsdp' splits w; use the rule 'replicate'"),
    ],
)
def test_the_per_device_step_refuses_split_parameters(sizes, rule, message):
    mesh = mesh_of(**sizes)
    placed = place(((".*", rule),), {"w": shape(8, 8)}, mesh)
    with pytest.raises(UserError, match=message):
        sharding.check_per_device(placed, mesh)


@pytest.mark.parametrize("axis", ["pipeline", "sequence", "expert"])
def test_an_axis_that_nothing_uses_is_refused_by_name(axis):
    config = small(f"mesh.{axis}=2", "mesh.data=4")
    source = config.section("data").source.open("train")
    with pytest.raises(UserError, match=rf"config\.mesh\.{axis}: nothing in MLP is split over"):
        build_program(config, source)


def test_tensor_is_refused_where_no_rule_splits_by_it():
    config = small("mesh.tensor=2", "mesh.data=4", "sharding.rules=(('.*', 'replicate'),)")
    source = config.section("data").source.open("train")
    with pytest.raises(UserError, match=r"repeat the same work; use mesh\.data or mesh\.fsdp"):
        build_program(config, source)
