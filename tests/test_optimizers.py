"""Updates against the textbook formulas in float64, bare Optax, and the promises of the room."""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import optax
import optax.contrib
import pytest

from bigjax.config.signature import parameters
from bigjax.core import optax_names, optimizers
from bigjax.core.errors import UserError
from bigjax.core.optax_names import resolve
from bigjax.core.optimizers import LEARNING_RATE, WEIGHT_DECAY, OptimizerSettings, build
from bigjax.core.rules import paths
from bigjax.core.schedules import Constant, Cosine

STEPS, RATE = 10, 0.1
RNG = np.random.default_rng(0)
START, MATRIX = RNG.normal(size=5), np.diag([0.5, 1.0, 2.0, 3.0, 4.0])


def gradient(p):
    return MATRIX @ p


@pytest.fixture
def float64():
    with jax.enable_x64(True):
        yield


def ours(type_name, settings=None, **keywords):
    """The path of ten updates on a quadratic, in float64."""
    optimizer = build(settings or OptimizerSettings(RATE), type_name, keywords, STEPS)
    hyper = {name: jnp.float64(value) for name, value in optimizer.hyper().items()}
    params = {"w": jnp.asarray(START)}
    state, path = optimizer.init(params), []
    for step in range(STEPS):
        grads = {"w": jnp.asarray(gradient(np.asarray(params["w"])))}
        params, state, _ = optimizer.update(grads, state, params, hyper=hyper, step=step)
        path.append(np.asarray(params["w"]))
    return np.array(path)


def textbook(rule):
    """The same path by `rule(t, p, g, memory) -> p`, t = 1, 2, ..."""
    p, memory, path = START, {"m": np.zeros(5), "v": np.zeros(5)}, []
    for t in range(1, STEPS + 1):
        p = rule(t, p, gradient(p), memory)
        path.append(p)
    return np.array(path)


def adam_direction(t, g, memory, b1=0.9, b2=0.999, eps=1e-8):
    """Kingma & Ba 2015, algorithm 1."""
    memory["m"] = b1 * memory["m"] + (1 - b1) * g
    memory["v"] = b2 * memory["v"] + (1 - b2) * g**2
    return memory["m"] / (1 - b1**t) / (np.sqrt(memory["v"] / (1 - b2**t)) + eps)


def momentum_rule(t, p, g, memory):
    memory["m"] = 0.9 * memory["m"] + g
    return p - RATE * memory["m"]


def nesterov_rule(t, p, g, memory):
    memory["m"] = 0.9 * memory["m"] + g
    return p - RATE * (g + 0.9 * memory["m"])


def rmsprop_rule(t, p, g, memory):
    memory["v"] = 0.9 * memory["v"] + 0.1 * g**2
    return p - RATE * g / (np.sqrt(memory["v"]) + 1e-8)


def lion_rule(t, p, g, memory, decay=0.0):
    """Chen et al. 2023, algorithm 2."""
    direction = np.sign(0.9 * memory["m"] + 0.1 * g)
    memory["m"] = 0.99 * memory["m"] + 0.01 * g
    return p - RATE * (direction + decay * p)


@pytest.mark.parametrize(
    ("type_name", "keywords", "rule"),
    [
        ("sgd", {}, lambda t, p, g, memory: p - RATE * g),
        ("momentum", {}, momentum_rule),
        ("nesterov", {}, nesterov_rule),
        ("adam", {}, lambda t, p, g, memory: p - RATE * adam_direction(t, g, memory)),
        ("rmsprop", {"eps_in_sqrt": False}, rmsprop_rule),
        ("lion", {}, lion_rule),
    ],
)
def test_update_equals_the_textbook(float64, type_name, keywords, rule):
    np.testing.assert_allclose(ours(type_name, **keywords), textbook(rule), rtol=1e-7, atol=1e-9)


def test_weight_decay_is_decoupled_as_in_loshchilov_and_hutter(float64):
    settings = OptimizerSettings(RATE, weight_decay=0.3)

    def adamw_rule(t, p, g, memory):
        return p - RATE * (adam_direction(t, g, memory) + 0.3 * p)

    np.testing.assert_allclose(ours("adamw", settings), textbook(adamw_rule), rtol=1e-7)
    np.testing.assert_allclose(ours("adam", settings), textbook(adamw_rule), rtol=1e-7)

    def lion_with_decay(t, p, g, memory):
        return lion_rule(t, p, g, memory, decay=0.3)

    np.testing.assert_allclose(ours("lion", settings), textbook(lion_with_decay), rtol=1e-7)


def test_schedule_scales_rate_and_decay_from_the_first_step(float64):
    settings = OptimizerSettings(RATE, Cosine(warmup_steps=2), weight_decay=0.3)
    factor = [0.0, 0.5] + [(1 + np.cos(np.pi * (t - 2) / 8)) / 2 for t in range(2, STEPS)]
    expected = textbook(lambda t, p, g, memory: p - RATE * factor[t - 1] * (g + 0.3 * p))
    np.testing.assert_allclose(ours("sgd", settings), expected, rtol=1e-7)


def test_clipping_bounds_the_global_norm(float64):
    def clipped_rule(t, p, g, memory):
        return p - RATE * g * min(1, 0.5 / np.linalg.norm(g))

    settings = OptimizerSettings(RATE, clip_norm=0.5)
    np.testing.assert_allclose(ours("sgd", settings), textbook(clipped_rule), rtol=1e-7)


def test_the_global_norm_is_that_of_float64_in_whole_leaves_and_in_parts(monkeypatch):
    draw = np.random.default_rng(0).standard_normal
    tree = {"big": draw((256, 48)), "odd": draw((7, 3)), "one": draw(()), "narrow": 3 * draw((32,))}
    expected = np.sqrt(sum(np.sum(np.square(leaf)) for leaf in tree.values()))
    tree = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), tree)

    monkeypatch.setattr(optimizers.jax, "device_count", lambda: 1)
    for remedies in ((), ("--some_flag",)):
        monkeypatch.setattr(optimizers.compilers, "remedies", lambda remedies=remedies: remedies)
        norm = jax.jit(lambda tree: optimizers.global_norm(tree))  # traced anew
        np.testing.assert_allclose(norm(tree), expected, rtol=2e-7)
        assert ("optimization_barrier" in norm.lower(tree).as_text()) == bool(remedies)


# Below: a small tree of parameters in float32, every leaf drawn to 0.2.

TREE = {
    "backbone": {"kernel": jnp.ones((6, 4)), "bias": jnp.full((4,), 0.5, jnp.float32)},
    "head": {"kernel": jnp.ones((4, 3)), "filters": jnp.ones((3, 2, 2))},
}
FREEZE = (("backbone/.*", None), (".*", 1.0))


def make(type_name="adamw", keywords=None, total_steps=20, **settings):
    settings = {"learning_rate": 0.01, **settings}
    return build(OptimizerSettings(**settings), type_name, keywords or {}, total_steps)


def loss(params):
    return sum(jnp.sum((p.astype(jnp.float32) - 0.2) ** 2) for p in jax.tree.leaves(params))


def train(optimizer, params, steps=4, hyper=None):
    """Returns (params, opt_state, infos, number of times the step was traced)."""
    traced = 0

    @jax.jit
    def update(params, state, hyper, step):
        nonlocal traced
        traced += 1
        trainable, frozen = optimizer.split(params)
        grads = jax.grad(lambda t: loss(optimizer.merge(t, frozen)))(trainable)
        return optimizer.update(grads, state, params, hyper=hyper, step=step)

    state, infos = jax.jit(optimizer.init)(params), []
    for step in range(steps):
        scalars = (hyper or (lambda step: optimizer.hyper()))(step)
        scalars = {name: jnp.float32(value) for name, value in scalars.items()}
        params, state, info = update(params, state, scalars, jnp.int32(step))
        infos.append(info)
    return params, state, infos, traced


@pytest.mark.parametrize(
    ("type_name", "bare"),
    [
        ("adamw", lambda: optax.adamw(0.01, weight_decay=0.1)),
        ("lion", lambda: optax.lion(0.01, weight_decay=0.1)),
        ("adafactor", lambda: optax.adafactor(0.01)),
        ("muon", lambda: optax.contrib.muon(0.01)),
        ("schedule_free_adamw", lambda: optax.contrib.schedule_free_adamw(0.01, weight_decay=0.1)),
        ("prodigy", lambda: optax.contrib.prodigy(1.0, weight_decay=0.1)),
    ],
)
def test_result_equals_bare_optax(type_name, bare):
    decay = 0.0 if type_name in ("adafactor", "muon") else 0.1
    rate = 1.0 if type_name == "prodigy" else 0.01
    params, _, _, _ = train(make(type_name, learning_rate=rate, weight_decay=decay), TREE, steps=8)
    expected, bare = TREE, bare()
    state = bare.init(expected)
    for _ in range(8):
        updates, state = bare.update(jax.grad(loss)(expected), state, expected)
        expected = optax.apply_updates(expected, updates)
    assert loss(params) < loss(TREE)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-6), params, expected)


# Optax's optimizers that decay weights themselves, by what tells them how much. Muon has two numbers:
# ours is for matrices and for the rest, as the rules say which leaf decays.
DECAYS = {
    name: tuple(n for n in ("weight_decay", "weight_decay_rate", "adam_weight_decay") if n in own)
    for name, factory in optax_names.names().items()
    if (own := inspect.signature(inspect.unwrap(factory)).parameters).keys()
    & {"weight_decay", "weight_decay_rate"}
}


def test_every_optimizer_of_optax_that_decays_weights_is_looked_at():
    assert {
        "adamw",
        "adafactor",
        "lamb",
        "lars",
        "lion",
        "madgrad",
        "muon",
        "novograd",
        "prodigy",
    } < (DECAYS.keys())
    assert DECAYS.keys() >= optimizers.DECAY_INSIDE


@pytest.mark.parametrize("name", DECAYS)
def test_weight_decay_is_where_optax_has_it(float64, name):
    """Three steps in float64; the numbers of Optax's own function with its own keyword."""
    rng = np.random.default_rng(1)
    params = {"a": jnp.asarray(rng.normal(size=(6, 4))), "b": jnp.asarray(rng.normal(size=4))}
    optimizer = build(OptimizerSettings(0.05, weight_decay=0.3), name, {}, STEPS)
    bare = inspect.unwrap(resolve(name))(learning_rate=0.05, **dict.fromkeys(DECAYS[name], 0.3))
    hyper = {key: jnp.float64(value) for key, value in optimizer.hyper().items()}
    expected, state, bare_state = params, optimizer.init(params), bare.init(params)
    for step in range(3):
        gradients = jax.tree.map(lambda p: p * jnp.arange(1.0, 5.0), (params, expected))
        params, state, _ = optimizer.update(gradients[0], state, params, hyper=hyper, step=step)
        updates, bare_state = bare.update(gradients[1], bare_state, expected)
        expected = optax.apply_updates(expected, updates)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-8), params, expected)


@pytest.mark.parametrize("name", ["lamb", "lars", "adafactor", "adamw"])
def test_a_leaf_without_decay_is_updated_as_without_decay_and_the_others_as_with_it(name):
    rules = (("head/.*", 0.0), (".*bias", 2.0), (".*", 1.0))
    rng = np.random.default_rng(2)
    tree = jax.tree.map(lambda p: jnp.float32(rng.normal(size=p.shape)), TREE)

    def trained(decay, rules=((".*", 1.0),)):
        optimizer = make(name, weight_decay=decay, weight_decay_rules=rules)
        params, _, _, traced = train(optimizer, tree, steps=2)
        assert traced == 1
        return params

    some, none, one, two = trained(0.1, rules), trained(0.0), trained(0.1), trained(0.2)
    close = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6)  # noqa: E731
    jax.tree.map(close, some["head"], none["head"])
    close(some["backbone"]["kernel"], one["backbone"]["kernel"])
    close(some["backbone"]["bias"], two["backbone"]["bias"])
    assert np.any(one["head"]["kernel"] != none["head"]["kernel"])


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize(
    "type_name",
    [
        "sgd",
        "momentum",
        "nesterov",
        "adam",
        "adamw",
        "rmsprop",
        "lion",
        "adafactor",
        "muon",
        "schedule_free_adamw",
        "galore",
        "lamb",
        "prodigy",
    ],
)
def test_frozen_leaves_stay_bitwise_without_state_and_the_step_compiles_once(type_name, dtype):
    params = jax.tree.map(lambda p: p.astype(dtype), TREE)
    optimizer = make(type_name, weight_decay=0.1, clip_norm=1.0, learning_rate_rules=FREEZE)
    new, state, _, traced = train(optimizer, params)
    assert traced == 1
    jax.tree.map(np.testing.assert_array_equal, new["backbone"], params["backbone"])
    assert jax.tree.map(lambda p: p.dtype, new) == jax.tree.map(lambda p: p.dtype, params)
    assert all(np.isfinite(p.astype(np.float32)).all() for p in jax.tree.leaves(new))
    assert not any("backbone" in path for path in paths(state))
    assert all(leaf.shape not in ((6, 4), (4,)) for leaf in jax.tree.leaves(state))


def test_state_follows_the_parameters_structure():
    state = make("adamw").init(TREE)
    moments = [path for path in paths(state) if path.startswith("0/mu/")]
    assert moments == [f"0/mu/{path}" for path in paths(TREE)]


def test_other_rates_and_decays_do_not_compile_again():
    optimizer = make("adamw", schedule=Cosine())

    def rates(step):
        return {LEARNING_RATE: 0.1 * (step + 1), WEIGHT_DECAY: 0.01 * step}

    _, _, infos, traced = train(optimizer, TREE, hyper=rates)
    assert traced == 1
    expected = [0.1 * (t + 1) * (1 + np.cos(np.pi * t / 20)) / 2 for t in range(4)]
    np.testing.assert_allclose([info["learning_rate"] for info in infos], expected, rtol=1e-6)


def test_rules_multiply_a_leafs_update_and_its_decay():
    optimizer = make(
        "sgd",
        weight_decay=0.5,
        learning_rate_rules=((".*bias", 3.0), (".*", 1.0)),
        weight_decay_rules=(("head/.*", 0.0), (".*", 1.0)),
    )
    new, _, _, _ = train(optimizer, TREE, steps=1)
    np.testing.assert_allclose(new["backbone"]["kernel"], 1 - 0.01 * (1.6 + 0.5), rtol=1e-6)
    np.testing.assert_allclose(new["backbone"]["bias"], 0.5 - 0.03 * (0.6 + 0.25), rtol=1e-6)
    np.testing.assert_allclose(new["head"]["kernel"], 1 - 0.01 * 1.6, rtol=1e-6)


def test_gradient_norm_counts_trainable_leaves_only_and_before_clipping():
    _, _, infos, _ = train(make(clip_norm=0.1, learning_rate_rules=FREEZE), TREE, steps=1)
    np.testing.assert_allclose(infos[0]["grad_norm"], 1.6 * np.sqrt(12 + 12), rtol=1e-6)


def test_split_and_merge_are_inverse():
    optimizer = make(learning_rate_rules=FREEZE)
    trainable, frozen = optimizer.split(TREE)
    assert trainable["backbone"] == {"kernel": None, "bias": None}
    assert frozen["head"] == {"kernel": None, "filters": None}
    jax.tree.map(np.testing.assert_array_equal, optimizer.merge(trainable, frozen), TREE)


def test_trainable_leaves_alone_may_be_updated():
    optimizer = make(learning_rate_rules=FREEZE)
    trainable, _ = optimizer.split(TREE)
    grads, state = jax.grad(loss)(trainable), optimizer.init(trainable)
    new, _, _ = optimizer.update(grads, state, trainable, hyper=optimizer.hyper(), step=0)
    whole, _, _ = optimizer.update(grads, state, TREE, hyper=optimizer.hyper(), step=0)
    assert new["backbone"] == {"kernel": None, "bias": None}
    jax.tree.map(np.testing.assert_array_equal, new["head"], whole["head"])


def test_schedule_free_is_evaluated_at_its_average():
    optimizer = make("schedule_free_sgd", learning_rate_rules=FREEZE)
    params, state, _, _ = train(optimizer, TREE)
    at = optimizer.evaluation_params(params, state)
    expected = (params["head"]["kernel"] - 0.1 * state.z["head"]["kernel"]) / 0.9
    np.testing.assert_allclose(at["head"]["kernel"], expected, rtol=1e-6)
    np.testing.assert_array_equal(at["backbone"]["kernel"], TREE["backbone"]["kernel"])
    assert make("adam").evaluation_params(params, None) is params


def test_an_optimizer_named_by_its_module_is_the_same_one():
    named = make("optax.contrib:prodigy", learning_rate=1.0, weight_decay=0.1)
    short = make("prodigy", learning_rate=1.0, weight_decay=0.1)
    jax.tree.map(np.testing.assert_array_equal, train(named, TREE)[0], train(short, TREE)[0])


@pytest.mark.parametrize("type_name", ["adamw", "muon", "prodigy", "schedule_free_adamw"])
def test_parameters_and_state_can_be_donated_together(type_name):
    optimizer = make(type_name)
    params, state = jax.jit(lambda p: (jax.tree.map(jnp.copy, p), optimizer.init(p)))(TREE)
    donating = jax.jit(
        lambda p, s: optimizer.update(p, s, p, hyper=optimizer.hyper(), step=0)[:2],
        donate_argnums=(0, 1),
    )
    for _ in range(2):
        params, state = donating(params, state)
    assert all(np.isfinite(p).all() for p in jax.tree.leaves(params))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"type_name": "adamv"}, "did you mean 'adam"),
        ({"type_name": "lbfgs"}, "needs more than gradients"),
        ({"type_name": "no.such:thing"}, "cannot import"),
        ({"keywords": {"beta9": 1.0}}, "beta9"),
        ({"keywords": {"mask": True}}, r"^config\.optimizer\.mask: use weight_decay"),
        ({"learning_rate": -1.0}, r"^config\.optimizer\.learning_rate"),
        ({"learning_rate": float("nan")}, r"^config\.optimizer\.learning_rate"),
        ({"weight_decay": -0.1}, r"^config\.optimizer\.weight_decay"),
        ({"clip_norm": 0.0}, r"^config\.optimizer\.clip_norm"),
        ({"schedule": Constant(warmup_steps=30)}, r"^config\.optimizer\.schedule\.warmup_steps"),
        ({"learning_rate_rules": ((".*", "fast"),)}, r"^config\.optimizer\.learning_rate_rules"),
        ({"learning_rate_rules": ((".*", -1.0),)}, r"^config\.optimizer\.learning_rate_rules"),
        ({"learning_rate_rules": ((".*", None),)}, "every parameter is frozen"),
        ({"learning_rate_rules": (("head/.*", 1.0),)}, "'backbone/bias' is matched by no pattern"),
        ({"weight_decay_rules": ((".*", None),)}, r"^config\.optimizer\.weight_decay_rules"),
        (
            {"type_name": "prodigy", "weight_decay_rules": ((".*bias", 0.0), (".*", 1.0))},
            "cannot have a factor of its own",
        ),
    ],
)
def test_nonsense_is_refused_in_one_line(arguments, message):
    with pytest.raises(UserError, match=message) as error:
        make(**arguments).init(TREE)
    assert "\n" not in str(error.value)


def test_signatures_hold_plain_values_that_a_config_can_check():
    assert {"adamw", "muon", "momentum", "lion", "prodigy"} <= set(optax_names.names())
    assert parameters(resolve("adamw"))["b1"].annotation is float
    assert parameters(resolve("adafactor"))["dtype_momentum"].default == "float32"
    assert "mask" not in parameters(resolve("adamw"))
    for name in optax_names.names():
        for parameter in parameters(resolve(name)).values():
            required = parameter.default is inspect.Parameter.empty
            assert required or isinstance(
                parameter.default, bool | int | float | str | tuple | None
            )
