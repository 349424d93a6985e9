"""A student taught by its own moving average, with centring; and through heads of its own."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import log_softmax, softmax

from bigjax.build.assemble import assemble
from bigjax.core.errors import UserError
from bigjax.core.losses import kl_divergence
from bigjax.core.method import Reference, Scope
from bigjax.methods.distill import losses, objectives
from bigjax.methods.distill.method import Distill
from bigjax.models.mlp import MLP
from bigjax.models.vit import ViT
from bigjax.tasks.classification import Classification
from tests.contracts.runs import steps_of
from tests.small import small

RNG = np.random.default_rng(9)
B, K = 6, 5
MASK = np.array([1, 1, 0, 1, 1, 0], np.float32)
REAL = np.flatnonzero(MASK)
MODEL = MLP(widths=(), outputs=K)
BATCH = {
    "image": RNG.normal(size=(B, 4, 4, 1)).astype(np.float32),
    "pixels": RNG.normal(size=(B, 4)).astype(np.float32),
    "label": np.arange(B) % K,
    "mask": MASK,
}
TASK = Classification(input="pixels")
INIT = jax.jit(lambda key: MODEL.init(key, BATCH["pixels"], train=False)["params"])
OWN, AVERAGED, OTHER = (INIT(jax.random.key(i)) for i in range(3))


def scope_of(**changes):
    given = dict(
        model=MODEL, task=TASK, rng=jax.random.key(0), step=jnp.int32(0), collections={}, ema=AVERAGED,
        memory=None, frozen={}, hyper={"alpha": 1.0, "temperature": 2.0}, total_steps=10,
    )  # fmt: skip
    return Scope(**{**given, **changes})


def outputs(params):
    return np.asarray(MODEL.apply({"params": params}, BATCH["pixels"], train=False), np.float64)


def test_a_teacher_that_is_the_students_own_average():
    method = Distill(alpha=1.0, objectives={"own": objectives.Soft(teacher="ema", weight=0.5)})

    @jax.jit
    def loss(params, ema):
        return method.loss(params, BATCH, scope_of(ema=ema)).sum

    expected = 0.5 * 4 * kl_divergence(outputs(AVERAGED), outputs(OWN), MASK, 2.0)[0]
    np.testing.assert_allclose(loss(OWN, AVERAGED), expected, rtol=1e-5)
    assert abs(loss(OWN, OWN)) <= 1e-6
    gradients = jax.grad(loss, argnums=(0, 1))(OWN, AVERAGED)
    assert any(np.any(leaf) for leaf in jax.tree.leaves(gradients[0]))
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(gradients[1]))


def test_it_needs_an_average_and_its_name_is_taken():
    method = dict(type="distill", objectives=dict(own=dict(type="soft", teacher="ema")))
    with pytest.raises(
        UserError, match=r"objectives.own: the teacher 'ema' is kept by config.train"
    ):
        assemble(small(method=method), "x")
    with pytest.raises(UserError, match=r"teachers.ema: no teacher can be called so"):
        Distill(teachers={"ema": "../a"})


def test_centring_and_sharpening():
    t, s, centre = outputs(AVERAGED), outputs(OWN), RNG.normal(size=K)
    p, q = softmax((t - centre)[REAL] / 0.04, axis=1), log_softmax(s[REAL] / 0.1, axis=1)
    found = losses.centred(*(jnp.asarray(x, jnp.float32) for x in (t, s)), MASK, centre, 0.04, 0.1)
    np.testing.assert_allclose(found, (-(p * q).sum(), 4), rtol=1e-4)


def test_the_centre_moves_by_the_mean_of_whole_batches():
    """Two steps, the second in two microbatches, by hand in float64."""
    dino = objectives.Dino(teacher="ema", outputs=K, momentum=0.8)
    method = Distill(alpha=1.0, objectives={"own": dino})
    memory, centre = method.init(None, None, B), np.zeros(K)
    for parts in ([slice(0, B)], [slice(0, 2), slice(2, B)]):
        _, memory = method.prepare(OWN, BATCH, scope_of(memory=memory))
        np.testing.assert_allclose(memory["own"]["centre"], centre, rtol=1e-5, atol=1e-6)
        for rows in parts:
            part = {name: x[rows] for name, x in BATCH.items()}
            memory = method.loss(OWN, part, scope_of(memory=memory)).memory
        centre = 0.8 * centre + 0.2 * outputs(AVERAGED)[REAL].mean(0)
    _, memory = method.prepare(OWN, BATCH, scope_of(memory=memory))
    np.testing.assert_allclose(memory["own"]["centre"], centre, rtol=1e-5, atol=1e-6)


def test_a_batch_of_padding_moves_no_centre():
    dino = objectives.Dino(outputs=K)
    full = {"centre": jnp.ones(K), "sum": jnp.ones(K), "weight": jnp.float32(2.0)}
    np.testing.assert_allclose(dino.turned(full)["centre"], 0.9 + 0.1 * 0.5)
    empty = {**full, "sum": jnp.zeros(K), "weight": jnp.float32(0.0)}
    np.testing.assert_array_equal(dino.turned(empty)["centre"], full["centre"])


def test_deit_the_teachers_class_goes_to_the_second_head():
    """CE(head, label) / 2 + CE(distillation_head, the teacher's class) / 2 (Touvron et al. 2021, eq. 3)."""
    student = ViT(outputs=K, image=4, patch=2, layers=1, width=8, heads=2, distillation=True)
    images = BATCH["image"]
    made = jax.jit(lambda key: student.init(key, images, train=False))(jax.random.key(0))
    params = nn.unbox(made)["params"]
    params = {**params, "head": {**params["head"], "bias": jnp.arange(K) / 3.0}}
    halves = {
        "labels": objectives.Labels(weight=0.5, student_output="head"),
        "teacher": objectives.Hard(weight=0.5, student_output="distillation_head"),
    }
    method = Distill("../teacher", alpha=1.0, objectives=halves)
    scope = scope_of(
        model=student,
        task=Classification(),
        frozen={"teacher": {"params": OTHER}},
        references={"teacher": Reference(MODEL, TASK, ())},
    )
    found = jax.jit(lambda params: method.loss(params, BATCH, scope))(params)
    see_all = dict(train=False, capture_intermediates=True)
    _, kept = jax.jit(lambda p: student.apply({"params": p}, images, **see_all))(params)
    first, second = (
        np.asarray(kept["intermediates"][name]["__call__"][0], np.float64)
        for name in ("head", "distillation_head")
    )
    expected = [
        -log_softmax(logits, axis=1)[np.arange(B), classes][REAL].sum()
        for logits, classes in ((first, BATCH["label"]), (second, outputs(OTHER).argmax(1)))
    ]
    np.testing.assert_allclose(found.metrics["objectives/labels"][0], expected[0], rtol=1e-5)
    np.testing.assert_allclose(found.metrics["objectives/teacher"][0], expected[1], rtol=1e-5)
    np.testing.assert_allclose(found.sum, sum(expected) / 2, rtol=1e-5)


def test_an_output_that_is_not_there_is_refused():
    objective = dict(own=dict(type="soft", teacher="ema", student_output="heda"))
    config = small(
        train=dict(steps=3, batch_size=40, ema_decay=0.9),
        method=dict(type="distill", objectives=objective),
    )
    with pytest.raises(UserError, match=r"student_output: no module 'heda' \(did you mean 'head'"):
        assemble(config, "x")


@pytest.mark.slow
def test_a_whole_run_is_taught_by_its_own_average(tmp_path):
    own = dict(
        soft=dict(type="soft", teacher="ema"),
        dino=dict(type="dino", teacher="ema", outputs=10),
    )
    method = dict(type="distill", alpha=0.5, objectives=own)
    setup = assemble(
        small(train=dict(steps=3, batch_size=40, ema_decay=0.5), method=method), tmp_path
    )
    found, state = steps_of(setup, 3)
    assert np.isfinite(found).all()
    assert np.abs(state.memory["dino"]["centre"]).max() > 0
    assert state.memory["dino"]["weight"] == 40
