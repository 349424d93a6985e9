"""Distillation against Hinton et al. 2015, derived by hand in float64, and every task's divergence."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bigjax.core import steps
from bigjax.core.errors import UserError
from bigjax.core.method import Reference, Scope
from bigjax.core.optimizers import OptimizerSettings, build
from bigjax.core.state import init_state
from bigjax.methods.distill.method import Distill
from bigjax.models.mlp import MLP
from bigjax.tasks.base import Task
from bigjax.tasks.binary import Binary
from bigjax.tasks.classification import Classification
from bigjax.tasks.contrastive import Contrastive
from bigjax.tasks.language_model import LanguageModel
from bigjax.tasks.masked_lm import MaskedLM
from bigjax.tasks.multilabel import MultiLabel
from bigjax.tasks.regression import Regression
from bigjax.tasks.seq2seq import Seq2Seq
from bigjax.tasks.token_tagging import TokenTagging
from tests.test_steps import BATCH, CLASSES, FEATURES, batch_of

TEACHER = MLP(widths=(9,), outputs=CLASSES)
STUDENT = MLP(widths=(), outputs=CLASSES)
DISTILL = Distill("../teacher")


def variables(model, seed):
    init = jax.jit(functools.partial(model.init, train=False))
    return init(jax.random.key(seed), jnp.zeros((1, FEATURES)))


def loss_of(student, frozen, temperature, alpha, *, model=STUDENT, teacher=TEACHER):
    scope = Scope(
        model=model,
        task=Classification(),
        rng=jax.random.key(0),
        step=jnp.int32(0),
        collections={},
        ema=None,
        memory=None,
        frozen={"teacher": frozen},
        hyper={"temperature": jnp.float32(temperature), "alpha": jnp.float32(alpha)},
        references={"teacher": Reference(teacher, Classification(), ())},
    )
    return DISTILL.loss(student, batch_of(ragged=True), scope)


def softmax(x):
    e = np.exp(x - x.max(1, keepdims=True))
    return e / e.sum(1, keepdims=True)


@pytest.mark.parametrize(
    ("temperature", "alpha"), [(1.0, 0.5), (2.0, 0.9), (8.0, 1.0), (20.0, 0.3)]
)
def test_gradient_equals_the_float64_derivation(temperature, alpha):
    student, teacher = variables(STUDENT, 1)["params"], variables(TEACHER, 2)
    batch = batch_of(ragged=True)
    grads = jax.jit(jax.grad(lambda p: loss_of(p, teacher, temperature, alpha).sum))(student)

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
        variables(STUDENT, 1)["params"],
        {},
        optimizer,
        rng=jax.random.key_data(jax.random.key(0)),
        hyper=hyper,
        ema=False,
    )
    frozen = {"teacher": variables(TEACHER, 2)}
    recipe = steps.Recipe(
        method=DISTILL,
        model=STUDENT,
        task=Classification(),
        optimizer=optimizer,
        references={"teacher": Reference(TEACHER, Classification(), ())},
        hyper={"temperature": "distill.temperature", "alpha": "distill.alpha"},
    )
    step = jax.jit(steps.build_train_step(recipe))
    after, metrics = step(state, batch_of(), frozen)
    teacher_sizes = {leaf.size for leaf in jax.tree.leaves(frozen)} - {CLASSES}
    assert not teacher_sizes & {leaf.size for leaf in jax.tree.leaves(after)}
    assert {"loss", "label_loss", "teacher_kl", "accuracy"} <= metrics.keys()
    for _ in range(50):
        after, last = step(after, batch_of(), frozen)
    assert last["teacher_kl"][0] < metrics["teacher_kl"][0]


# Every task's divergence, against float64 by hand; T = 2.

RNG = np.random.default_rng(0)
T = 2.0
MASK = np.array([1, 0, 1, 1], np.float32)
SEGMENTS = np.array([[1, 1, 1, 2, 2], [1] * 5, [1, 1, 0, 0, 0], [1] * 5])


def categorical_kl(t, s):
    p, q = softmax(t.reshape(-1, t.shape[-1]) / T), softmax(s.reshape(-1, s.shape[-1]) / T)
    return (p * np.log(p / q)).sum(1).reshape(t.shape[:-1])


def bernoulli_kl(t, s):
    p, q = (1 / (1 + np.exp(-x / T)) for x in (t, s))
    return p * np.log(p / q) + (1 - p) * np.log((1 - p) / (1 - q))


def logits(*shape):
    return RNG.normal(size=shape), RNG.normal(size=shape)


def check(task, teacher, student, batch, expected, weight):
    batch = {**batch, "mask": jnp.asarray(MASK)}
    t, s = (jnp.asarray(x, jnp.float32) for x in (teacher, student))
    np.testing.assert_allclose(task.divergence(t, s, batch, T), (expected, weight), rtol=5e-6)
    assert abs(task.divergence(t, t, batch, T)[0]) < 1e-6


def test_divergence_of_classes():
    t, s = logits(4, 3)
    check(Classification(), t, s, {}, (MASK * categorical_kl(t, s)).sum(), 3)


def test_divergence_of_one_sigmoid_is_that_of_bernoulli():
    t, s = logits(4, 1)
    check(Binary(), t, s, {}, (MASK * bernoulli_kl(t, s)[:, 0]).sum(), 3)


def test_divergence_of_labels_is_their_sum():
    t, s = logits(4, 3)
    check(MultiLabel(), t, s, {}, (MASK * bernoulli_kl(t, s).sum(1)).sum(), 3)
    t, s = np.full((4, 3), 5.0, np.float32), np.full((4, 3), -5.0, np.float32)
    total, weight = MultiLabel().divergence(t, s, {"mask": MASK}, 1.0)
    assert total / weight == pytest.approx(14.80, abs=0.005)


def test_divergence_of_values_is_their_squared_distance():
    t, s = logits(4, 2)
    check(Regression(), t, s, {}, (MASK * (((t - s) / T) ** 2).mean(1)).sum(), 3)


def test_divergence_of_a_language_model_is_over_the_tokens_that_its_loss_counts():
    t, s = logits(4, 5, 7)
    tokens, segments = jnp.asarray(RNG.integers(0, 7, (4, 5))), jnp.asarray(SEGMENTS)
    counts = np.zeros((4, 5))
    for row in range(4):
        for place in range(4):
            same = SEGMENTS[row, place] == SEGMENTS[row, place + 1] > 0
            counts[row, place] = same * MASK[row]
    expected = (counts * categorical_kl(t, s)).sum()
    batch = {"tokens": tokens, "segments": segments}
    check(LanguageModel(input=("tokens", "segments")), t, s, batch, expected, counts.sum())
    batch = {"source": tokens, "source_segments": segments}
    batch |= {"target": tokens, "target_segments": segments}
    check(Seq2Seq(), t, s, batch, expected, counts.sum())


@pytest.mark.parametrize("task", [MaskedLM(), TokenTagging()])
def test_divergence_at_labelled_tokens(task):
    t, s = logits(4, 5, 7)
    labels = np.where(RNG.random((4, 5)) < 0.5, RNG.integers(0, 7, (4, 5)), -100)
    counts = (labels >= 0) * MASK[:, None]
    batch = {"labels": jnp.asarray(labels)}
    check(task, t, s, batch, (counts * categorical_kl(t, s)).sum(), counts.sum())


def test_divergence_of_embeddings_is_that_of_their_similarities():
    t, s = logits(8, 3)
    unit = [x / np.linalg.norm(x, axis=1, keepdims=True) for x in (t, s)]
    rows = [np.where(MASK > 0, x[0::2] @ x[1::2].T / (0.05 * T), -1e9) for x in unit]
    p, q = (np.maximum(softmax(x), 1e-300) for x in rows)
    kl = (p * (np.log(p) - np.log(q)) * (p > 1e-200)).sum(1)
    t, s = (jnp.asarray(x, jnp.float32) for x in (t, s))
    found = Contrastive().divergence(t, s, {"mask": jnp.asarray(MASK)}, T)
    np.testing.assert_allclose(found, ((MASK * kl).sum(), 3), rtol=1e-4)


def test_a_task_without_a_divergence_is_refused_by_name():
    class Own(Task):
        pass

    with pytest.raises(UserError, match="Own has no divergence"):
        Own().check_divergence()
