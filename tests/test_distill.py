"""Distillation against Hinton et al. 2015, derived by hand in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bigjax.core.optimizers import OptimizerSettings, build
from bigjax.core.state import init_state
from bigjax.methods.distill import build_distill_step, distillation
from bigjax.models.mlp import MLP
from bigjax.tasks.classification import Classification
from tests.test_steps import BATCH, CLASSES, FEATURES, batch_of

TEACHER = MLP(widths=(9,), outputs=CLASSES)
STUDENT = MLP(widths=(), outputs=CLASSES)


def variables(model, seed):
    return model.init(jax.random.key(seed), jnp.zeros((1, FEATURES)), train=False)


def loss_of(student, frozen, temperature, alpha, *, model=STUDENT, teacher=TEACHER):
    hyper = {"distill.temperature": jnp.float32(temperature), "distill.alpha": jnp.float32(alpha)}
    return distillation(model, Classification(), teacher)(
        student, batch_of(ragged=True), rng=None, state={}, frozen=frozen, hyper=hyper, train=False
    )


def softmax(x):
    e = np.exp(x - x.max(1, keepdims=True))
    return e / e.sum(1, keepdims=True)


@pytest.mark.parametrize(
    ("temperature", "alpha"), [(1.0, 0.5), (2.0, 0.9), (8.0, 1.0), (20.0, 0.3)]
)
def test_gradient_equals_the_float64_derivation(temperature, alpha):
    student, teacher = variables(STUDENT, 1)["params"], variables(TEACHER, 2)
    batch = batch_of(ragged=True)
    grads = jax.grad(lambda p: loss_of(p, teacher, temperature, alpha).sum)(student)

    x, mask = batch["image"].astype(np.float64), batch["mask"].astype(np.float64)[:, None]
    w = np.asarray(student["head"]["kernel"], np.float64)
    z = x @ w + np.asarray(student["head"]["bias"], np.float64)
    v = np.asarray(TEACHER.apply(teacher, batch["image"], train=False), np.float64)
    hard = softmax(z) - np.eye(CLASSES)[batch["label"]]
    # d/dz T^2 KL(softmax(v/T) || softmax(z/T)) = T (softmax(z/T) - softmax(v/T)), their eq. 2.
    soft = temperature * (softmax(z / temperature) - softmax(v / temperature))
    dz = mask * ((1 - alpha) * hard + alpha * soft)
    np.testing.assert_allclose(grads["head"]["kernel"], x.T @ dz, rtol=2e-5, atol=2e-5)
    np.testing.assert_allclose(grads["head"]["bias"], dz.sum(0), rtol=2e-5, atol=2e-5)


def test_self_distillation_has_no_divergence_and_no_gradient():
    teacher = variables(TEACHER, 2)
    loss = lambda p: loss_of(p, teacher, 3.0, 1.0, model=TEACHER).sum  # noqa: E731
    value, grads = jax.value_and_grad(loss)(teacher["params"])
    assert abs(value) < 1e-6
    assert all(np.abs(g).max() < 1e-6 for g in jax.tree.leaves(grads))


def test_teacher_gets_no_gradient():
    student, teacher = variables(STUDENT, 1)["params"], variables(TEACHER, 2)
    grads = jax.grad(lambda t: loss_of(student, t, 2.0, 0.5).sum)(teacher)
    assert all(not np.any(g) for g in jax.tree.leaves(grads))


def test_alpha_zero_is_training_on_labels_alone():
    student, teacher = variables(STUDENT, 1)["params"], variables(TEACHER, 2)
    (expected, weight), _ = Classification().loss(
        STUDENT.apply({"params": student}, batch_of()["image"], train=False), batch_of(ragged=True)
    )
    loss = loss_of(student, teacher, 4.0, 0.0)
    np.testing.assert_allclose(loss.sum, expected, rtol=1e-6)
    assert loss.weight == weight == BATCH - 5


def test_distill_step_leaves_the_teacher_out_of_the_state():
    optimizer = build(OptimizerSettings(learning_rate=0.1), "adam", {}, 10)
    hyper = {name: jnp.float32(v) for name, v in optimizer.hyper().items()}
    hyper |= {"distill.temperature": jnp.float32(2.0), "distill.alpha": jnp.float32(0.5)}
    state = init_state(
        variables(STUDENT, 1),
        optimizer,
        rng=jax.random.key_data(jax.random.key(0)),
        hyper=hyper,
        ema=False,
    )
    teacher = variables(TEACHER, 2)
    step = jax.jit(build_distill_step(STUDENT, Classification(), TEACHER, optimizer))
    after, metrics = step(state, batch_of(), teacher)
    teacher_sizes = {leaf.size for leaf in jax.tree.leaves(teacher)} - {CLASSES}
    assert not teacher_sizes & {leaf.size for leaf in jax.tree.leaves(after)}
    assert {"loss", "label_loss", "teacher_kl", "accuracy"} <= metrics.keys()
    for _ in range(50):
        after, last = step(after, batch_of(), teacher)
    assert last["teacher_kl"][0] < metrics["teacher_kl"][0]
