"""DoRA, a base in few bits, quantization-aware training and pruning: against float64 by hand."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.ad_checkpoint import print_saved_residuals

from bigjax.core.adapt import Adaptation
from bigjax.core.errors import UserError
from bigjax.core.quantize import Quantized
from bigjax.core.rules import paths
from bigjax.core.steps import activations_alone
from bigjax.methods.lora import DoRA, LoRA
from bigjax.methods.low_rank import LowRank
from bigjax.methods.pruning import Movement, Prune, threshold
from bigjax.methods.quantized import QuantizationAware, Quantize, QuantizeInputs

KERNELS = ((".*kernel", "int8"), (".*", None))


def numbers(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def model(m=8, n=5):
    return {"head": {"kernel": jnp.asarray(numbers(1, m, n)), "bias": jnp.zeros(n)}}


def test_rank_stabilized_scaling_divides_by_the_root():
    assert LoRA(rank=16, alpha=8.0).scale(16) == 0.5
    assert LoRA(rank=16, alpha=8.0, rank_stabilized=True).scale(16) == 2.0


def test_an_adapter_is_merged_and_taken_away_again():
    part, params = LoRA(rank=2), paths(model())
    own = jax.tree.map(lambda x: x + 0.3, part.init(jax.random.key(0), params))
    merged = part.apply(own, params, 0)
    assert np.abs(merged["head/kernel"] - params["head/kernel"]).max() > 0.1
    np.testing.assert_allclose(
        part.remove(own, merged)["head/kernel"], params["head/kernel"], atol=1e-6
    )


def test_dora_is_eq_5_and_begins_as_its_base():
    params = model()
    adaptation = Adaptation((DoRA(rank=2, alpha=6.0),))
    trained, base = adaptation.begin(jax.random.key(1), params)
    seen = functools.partial(adaptation.params, frozen={"base": base}, step=0)
    kernel = np.asarray(params["head"]["kernel"], np.float64)
    np.testing.assert_allclose(seen(trained)["head"]["kernel"], kernel, rtol=1e-6)

    own = trained["dora"]["head"]["kernel"]
    a, b = np.asarray(own["a"], np.float64), numbers(3, 2, 5).astype(np.float64)
    m = np.asarray(own["m"], np.float64) * 1.5
    trained["dora"]["head"]["kernel"] = {"a": own["a"], "b": jnp.float32(b), "m": jnp.float32(m)}
    direction = kernel + 3.0 * a @ b
    norms = np.linalg.norm(direction, axis=0)
    np.testing.assert_allclose(seen(trained)["head"]["kernel"], m * direction / norms, rtol=1e-5)

    g = numbers(4, 8, 5).astype(np.float64)
    found = jax.grad(lambda t: jnp.sum(seen(t)["head"]["kernel"] * jnp.float32(g)))(trained)
    found = found["dora"]["head"]["kernel"]
    np.testing.assert_allclose(found["m"], (g * direction / norms).sum(0), rtol=1e-4)
    np.testing.assert_allclose(found["b"], 3.0 * a.T @ (g * m / norms), rtol=1e-4, atol=1e-5)


def test_a_base_is_held_in_few_bits_alone_and_adapted():
    rules = ((".*kernel", "nf4"), (".*", None))
    adaptation = Adaptation((Quantize(rules=rules, group=4), LoRA(rank=2)))
    params = model()
    trained, base = adaptation.begin(jax.random.key(1), params)
    held = base["head"]["kernel"]
    assert isinstance(held, Quantized) and held.codes.dtype == jnp.uint8 and held.codes.size == 20
    assert set(paths(trained)) == {"lora/head/kernel/a", "lora/head/kernel/b"}
    assert adaptation.recomputed
    alone, _ = Adaptation((Quantize(rules=rules),)).begin(jax.random.key(1), params)
    assert set(paths(alone)) == {"model/head/bias"}  # what it leaves alone is trained as ever


def test_no_full_number_of_a_base_in_few_bits_is_kept_for_the_backward_pass(capsys):
    params = {f"dense_{i}": {"kernel": jnp.asarray(numbers(i, 8, 8))} for i in range(2)}
    rules = ((".*kernel", "nf4"),)
    adaptation = Adaptation((Quantize(rules=rules), LoRA(rank=2, rules=((".*", "adapt"),))))
    trained, base = adaptation.begin(jax.random.key(1), params)

    def loss(trained):
        x, seen = jnp.ones((3, 8)), adaptation.params(trained, {"base": base}, 0)
        return jnp.sum(jnp.tanh(x @ seen["dense_0"]["kernel"]) @ seen["dense_1"]["kernel"])

    print_saved_residuals(loss, trained)
    assert "f32[8,8]" in capsys.readouterr().out
    jax.ad_checkpoint.print_saved_residuals(jax.checkpoint(loss, policy=activations_alone), trained)
    kept = capsys.readouterr().out
    assert "f32[8,8]" not in kept and "f32[3,8]" in kept


def test_training_sees_what_quantization_will_give_and_its_gradient_goes_through():
    part, params = QuantizationAware(rules=KERNELS), paths(model())
    seen = part.apply({}, params, 0)["head/kernel"]
    scale = np.abs(params["head/kernel"]).max(0) / 127
    np.testing.assert_allclose(seen, np.rint(params["head/kernel"] / scale) * scale, rtol=1e-5)
    grad = jax.grad(lambda p: jnp.sum(part.apply({}, p, 0)["head/kernel"] ** 2))(params)
    np.testing.assert_allclose(grad["head/kernel"], 2 * seen, rtol=1e-6)


def test_inputs_of_chosen_layers_are_rounded_row_by_row():
    import flax.linen as nn

    class Two(nn.Module):
        @nn.compact
        def __call__(self, x):
            return nn.Dense(3, name="head")(nn.Dense(4, name="dense_0")(x))

    x = jnp.asarray(numbers(0, 2, 8))
    params = {
        "dense_0": {"kernel": jnp.asarray(numbers(1, 8, 4)), "bias": jnp.zeros(4)},
        "head": {"kernel": jnp.asarray(numbers(2, 4, 3)), "bias": jnp.zeros(3)},
    }
    w0, w1 = (np.asarray(params[n]["kernel"], np.float64) for n in ("dense_0", "head"))
    exact = np.asarray(x, np.float64)
    scale = np.abs(exact).max(1, keepdims=True) / 127
    for rule, own in (("dynamic", scale), (1.5, np.float64(1.5 / 127))):
        part = QuantizeInputs(rules=(("dense_0", rule), (".*", None)))
        part.keeps(paths(params))
        found = part.wrap(Two()).apply({"params": params}, x)
        expected = np.clip(np.rint(exact / own), -127, 127) * own @ w0 @ w1
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


def test_the_share_rises_as_zhu_and_gupta_say():
    part = Prune(sparsity=0.9, initial=0.1, begin=10, end=110)
    for step in (10, 35, 110, 500):
        t = min(1.0, (step - 10) / 100)
        assert float(part.share(step)) == pytest.approx(0.9 + (0.1 - 0.9) * (1 - t) ** 3, abs=1e-6)
    assert float(part.share(9)) == 0.0


@pytest.mark.parametrize("scope", ["leaf", "global"])
def test_the_smallest_weights_are_zero_and_stay_so(scope):
    part = Prune(sparsity=0.6, begin=2, end=2, scope=scope, rules=((".*", "prune"),))
    old = {"a": jnp.asarray(numbers(1, 10, 4)), "b": jnp.asarray(3 * numbers(2, 4, 5))}
    project = jax.jit(part.project)
    assert all(np.array_equal(x, old[p]) for p, x in project(old, old, 1).items())
    pruned = project(old, old, 2)
    sizes = {p: np.abs(np.asarray(x)) for p, x in old.items()}
    if scope == "global":
        limit = np.sort(np.concatenate([x.ravel() for x in sizes.values()]))[36]
        expected = {p: x >= limit for p, x in sizes.items()}
    else:
        expected = {p: x >= np.sort(x.ravel())[int(0.6 * x.size)] for p, x in sizes.items()}
    for path, mask in expected.items():
        np.testing.assert_array_equal(pruned[path], np.where(mask, old[path], 0))
    moved = jax.tree.map(lambda x: x + 0.5, pruned)  # as momentum would
    for path, leaf in project(moved, pruned, 3).items():
        np.testing.assert_array_equal(leaf, np.where(expected[path], moved[path], 0))


def test_two_of_every_four_inputs_are_kept():
    leaf = jnp.asarray(numbers(5, 8, 3))
    part = Prune(pattern="2:4")
    found = np.asarray(part.project({"a/kernel": leaf}, {"a/kernel": leaf}, 0)["a/kernel"])
    for channel in range(3):
        for start in (0, 4):
            four = np.asarray(leaf)[start : start + 4, channel]
            kept = np.argsort(-np.abs(four))[:2]
            expected = np.where(np.isin(range(4), kept), four, 0)
            np.testing.assert_array_equal(found[start : start + 4, channel], expected)


def test_movement_keeps_the_highest_scores_whose_gradient_is_the_weights_way():
    part = Movement(sparsity=0.5, end=1, rules=((".*kernel", "prune"), (".*", None)))
    params, scores = paths(model()), numbers(6, 8, 5)
    own = {"head": {"kernel": jnp.asarray(scores)}}
    mask = scores > np.sort(scores.ravel())[19]
    seen = part.apply(own, params, 5)["head/kernel"]
    np.testing.assert_allclose(seen, np.where(mask, params["head/kernel"], 0), atol=1e-6)
    g = numbers(7, 8, 5)
    value = lambda own, params: jnp.sum(part.apply(own, params, 5)["head/kernel"] * g)  # noqa: E731
    by_score, by_weight = jax.grad(value, (0, 1))(own, params)
    np.testing.assert_allclose(by_score["head"]["kernel"], params["head/kernel"] * g, rtol=1e-5)
    np.testing.assert_allclose(by_weight["head/kernel"], np.where(mask, g, 0), atol=1e-5)


def test_low_rank_begins_as_the_nearest_product():
    leaf = numbers(8, 3, 6, 2, 4)  # of three stacked layers
    part = LowRank(rules=((".*kernel", 2),))
    own = part.init(jax.random.key(0), {"blocks/query/kernel": jnp.asarray(leaf)})
    factors = own["blocks"]["query"]["kernel"]
    assert factors["a"].shape == (3, 6, 2) and factors["b"].shape == (3, 2, 2, 4)
    for layer, found in enumerate(part.apply(own, {}, 0)["blocks/query/kernel"]):
        u, s, v = np.linalg.svd(leaf[layer].reshape(6, 8).astype(np.float64))
        np.testing.assert_allclose(found.reshape(6, 8), (u[:, :2] * s[:2]) @ v[:2], atol=1e-5)


def test_a_share_of_nothing_prunes_nothing():
    assert float(threshold([jnp.arange(4.0)], jnp.float32(0.0))) == -np.inf


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Quantize(rules=((".*", "int8"),)), "is no matrix"),
        (lambda: Quantize(rules=((".*kernel", "int9"), (".*", None))), "'int9' is no format"),
        (
            lambda: QuantizationAware(rules=((".*karnel", "int8"), (".*", None))),
            "matches the whole",
        ),
        (lambda: Quantize(group=0), "group 0 must be 1 or more"),
        (lambda: QuantizeInputs(rules=((".*", "always"),)), "none of 'dynamic'"),
        (lambda: Prune(sparsity=1.0), "below 1"),
        (lambda: Prune(begin=5, end=2), "must be in order"),
        (lambda: Prune(pattern="2:4"), "not a multiple of 4"),
        (lambda: Prune(rules=((".*", "cut"),)), "neither 'prune' nor None"),
        (lambda: Movement(), "end must be after begin"),
        (lambda: LowRank(rules=((".*kernel", 9), (".*", None))), "rank 9 is more than"),
        (lambda: DoRA(rank=99), "dora: rank 99 is more than"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(make, message):
    with pytest.raises(UserError, match=message):
        Adaptation((make(),)).begin(jax.random.key(0), model(m=6))


def test_a_sparsity_that_the_run_never_reaches_is_refused():
    for part in (Prune(begin=2, end=9), Movement(end=9), Prune(begin=9, end=9, pattern="2:4")):
        part.check(9)
        with pytest.raises(UserError, match=f"{part.NAME}: step 9, .* lies after the last of 8"):
            part.check(8)


def test_a_leaf_that_another_freezes_is_not_pruned():
    with pytest.raises(UserError, match="head/kernel is frozen by another"):
        Adaptation((Prune(), LoRA(rank=2))).begin(jax.random.key(0), model())
