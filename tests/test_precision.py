"""Precision: what computes in which dtype, loss scaling, master copies, and what bfloat16 costs."""

import collections
import functools

import flax.linen as nn
import jax
import jax.extend.core
import jax.numpy as jnp
import numpy as np
import pytest
from flax.training.dynamic_scale import DynamicScale

from bigjax.build import parts, program
from bigjax.config.config import SETTINGS
from bigjax.config.resolve import resolve
from bigjax.core import precision, settings, steps
from bigjax.core.errors import UserError
from bigjax.core.method import Method, Scope
from bigjax.core.optimizers import OptimizerSettings, build
from bigjax.core.settings import Check, Precision
from bigjax.core.state import init_state
from bigjax.data import pipeline
from bigjax.models.cnn import CNN
from bigjax.models.gpt2 import GPT2
from bigjax.models.mlp import MLP
from bigjax.models.rnn import RNN
from bigjax.run.manifest import FREE_ON_RESUME
from bigjax.tasks.classification import Classification
from tests.small import small_config
from tests.test_steps import recipe_of

MODELS = {
    "mlp": (MLP(widths=(8, 8), outputs=3, batch_norm=True), np.ones((4, 5), np.float32)),
    "cnn": (CNN(channels=(4, 8), outputs=3, batch_norm=True), np.ones((4, 8, 8), np.float32)),
    "lstm": (RNN(widths=(8, 8), outputs=3), np.ones((4, 5, 6), np.float32)),
    "gru": (RNN(widths=(8,), outputs=3, cell="gru"), np.ones((4, 5, 6), np.float32)),
    "transformer": (
        GPT2(vocab=11, layers=2, width=16, heads=2, context=8),
        np.ones((2, 8), np.int32),
    ),
    "scanned": (
        GPT2(vocab=11, layers=2, width=16, heads=2, context=8, scan_layers=True),
        np.ones((2, 8), np.int32),
    ),
}


def equations(jaxpr):
    """Every equation of a jaxpr, those inside other equations too."""
    for equation in jaxpr.eqns:
        yield equation
        for inner in jax.extend.core.jaxprs_in_params(equation.params):
            yield from equations(inner)


def traced(model, inputs, **policy):
    """The equations of the forward pass in training."""
    init = functools.partial(model.init, train=False)
    variables = nn.unbox(jax.eval_shape(init, jax.random.key(0), inputs))
    applied = precision.ModelInPrecision(model, Precision(**policy))
    rest = [name for name in variables if name != "params"]

    def forward(variables):
        return applied.apply(variables, inputs, train=True, mutable=rest)

    return list(equations(jax.make_jaxpr(forward)(variables).jaxpr))


def products(found):
    """Dtypes of the operands of every matrix product and convolution -> how many."""
    names = ("dot_general", "conv_general_dilated")
    return collections.Counter(
        tuple(str(v.aval.dtype) for v in equation.invars)
        for equation in found
        if equation.primitive.name in names
    )


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("name", MODELS)
def test_products_are_narrow_but_for_the_head(name, dtype):
    in_float32 = sum(products(traced(*MODELS[name])).values())
    found = products(traced(*MODELS[name], policy=dtype))
    heads = 0 if name in ("transformer", "scanned") else 1
    if heads == 0 and dtype == "float16":  # CPUs have no float16 attention: see `attend`
        heads = {"transformer": 2 * 2, "scanned": 2}[name]
    assert found == {
        (dtype, dtype): in_float32 - heads,
        **({("float32",) * 2: heads} if heads else {}),
    }


@pytest.mark.parametrize("name", MODELS)
def test_norms_and_softmax_are_float32(name):
    """Statistics (rsqrt of a variance) and exponentials of attention never see a narrow number."""
    found = traced(*MODELS[name], policy="bfloat16")
    dtypes = {
        kind: {str(e.invars[0].aval.dtype) for e in found if e.primitive.name == kind}
        for kind in ("rsqrt", "exp")
    }
    if name in ("mlp", "cnn", "transformer", "scanned"):
        assert dtypes["rsqrt"] == {"float32"}
    if name in ("transformer", "scanned"):
        assert dtypes["exp"] == {"float32"}


def test_losses_are_float32_and_so_are_their_gradients():
    model, x = MODELS["mlp"]
    batch = {"image": x, "label": np.zeros(4, np.int32), "mask": np.ones(4, np.float32)}
    variables = jax.jit(lambda: model.init(jax.random.key(0), x, train=False))()
    applied = precision.ModelInPrecision(model, Precision(policy="bfloat16"))

    def loss(params):
        scope = Scope(
            model=applied,
            task=Classification(),
            rng=jax.random.key(0),
            step=jnp.int32(0),
            collections={"batch_stats": variables["batch_stats"]},
            ema=None,
            memory=None,
            frozen={},
            hyper={},
        )
        return Method().loss(params, batch, scope).sum

    value, grads = jax.jit(jax.value_and_grad(loss))(variables["params"])
    assert {x.dtype.name for x in jax.tree.leaves((value, grads))} == {"float32"}
    logs = list(equations(jax.make_jaxpr(loss)(variables["params"]).jaxpr))
    kinds = ("log", "exp", "reduce_max")
    assert {str(e.invars[0].aval.dtype) for e in logs if e.primitive.name in kinds} == {"float32"}


def test_norms_keep_every_digit_of_their_scale():
    """A scale that bfloat16 cannot hold reaches the norm unrounded."""
    params = {"norm_0": {"scale": jnp.float32([1.001])}, "dense_0": {"bias": jnp.float32([1.001])}}
    params["LayerNorm_12"] = params["norm_0"]
    params["attention_norm"] = params["norm_0"]
    params["normal"] = params["norm_0"]
    out = precision.cast_params(Precision(policy="bfloat16"), params)
    kept = {name: leaf.dtype.name for name, inner in out.items() for leaf in inner.values()}
    assert kept == {
        "norm_0": "float32",
        "LayerNorm_12": "float32",
        "attention_norm": "float32",
        "dense_0": "bfloat16",
        "normal": "bfloat16",
    }


@pytest.mark.parametrize("name", MODELS)
def test_an_exception_changes_its_own_layer_only(name):
    """One more float32 product for each one excepted, and none downstream."""
    exception, changed = {
        "mlp": (r"dense_0/.*", 1),
        "cnn": (r"conv_0/.*", 1),
        "lstm": (r"lstm_0/.*", 2),
        "gru": (r"gru_0/(hr|hz)/.*", 2),
        "transformer": (r"block_0/mlp/.*", 2),
        "scanned": (r"blocks/attention/(query|out)/.*", 4),  # and the two of their attention
    }[name]
    plain = products(traced(*MODELS[name], policy="bfloat16"))
    found = products(traced(*MODELS[name], policy="bfloat16", exceptions=((exception, "float32"),)))
    assert all(len(set(pair)) == 1 for pair in found)
    assert found[("float32",) * 2] == plain[("float32",) * 2] + changed


def test_the_head_can_be_narrow_by_exception():
    found = products(
        traced(*MODELS["mlp"], policy="bfloat16", exceptions=(("head/.*", "bfloat16"),))
    )
    assert set(found) == {("bfloat16", "bfloat16")}


def test_matrix_products_say_their_precision():
    for said, expected in (("default", "DEFAULT"), ("high", "HIGH"), ("highest", "HIGHEST")):
        found = traced(*MODELS["transformer"], matmul=said)
        asked = {str(e.params["precision"]) for e in found if e.primitive.name == "dot_general"}
        assert len(asked) == 1
        assert f"Precision.{expected}," in asked.pop()


def test_float32_policy_is_the_bare_model_bit_for_bit():
    for model, x in (MODELS["mlp"], MODELS["scanned"]):
        variables = nn.unbox(jax.jit(lambda: model.init(jax.random.key(0), x, train=False))())  # noqa: B023
        applied = precision.ModelInPrecision(model, Precision())
        found = [
            jax.jit(functools.partial(one.apply, train=False))(variables, x)
            for one in (applied, model)
        ]
        np.testing.assert_array_equal(*found)


def test_a_misspelt_exception_is_refused():
    with pytest.raises(UserError, match=r"config.precision.exceptions: pattern 'haed/.\*'"):
        traced(*MODELS["mlp"], exceptions=(("haed/.*", "float32"),))
    with pytest.raises(UserError, match=r"precision\.policy"):
        resolve(small_config(precision=dict(policy="bf16")))
    with pytest.raises(UserError, match=r"precision\.exceptions"):
        resolve(small_config(precision=dict(exceptions=(("head/.*", "float8"),))))


# Loss scaling.


def scaled_step(model, optimizer, check=None, **options):
    applied = precision.ModelInPrecision(model, Precision(policy="float16"))
    return jax.jit(steps.build_train_step(recipe_of(applied, optimizer, check=check, **options)))


def scaled_state(model, optimizer, scale=precision.INITIAL_SCALE):
    state = init_state(
        model.init(jax.random.key(0), jnp.zeros((1, 5)), train=False)["params"],
        {},
        optimizer,
        rng=jax.random.key_data(jax.random.key(1)),
        hyper={name: jnp.float32(value) for name, value in optimizer.hyper().items()},
        ema=False,
    )
    start = precision.init_loss_scale(Precision(policy="float16"))
    return state.replace(loss_scale=start.replace(value=jnp.float32(scale)))


def some_batch(rows=16, size=1.0):
    rng = np.random.default_rng(0)
    return {
        "image": (size * rng.normal(size=(rows, 5))).astype(np.float32),
        "label": rng.integers(0, 3, rows).astype(np.int32),
        "mask": np.ones(rows, np.float32),
        "sample": np.arange(rows, dtype=np.int32),
        "epoch": np.zeros(rows, np.int32),
    }


def test_loss_scaling_recovers_from_an_overflow():
    """A scale that carries gradients beyond 65504 is halved, nothing else moves, then it goes on."""
    model = MLP(widths=(7,), outputs=3)
    optimizer = build(OptimizerSettings(learning_rate=0.1), "adam", {}, 100)
    state, batch = scaled_state(model, optimizer, scale=2.0**22), some_batch()
    step = scaled_step(model, optimizer, check=Check(policy="stop"))
    after, metrics = step(state, batch, {})
    assert metrics["overflow"][0] == 1
    assert not metrics["bad"][0]
    assert not metrics["halted"][0]
    assert after.loss_scale.value == 2.0**21
    assert after.step == 1
    for old, new in zip(
        jax.tree.leaves((state.params, state.opt_state)),
        jax.tree.leaves((after.params, after.opt_state)),
        strict=True,
    ):
        np.testing.assert_array_equal(old, new)
    overflows = 1
    while metrics["overflow"][0]:
        after, metrics = step(after, batch, {})
        overflows += int(metrics["overflow"][0])
    assert overflows < 10
    assert after.loss_scale.value == 2.0 ** (22 - overflows)
    first = float(metrics["loss"][0])
    for _ in range(20):
        after, metrics = step(after, batch, {})
    assert float(metrics["loss"][0]) < first
    assert after.loss_scale.good == 21


def test_scaled_gradients_are_the_unscaled_ones():
    """Against the same step in float32; microbatches included."""
    model = MLP(widths=(7,), outputs=3)
    optimizer = build(OptimizerSettings(learning_rate=0.5), "sgd", {}, 100)
    state, batch = scaled_state(model, optimizer, scale=64.0), some_batch()
    exact = jax.jit(steps.build_train_step(recipe_of(model, optimizer)))(
        state.replace(loss_scale=None), batch, None
    )[0]
    for accumulate in (1, 4):
        scaled, _ = scaled_step(model, optimizer, accumulate=accumulate)(state, batch, None)
        for a, b in zip(jax.tree.leaves(exact.params), jax.tree.leaves(scaled.params), strict=True):
            np.testing.assert_allclose(a, b, atol=1e-3)


def test_the_scale_moves_as_flaxs_does():
    overflowed = [False] * 3 + [True, True] + [False] * 7 + [True] + [False] * 4
    flax_scale = DynamicScale(growth_interval=3, scale=jnp.float32(64.0))
    value = precision.LossScale(value=jnp.float32(64.0), good=jnp.int32(0))

    class State(dict):
        def replace(self, **changes):
            return State({**self, **changes})

        __getattr__ = dict.__getitem__

    jax.tree_util.register_pytree_node(
        State,
        lambda s: (list(s.values()), tuple(s)),
        lambda keys, v: State(zip(keys, v, strict=True)),
    )
    theirs, ours = [], []
    for bad in overflowed:
        factor = jnp.inf if bad else 1.0
        flax_scale, *_ = flax_scale.value_and_grad(lambda x, f=factor: x * f)(1.0)
        theirs.append(float(flax_scale.scale))
        old = State(step=jnp.int32(0), loss_scale=value)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(precision, "GROWTH_INTERVAL", 4)  # Flax counts from 0
            new, _ = precision.without_overflow(
                old, old, (jnp.float32(1), 1.0), [jnp.float32(factor)]
            )
        value = new.loss_scale
        ours.append(float(value.value))
    assert ours == theirs


def test_bad_numbers_are_not_taken_for_an_overflow():
    """A loss that is not finite, or gradients that are not even at the smallest scale: the guard's."""
    model = MLP(widths=(7,), outputs=3)
    optimizer = build(OptimizerSettings(learning_rate=0.1), "adam", {}, 100)
    step = scaled_step(model, optimizer, check=Check(policy="stop"))
    batch = some_batch()
    batch["image"][3, 2] = np.nan
    after, metrics = step(scaled_state(model, optimizer), batch, None)
    assert metrics["bad"][0]
    assert after.loss_scale.value == precision.INITIAL_SCALE
    old = scaled_state(model, optimizer, scale=precision.SMALLEST_SCALE)
    _, overflow = precision.without_overflow(old, old, (jnp.float32(1), 1.0), [jnp.inf])
    assert not overflow


# Master copies and whole runs.


def trained_losses(**changes):
    """The training losses of a run on digits."""
    raw = small_config(
        train=dict(steps=60, batch_size=50),
        model=dict(type="mlp", widths=(64, 64), outputs=10),
        optimizer=dict(type="adam", learning_rate=5e-3),
        mesh=dict(data=1),
        **changes,
    )
    config = resolve(raw)
    source = config.section("data").source.open("train")
    mesh = jax.make_mesh((1,) * 7, program.sharding.AXES, devices=jax.devices()[:1])
    built = program.build_program(config, source, mesh=mesh)
    state = built.init(parts.key_data(0), parts.traced_hyper(config))[0]
    batches = pipeline.train_batches(
        source,
        batch_size=50,
        seed=0,
        start_step=0,
        sharding=program.sharding.batch_sharding(built.mesh),
    )
    losses = []
    for _, batch in zip(range(config.get("train.steps")), batches, strict=False):
        state, metrics = built.train_step(state, batch, {})
        total, weight = metrics["loss"]
        losses.append(float(total / weight))
    return np.array(losses), state


@pytest.fixture(scope="module")
def float32_run():
    return trained_losses()


@pytest.mark.parametrize("policy", ["bfloat16", "full_bfloat16", "float16"])
def test_narrow_runs_follow_the_float32_loss_curve(float32_run, policy):
    """Digits, 60 steps: loss from 2.3 to 0.2. Every step within 2 % of the first loss."""
    exact, _ = float32_run
    losses, state = trained_losses(precision=dict(policy=policy))
    assert exact[-1] < 0.3 * exact[0]
    assert np.abs(losses - exact).max() < 0.02 * exact[0]
    stored = {leaf.dtype.name for leaf in jax.tree.leaves(state.params)}
    wide, narrow = {"float32"}, {"bfloat16", "float32"}  # the head is float32
    assert stored == (narrow if policy == "full_bfloat16" else wide)


def test_the_master_copy_keeps_what_bfloat16_would_lose():
    """Small steps of SGD on a regression: alone, bfloat16 parameters stand still."""
    optimizer = build(OptimizerSettings(learning_rate=1e-4), "sgd", {}, 1000)
    target, x = jnp.linspace(0.5, 1.5, 64), jnp.ones((64,))
    hyper = {name: jnp.float32(value) for name, value in optimizer.hyper().items()}

    def descend(optimizer, params, start):
        opt_state = optimizer.init(start)

        @jax.jit
        def update(carry, step):
            params, opt_state = carry
            grads = {"w": (params["w"].astype(jnp.float32) * x - target).astype(params["w"].dtype)}
            params, opt_state, _ = optimizer.update(
                grads, opt_state, params, hyper=hyper, step=step
            )
            return (params, opt_state), None

        (params, _), _ = jax.lax.scan(update, (params, opt_state), jnp.arange(1000))
        return np.asarray(params["w"], np.float64)

    start = {"w": jnp.ones((64,))}
    narrow = {"w": start["w"].astype(jnp.bfloat16)}
    exact = descend(optimizer, start, start)
    alone = descend(optimizer, narrow, narrow)
    with_master = descend(precision.MasterCopy(optimizer), narrow, start)
    error = np.abs(with_master - exact).max()
    assert error < 0.005
    assert np.abs(alone - exact).max() > 8 * error
    np.testing.assert_array_equal(alone, 1.0)


def test_frozen_parameters_have_no_master_copy():
    rules = (("a/.*", None), (".*", 1.0))
    inner = build(OptimizerSettings(learning_rate=0.1, learning_rate_rules=rules), "sgd", {}, 10)
    optimizer = precision.MasterCopy(inner)
    params = {"a": {"w": jnp.ones(3)}, "b": {"w": jnp.ones(3)}}
    state = optimizer.init(params)
    narrow = precision.cast_params(Precision(policy="full_bfloat16"), params)
    hyper = {name: jnp.float32(value) for name, value in inner.hyper().items()}
    after, state, _ = optimizer.update(narrow, state, narrow, hyper=hyper, step=0)
    assert not state["master"]["a"]
    assert state["master"]["b"]["w"].dtype == jnp.float32
    np.testing.assert_allclose(state["master"]["b"]["w"], 0.9, rtol=1e-6)
    assert {leaf.dtype.name for leaf in jax.tree.leaves(after)} == {"bfloat16"}
    np.testing.assert_array_equal(after["a"]["w"], narrow["a"]["w"])


def test_precision_is_part_of_what_a_resume_must_keep():
    assert "precision" not in {path.split(".")[0] for path in FREE_ON_RESUME}
    assert settings.Precision in SETTINGS.values()
