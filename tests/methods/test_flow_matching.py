"""Flow matching: its targets by hand, guidance, the sampler against a flow that is known, refusals."""

import base64

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from bigjax.core.errors import UserError
from bigjax.loop.train import train
from bigjax.methods.flow_matching import UNCONDITIONAL, FlowMatching, guided, sample
from bigjax.models.dit import DiT
from tests.contracts.methods import METHODS
from tests.small import small

RNG = np.random.default_rng(0)


def tiny(*overrides, **changes):
    return small(*overrides, **{**METHODS["flow_matching"], **changes})


def batch_of(rows):
    return {
        "image": RNG.standard_normal((rows, 3, 3, 1)).astype(np.float32),
        "label": np.arange(rows, dtype=np.int32) % 4,
        "mask": np.ones(rows, np.float32),
        "sample": np.arange(rows, dtype=np.int32),
        "epoch": np.zeros(rows, np.int32),
    }


def test_position_and_velocity_lie_on_the_line_from_noise_to_the_example():
    batch = batch_of(2000)
    found = jax.jit(FlowMatching().view)(batch, jax.random.key(0))
    t = found["time"][:, None, None, None]
    np.testing.assert_array_equal(found["condition"], batch["label"])
    # x_1 = x_t + (1 - t) v, and x_0 = x_t - t v is standard normal, t uniform.
    x_1 = found["position"] + (1 - t) * found["velocity"]
    np.testing.assert_allclose(x_1, batch["image"], atol=1e-5)
    x_0 = np.asarray(found["position"] - t * found["velocity"])
    assert abs(x_0.mean()) < 0.03 and abs(x_0.std() - 1) < 0.02
    np.testing.assert_allclose(
        np.quantile(found["time"], [0.25, 0.5, 0.75]), [0.25, 0.5, 0.75], atol=0.05
    )


def test_what_is_drawn_for_an_example_depends_on_no_neighbour():
    batch, order = batch_of(8), np.array([5, 2, 7])
    method, key = FlowMatching(), jax.random.key(1)
    view = jax.jit(method.view)
    whole = view(batch, key)
    part = view({name: x[order] for name, x in batch.items()}, key)
    for name in ("position", "time", "condition", "velocity"):
        np.testing.assert_array_equal(part[name], np.asarray(whole[name])[order])


def test_labels_are_dropped_as_often_as_asked():
    batch = batch_of(4000)
    drawn = jax.jit(lambda batch, key: FlowMatching()._on_the_way(batch, key, 0.3)["condition"])
    found = drawn(batch, jax.random.key(2))
    dropped = np.asarray(found) == UNCONDITIONAL
    assert abs(dropped.mean() - 0.3) < 0.03
    np.testing.assert_array_equal(found[~dropped], batch["label"][~dropped])
    unlabelled = jax.jit(FlowMatching(label=None).view)(batch, jax.random.key(2))["condition"]
    assert np.all(unlabelled == UNCONDITIONAL)


def test_guidance_goes_beyond_the_conditional_velocity_by_hand():
    def velocity(x, t, labels):
        return x * t[:, None] + labels[:, None]

    x, t, labels = jnp.ones((3, 2)), jnp.array([0.0, 0.5, 1.0]), jnp.array([0, 1, 2])
    found = guided(velocity, 2.0)(x, t, labels)
    # 3 (t + y) - 2 (t - 1)
    np.testing.assert_allclose(found[:, 0], [2.0, 5.5, 9.0])
    assert guided(velocity, 0.0) is velocity


def test_the_sampler_reaches_the_distribution_of_a_flow_that_is_known():
    """For data N(m, s^2) the velocity is E[x_1 - x_0 | x_t], linear in x_t: the map is m + s x_0."""
    mean, deviation = 2.0, 0.5

    def velocity(x, t, labels):
        t = t[:, None]
        variance = (1 - t) ** 2 + (t * deviation) ** 2
        slope = (t * deviation**2 - (1 - t)) / variance
        return mean + slope * (x - t * mean)

    noise = jnp.linspace(-2, 2, 9)[:, None]
    labels = jnp.zeros(9, jnp.int32)
    errors = []
    for steps in (10, 20, 40):
        found = sample(velocity, noise, labels, steps)
        errors.append(float(jnp.abs(found - (mean + deviation * noise)).max()))
    assert errors[-1] < 2e-3
    assert errors[0] / errors[1] > 3 and errors[1] / errors[2] > 3  # of second order


def test_a_model_that_has_learned_nothing_stands_still():
    model = DiT(image=8, patch=4, classes=3, layers=2, width=8, heads=2)
    x, t, y = jnp.ones((2, 8, 8, 1)), jnp.array([0.1, 0.9]), jnp.array([UNCONDITIONAL, 2])
    variables = model.init(jax.random.key(0), x, t, y, train=False)
    np.testing.assert_array_equal(model.apply(variables, x, t, y, train=False), jnp.zeros_like(x))


def moved(tree):
    """Parameters away from the zeros that they start from."""
    keys = iter(jax.random.split(jax.random.key(5), 100))
    return jax.tree.map(lambda p: p + 0.3 * jax.random.normal(next(keys), p.shape), tree)


@pytest.mark.slow
def test_the_model_tells_places_times_and_classes_apart():
    model = DiT(image=8, patch=4, classes=3, layers=1, width=8, heads=2)
    x = jnp.asarray(RNG.standard_normal((1, 8, 8, 2)), jnp.float32)
    t, y = jnp.array([0.3]), jnp.array([1])
    params = moved(model.init(jax.random.key(0), x, t, y, train=False))

    def apply(x, t, y):
        return model.apply(params, x, t, y, train=False)

    first = apply(x, t, y)
    assert first.shape == x.shape
    for other in (apply(x, t + 0.01, y), apply(x, t, y + 1), apply(x, t, jnp.array([-1]))):
        assert np.abs(other - first).max() > 1e-4
    # A class that the model does not know is a number that the guard sees.
    assert np.isnan(apply(x, t, jnp.array([3]))).all()
    # A patch's output lies where the patch does: the head's bias, one value a pixel of the patch.
    marked = jax.tree.map(jnp.zeros_like, params)
    marked["params"]["head"]["bias"] = jnp.arange(32.0)
    out = model.apply(marked, x, t, y, train=False)
    np.testing.assert_array_equal(out[0, :4, :4].reshape(-1), np.arange(32.0))
    np.testing.assert_array_equal(out[0, 4:, :4], out[0, :4, 4:])


@pytest.mark.slow
def test_samples_are_drawn_judged_and_written(tmp_path):
    """On digits, with a classifier beside the flow; the grid has a row a class."""
    classifier = small("train.steps=60", "mesh.data=1", "mesh.fsdp=8")
    train(classifier, tmp_path / "classifier")
    evaluators = dict(
        drawn=dict(type="samples", classifier="../classifier", per_class=3, steps=2, every=6)
    )
    evaluators["drawn"] |= dict(guidance=0.5, white=16.0)
    config = tiny("train.ema_decay=0.9", evaluators=evaluators)
    assert config.references == {"evaluators.drawn.classifier": "../classifier"}
    result = train(config, tmp_path / "flow")
    accuracy = result["metrics"]["eval/drawn/accuracy"]
    assert accuracy == pytest.approx(np.mean(result["metrics"]["eval/drawn/accuracy_per_class"]))
    assert 0 <= accuracy <= 1 and result["metrics"]["eval/drawn/deviation"] > 0
    for step in (6, 12):
        with Image.open(tmp_path / "flow" / "samples" / "drawn" / f"{step}.png") as picture:
            assert picture.size == (3 * 8 + 2 * 2, 10 * 8 + 9 * 2)
    page = (tmp_path / "flow" / "report.html").read_text()
    assert (
        "drawn" in page
        and base64.b64encode(
            (tmp_path / "flow" / "samples" / "drawn" / "12.png").read_bytes()
        ).decode()
        in page
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            dict(method=dict(type="flow_matching", input="picture")),
            "config.method.input: .*picture",
        ),
        (dict(method=dict(type="flow_matching", label="labels")), "did you mean 'label'"),
        (
            dict(
                method=dict(type="flow_matching", label_dropout=0.0),
                evaluators=dict(drawn=dict(type="samples")),
            ),
            "config.evaluators.drawn: guidance needs a model",
        ),
        (
            dict(evaluators=dict(drawn=dict(type="samples", classifier="../nobody"))),
            "config.evaluators.drawn: classifier: .*holds no run",
        ),
        (
            dict(evaluators=dict(played=dict(type="episodes"))),
            "config.evaluators.played: episodes need an environment",
        ),
    ],
)
def test_what_does_not_go_together_is_refused_by_name(changes, message, tmp_path):
    with pytest.raises(UserError, match=message):
        train(tiny(**changes), tmp_path / "run")
    assert not (tmp_path / "run").exists()
