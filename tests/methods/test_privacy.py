"""DP-SGD against float64 by hand, its noise and sampling, and epsilon against published values."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import gammaln, logsumexp
from scipy.stats import binom, kstest, norm

from bigjax.core.errors import UserError
from bigjax.core.method import Scope, Sums
from bigjax.core.order import uniforms
from bigjax.methods.privacy import DPSGD, epsilon, lot_sizes
from bigjax.models.mlp import MLP
from bigjax.tasks.classification import Classification
from tests.contracts.runs import setup_of, steps_of
from tests.small import small

MODEL = MLP(widths=(), outputs=3)
METHOD = DPSGD(lot=4, clip=0.7, noise_multiplier=1.5)


class Examples:
    """A source of `size` examples."""

    def __init__(self, size):
        self.size = size

    def __len__(self):
        return self.size


def scope_of(clip=0.7, noise=1.5, seed=0):
    return Scope(
        model=MODEL,
        task=Classification(),
        rng=jax.random.key(seed),
        step=jnp.int32(0),
        collections={},
        ema=None,
        memory=None,
        frozen={},
        hyper={"clip": jnp.float32(clip), "noise_multiplier": jnp.float32(noise)},
    )


def batch_of(rows=6, hole=2):
    rng = np.random.default_rng(0)
    mask = np.ones(rows, np.float32)
    mask[hole] = 0
    return dict(
        image=(rng.normal(size=(rows, 5)) * np.linspace(0.1, 3, rows)[:, None]).astype(np.float32),
        label=rng.integers(0, 3, rows).astype(np.int32),
        mask=mask,
    )


@functools.cache
def params_of(seed=1):
    init = jax.jit(functools.partial(MODEL.init, train=False))
    return init(jax.random.key(seed), jnp.zeros((1, 5)))["params"]


@functools.cache
def summing(**scope):
    return jax.jit(
        lambda params, batch: METHOD.gradients(METHOD.loss, params, batch, scope_of(**scope))
    )


def sums_of(batch, **scope):
    return summing(**scope)(params_of(), batch)


def each_gradient(batch):
    """(B, 6, 3) gradients of each example's loss for the kernel and, last, the bias, float64."""
    head = params_of()["head"]
    x = np.asarray(batch["image"], np.float64)
    x = np.concatenate([x, np.ones((len(x), 1))], axis=1)
    weights = np.concatenate([head["kernel"], head["bias"][None]]).astype(np.float64)
    z = np.exp(x @ weights)
    dz = z / z.sum(1, keepdims=True) - np.eye(3)[batch["label"]]
    return np.einsum("bi,bj->bij", x, dz)


def test_the_clipped_sum_equals_a_float64_computation():
    batch = batch_of()
    each = each_gradient(batch)
    norms = np.sqrt((each**2).sum((1, 2)))
    assert norms.min() < 1.2 < norms.max()  # some are clipped, some are not
    factors = np.minimum(1, 1.2 / norms) * batch["mask"]
    expected = np.einsum("b,bij->ij", factors, each)
    sums = sums_of(batch, clip=1.2)
    found = np.concatenate([sums.gradients["head"]["kernel"], sums.gradients["head"]["bias"][None]])
    np.testing.assert_allclose(found, expected, rtol=2e-5, atol=2e-6)
    clipped, rows = sums.pairs["clipped"]
    assert (clipped, rows) == (np.sum((norms > 1.2) * batch["mask"]), 5)


def test_one_example_moves_the_sum_by_no_more_than_the_clip():
    batch = batch_of()
    whole = sums_of(batch).gradients
    for row in range(6):
        without = {**batch, "mask": batch["mask"] * (np.arange(6) != row)}
        moved = jax.tree.map(jnp.subtract, whole, sums_of(without).gradients)
        assert math.sqrt(sum(jnp.sum(x**2) for x in jax.tree.leaves(moved))) <= 0.7 + 1e-5


def test_an_example_that_is_not_finite_counts_as_nothing():
    batch = batch_of()
    bad = {**batch, "image": batch["image"].copy()}
    bad["image"][4] = np.nan
    without = {**batch, "mask": batch["mask"] * (np.arange(6) != 4)}
    expected = sums_of(without).gradients
    jax.tree.map(np.testing.assert_array_equal, sums_of(bad).gradients, expected)


def test_noise_has_the_deviation_that_was_asked_for():
    zeros = {"a": jnp.zeros((300, 200)), "b": jnp.zeros(40_000)}
    noisy = METHOD.finish(Sums(zeros, {}, {}), scope_of(clip=0.5, noise=3.0))
    for leaf in noisy.values():
        assert kstest(np.asarray(leaf).ravel(), norm(0, 3.0 * 0.5 / 4).cdf).pvalue > 1e-3
    assert not np.array_equal(noisy["a"].ravel()[:99], noisy["b"][:99])
    other = METHOD.finish(Sums(zeros, {}, {}), scope_of(clip=0.5, noise=3.0, seed=1))
    assert abs(np.corrcoef(noisy["b"], other["b"])[0, 1]) < 0.02


def test_the_divisor_is_the_lot_meant_not_the_one_drawn():
    sums = sums_of(batch_of())
    found = METHOD.finish(sums, scope_of(noise=0.0))
    expected = jax.tree.map(lambda g: g / 4, sums.gradients)
    jax.tree.map(np.testing.assert_allclose, found, expected)


def test_each_example_is_drawn_by_itself_with_the_same_probability():
    source, steps = Examples(200), np.arange(4000)
    ids, epochs, mask = METHOD.order(source, 3, 30, 4000)(steps)
    drawn = np.zeros((4000, 200))
    for step in steps:
        chosen = ids[step][mask[step] > 0]
        assert len(set(chosen)) == len(chosen)
        drawn[step, chosen] = 1
    sizes = drawn.sum(1)
    assert sizes.mean() == pytest.approx(4, abs=0.1)
    assert sizes.var() == pytest.approx(binom(200, 0.02).var(), rel=0.08)
    counts = drawn.sum(0)  # each example: Binomial(4000, 0.02)
    assert counts.min() > 80 - 5 * 9 and counts.max() < 80 + 5 * 9
    pairs = np.corrcoef(drawn[:, :20].T)[~np.eye(20, dtype=bool)]
    assert np.abs(pairs).max() < 6 / math.sqrt(4000)
    assert np.array_equal(epochs, np.broadcast_to(steps[:, None], (4000, 30)))


def test_the_draw_of_a_step_depends_on_seed_and_step_alone():
    order = METHOD.order(Examples(200), 3, 30, 4000)
    ids, _, mask = order(np.arange(100, 110))
    again, _, same = METHOD.order(Examples(200), 3, 30, 4000)(np.array([105]))
    assert np.array_equal(ids[5], again[0]) and np.array_equal(mask[5], same[0])
    other, _, _ = METHOD.order(Examples(200), 4, 30, 4000)(np.array([105]))
    assert not np.array_equal(other, again)
    assert kstest(uniforms(5, np.arange(20_000)), "uniform").pvalue > 1e-3


def test_a_draw_above_the_capacity_is_refused_at_the_start():
    most = lot_sizes(0, np.arange(500), 4, 200).max()
    METHOD.order(Examples(200), 0, most, 500)
    with pytest.raises(UserError, match=rf"largest of this run's lots \(mean 4\), {most} examples"):
        METHOD.order(Examples(200), 0, most - 1, 500)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(model=dict(type="mlp", widths=(8,), outputs=10, batch_norm=True)), "BatchNorm"),
        (
            dict(
                data=dict(
                    source=dict(type="tfds", name="digits"),
                    splits=dict(train="train", test="test"),
                    augment=(dict(type="mixup", alpha=0.2, num_classes=10),),
                )
            ),
            "Mixup mixes examples",
        ),
        (dict(precision=dict(policy="float16")), "float16"),
        (dict(method=dict(type="dp_sgd", lot=1001)), "1001 is more than the 1000 examples"),
    ],
)
def test_what_it_cannot_keep_is_refused_by_name(changes, message, tmp_path):
    from bigjax.build.assemble import assemble

    config = small(**{"method": dict(type="dp_sgd", lot=20), **changes})
    with pytest.raises(UserError, match=message):
        assemble(config, tmp_path)


@pytest.mark.slow
def test_the_noise_is_the_same_on_any_mesh_and_for_any_number_of_microbatches():
    one, state = steps_of(setup_of("dp_sgd", mesh=dict(data=1), devices=1), 3)
    for overrides, mesh, devices in (
        (("train.accumulate=4",), dict(data=1), 1),
        ((), dict(data=8), 8),
        (("sharding.mode=shard_map", "sharding.rules=(('.*', 'replicate'),)"), dict(data=8), 8),
    ):
        losses, other = steps_of(setup_of("dp_sgd", *overrides, mesh=mesh, devices=devices), 3)
        np.testing.assert_allclose(losses, one, rtol=1e-5)
        for x, y in zip(jax.tree.leaves(other.params), jax.tree.leaves(state.params), strict=True):
            np.testing.assert_allclose(x, y, atol=1e-5)


def moments_epsilon(rate, noise, steps, delta):
    """Moments accountant: log moments at whole orders (Mironov et al. 2019, eq. 3), and the
    conversion of Abadi et al. 2016, theorem 2.2."""
    best = np.inf
    for order in range(2, 64):
        k = np.arange(order + 1)
        log_binomial = gammaln(order + 1) - gammaln(k + 1) - gammaln(order - k + 1)
        terms = log_binomial + k * np.log(rate) + (order - k) * np.log1p(-rate)
        moment = logsumexp(terms + (k * k - k) / (2 * noise**2))
        best = min(best, (steps * moment + np.log(1 / delta)) / (order - 1))
    return best


def test_epsilon_is_that_of_dp_accounting_and_below_the_published_one():
    dp = pytest.importorskip("dp_accounting")
    from dp_accounting import pld

    event = dp.PoissonSampledDpEvent(0.01, dp.GaussianDpEvent(4.0))
    accountant = pld.PLDAccountant().compose(dp.SelfComposedDpEvent(event, 10_000))
    found = epsilon(0.01, 4.0, 10_000, 1e-5)
    assert found == pytest.approx(accountant.get_epsilon(1e-5), rel=1e-9)
    # Abadi et al. 2016, section 4: q = 0.01, sigma = 4, T = 10,000, delta = 1e-5: epsilon 1.26.
    published = moments_epsilon(0.01, 4.0, 10_000, 1e-5)
    assert published == pytest.approx(1.26, abs=0.01)
    assert 0.7 * published < found < published


def test_epsilon_grows_with_the_steps_and_is_infinite_without_noise():
    found = [epsilon(0.02, 1.1, steps, 1e-5) for steps in (1, 10, 100)]
    assert found == sorted(found) and found[0] > 0
    assert epsilon(0.02, 0.0, 1, 1e-5) == math.inf
