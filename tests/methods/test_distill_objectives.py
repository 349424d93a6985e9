"""Every objective of distillation against its definition in float64, by other libraries or by hand."""

import dataclasses
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.spatial.distance import jensenshannon
from scipy.special import softmax
from scipy.stats import entropy, pearsonr

from bigjax.core import schedules
from bigjax.core.errors import UserError
from bigjax.core.losses import kl_divergence
from bigjax.core.method import Facts, Reference, Scope
from bigjax.methods.distill import losses, objectives
from bigjax.methods.distill.method import Distill
from bigjax.models.mlp import MLP
from bigjax.tasks.classification import Classification
from bigjax.tasks.contrastive import Contrastive
from bigjax.tasks.multilabel import MultiLabel
from bigjax.tasks.regression import Regression

RNG = np.random.default_rng(3)
B, K, T = 6, 5, 3.0
TEACHER, STUDENT = (2 * RNG.normal(size=(B, K)).astype(np.float32) for _ in range(2))
MASK = np.array([1, 1, 0, 1, 1, 0], np.float32)
REAL = np.flatnonzero(MASK)
LABELS = np.array([0, 3, 2, 4, 1, 0])
P, Q = (softmax(x[REAL].astype(np.float64) / T, axis=1) for x in (TEACHER, STUDENT))


def check(pair, expected, rtol=2e-6):
    np.testing.assert_allclose(pair, (expected, len(REAL)), rtol=rtol)


@pytest.mark.parametrize("beta", [0.1, 0.5, 0.8])
def test_jensen_shannon(beta):
    found = losses.jensen_shannon(TEACHER, STUDENT, MASK, T, beta)
    M = beta * P + (1 - beta) * Q
    check(found, sum(beta * entropy(P, M, axis=1) + (1 - beta) * entropy(Q, M, axis=1)))
    if beta == 0.5:
        check(found, (jensenshannon(P, Q, axis=1) ** 2).sum())


def test_jensen_shannon_is_both_kls_in_its_limits():
    for beta, scale, kl in (
        (1e-4, 1e-4, entropy(P, Q, axis=1)),
        (1 - 1e-4, 1e-4, entropy(Q, P, axis=1)),
    ):
        found = losses.jensen_shannon(TEACHER, STUDENT, MASK, T, beta)
        np.testing.assert_allclose(found[0] / scale, kl.sum(), rtol=5e-3)


def test_reverse_kl():
    check(kl_divergence(STUDENT, TEACHER, MASK, T), entropy(Q, P, axis=1).sum())


def test_logit_matching():
    check(
        losses.logit_matching(TEACHER, STUDENT, MASK),
        0.5 * np.linalg.norm(TEACHER[REAL] - STUDENT[REAL]) ** 2,
    )


def parts_of_dkd():
    """(TCKD, NCKD) of each real row, class by class."""
    target, others = [], []
    for p, q, label in zip(P, Q, LABELS[REAL], strict=True):
        target.append(entropy([p[label], 1 - p[label]], [q[label], 1 - q[label]]))
        others.append(entropy(np.delete(p, label), np.delete(q, label)))  # scipy normalises
    return np.array(target), np.array(others)


def test_decoupled():
    target, others = parts_of_dkd()
    check(
        losses.decoupled(TEACHER, STUDENT, LABELS, MASK, T, 1.5, 8.0),
        (1.5 * target + 8 * others).sum(),
    )
    # Their equation for the plain KL: both parts, the second by how unsure the teacher is.
    sure = P[np.arange(len(REAL)), LABELS[REAL]]
    np.testing.assert_allclose(target + (1 - sure) * others, entropy(P, Q, axis=1), rtol=1e-9)


def test_decoupled_of_a_very_sure_teacher_is_finite_and_so_is_its_gradient():
    sure = jnp.asarray(TEACHER).at[:, 0].set(200.0)
    loss = lambda s: losses.decoupled(sure, s, jnp.zeros(B, int), MASK, 1.0, 1.0, 8.0)[0]  # noqa: E731
    value, gradient = jax.value_and_grad(loss)(jnp.asarray(STUDENT))
    assert np.isfinite(value)
    assert np.isfinite(gradient).all()
    wrong = losses.decoupled(TEACHER, STUDENT, np.full(B, K), MASK, T, 1.0, 8.0)
    assert np.isnan(wrong[0])


def test_correlation():
    between = sum(1 - pearsonr(p, q)[0] for p, q in zip(P, Q, strict=True))
    within = np.mean([1 - pearsonr(p, q)[0] for p, q in zip(P.T, Q.T, strict=True)])
    check(
        losses.correlation(TEACHER, STUDENT, MASK, T, 1.5, 0.7),
        1.5 * between + 0.7 * len(REAL) * within,
        rtol=5e-6,
    )


def test_hard_labels():
    best = TEACHER[REAL].argmax(1)
    q = softmax(STUDENT[REAL].astype(np.float64), axis=1)
    check(losses.hard_labels(TEACHER, STUDENT, MASK), -np.log(q[np.arange(len(best)), best]).sum())


def everything(teacher, student, mask):
    """All losses of logits, by name."""
    return {
        "soft": kl_divergence(teacher, student, mask, T),
        "reverse_kl": kl_divergence(student, teacher, mask, T),
        "jsd": losses.jensen_shannon(teacher, student, mask, T, 0.3),
        "logits": losses.logit_matching(teacher, student, mask),
        "dkd": losses.decoupled(teacher, student, LABELS, mask, T, 1.0, 8.0),
        "dist": losses.correlation(teacher, student, mask, T, 1.0, 1.0),
        "hard": losses.hard_labels(teacher, student, mask),
    }


def test_what_is_padding_is_nowhere_seen():
    dirty = np.where(MASK[:, None] > 0, STUDENT, np.nan)
    clean = everything(TEACHER, STUDENT, MASK)
    for name, pair in everything(TEACHER, dirty, MASK).items():
        np.testing.assert_array_equal(pair, clean[name], err_msg=name)
    total = lambda s: sum(pair[0] for pair in everything(TEACHER, s, MASK).values())  # noqa: E731
    gradient = np.asarray(jax.grad(total)(jnp.asarray(STUDENT)))
    assert (gradient[MASK == 0] == 0).all()
    assert (np.abs(gradient[MASK > 0]).max(axis=1) > 0).all()


def test_a_student_that_is_its_teacher_has_nothing_to_learn():
    for name, (total, weight) in everything(STUDENT, STUDENT, MASK).items():
        if name == "hard":  # a cross-entropy
            continue
        limit = 1e-7 if name != "dist" else 1e-6  # one less a correlation rounds at 1
        assert abs(total / weight) <= limit, name


def test_the_distributions_of_one_unit_are_summed():
    t, s = (x.reshape(2, 3, K) for x in (TEACHER, STUDENT))
    labels, mask = LABELS.reshape(2, 3), np.array([1.0, 0.0], np.float32)
    rows = np.repeat(mask, 3)
    for found, flat in (
        (
            losses.jensen_shannon(t, s, mask, T, 0.3),
            losses.jensen_shannon(TEACHER, STUDENT, rows, T, 0.3),
        ),
        (losses.logit_matching(t, s, mask), losses.logit_matching(TEACHER, STUDENT, rows)),
        (
            losses.decoupled(t, s, labels, mask, T, 1.0, 8.0),
            losses.decoupled(TEACHER, STUDENT, LABELS, rows, T, 1.0, 8.0),
        ),
        (losses.hard_labels(t, s, mask), losses.hard_labels(TEACHER, STUDENT, rows)),
    ):
        np.testing.assert_allclose(found[0], flat[0], rtol=1e-6)
        assert found[1] == 1


# The method: a weighted sum, its teachers, its schedules.

MODEL = MLP(widths=(), outputs=K)
BATCH = {"image": RNG.normal(size=(B, 4)).astype(np.float32), "label": LABELS, "mask": MASK}
INIT = jax.jit(lambda key: MODEL.init(key, BATCH["image"], train=False))
A, BB, OWN = (INIT(jax.random.key(i)) for i in range(3))
METHOD = Distill(
    teachers={"a": "../a", "b": "../b"},
    objectives={
        "kd": objectives.DKD(teacher="a", weight=0.7, temperature=T, alpha=1.5, beta=2.0),
        "soft": objectives.Soft(teacher="b", weight=2.0, schedule=schedules.Linear()),
        "hot": objectives.JSD(teacher="b", temperature=8.0, temperature_schedule=schedules.Linear(final=0.5)),
    },
)  # fmt: skip


def loss_of(params, frozen, step=0, method=METHOD, **hyper):
    defaults = {
        "alpha": 0.25,
        "temperature": 2.0,
        "objectives.kd.weight": method.objectives["kd"].weight,
    }
    scope = Scope(
        model=MODEL, task=Classification(), rng=jax.random.key(0), step=jnp.int32(step), collections={},
        ema=None, memory=None, frozen=frozen, hyper={**defaults, **hyper}, total_steps=10,
        references={name: Reference(MODEL, Classification(), ()) for name in frozen},
    )  # fmt: skip
    return method.loss(params, BATCH, scope)


@pytest.mark.parametrize("step", [0, 5, 10])
def test_objectives_add_up_with_their_weights_and_schedules(step):
    t, u, s = (np.asarray(MODEL.apply(v, BATCH["image"], train=False)) for v in (A, BB, OWN))
    found = loss_of(OWN["params"], {"teachers.a": A, "teachers.b": BB}, step)
    hard = -np.log(softmax(s.astype(np.float64), 1)[REAL, LABELS[REAL]]).sum()
    left = 1 - step / 10
    hot = 8.0 * (0.5 + 0.5 * left)
    expected = 0.75 * hard + 0.25 * (
        0.7 * T**2 * losses.decoupled(t, s, LABELS, MASK, T, 1.5, 2.0)[0]
        + 2.0 * left * 2.0**2 * kl_divergence(u, s, MASK, 2.0)[0]
        + hot**2 * losses.jensen_shannon(u, s, MASK, hot, 0.5)[0]
    )
    np.testing.assert_allclose(found.sum, expected, rtol=1e-5)
    assert found.weight == len(REAL)
    assert {
        "label_loss",
        "objectives/kd",
        "objectives/soft",
        "objectives/hot",
    } <= found.metrics.keys()
    other = loss_of(
        OWN["params"], {"teachers.a": A, "teachers.b": BB}, step, **{"objectives.kd.weight": 0.9}
    )
    assert other.sum > found.sum


def test_no_objective_sends_a_gradient_to_a_teacher():
    frozen = {"teachers.a": A, "teachers.b": BB}
    gradient = jax.grad(lambda frozen: loss_of(OWN["params"], frozen).sum)(frozen)
    assert all((np.asarray(leaf) == 0).all() for leaf in jax.tree.leaves(gradient))


def facts(**changes):
    given = dict(task=Classification(), train=types.SimpleNamespace(accumulate=1), total_steps=10)
    given |= dict(sharding=types.SimpleNamespace(mode="jit")) | changes
    absent = {field.name: None for field in dataclasses.fields(Facts)}
    return Facts(**{**absent, **given})


@pytest.mark.parametrize(
    ("objective", "changes", "message"),
    [
        (objectives.DKD(), dict(task=Regression()), "Regression are no distributions"),
        (objectives.DIST(), dict(train=types.SimpleNamespace(accumulate=2)), "accumulate must be 1"),
        (objectives.JSD(beta=1.0), {}, "beta: 1.0 must lie between"),
        (objectives.Soft(temperature=0.0), {}, "must be more than 0"),
        (objectives.Soft(schedule=schedules.Constant(warmup_steps=11)), {}, "do not fit into a run"),
    ],
)  # fmt: skip
def test_what_cannot_be_kept_is_refused_by_name(objective, changes, message):
    method = Distill(teacher="../teacher", objectives={"mine": objective})
    with pytest.raises(UserError, match=f"objectives.mine: .*{message}"):
        method.check(facts(**changes))


def test_a_teacher_is_known_by_name():
    with pytest.raises(UserError, match=r"objectives.kd.teacher: no 'bigg' \(did you mean 'big'"):
        Distill(teachers={"big": "../big"}, objectives={"kd": objectives.Soft(teacher="bigg")})
    with pytest.raises(UserError, match="name the run that teaches"):
        Distill()


@pytest.mark.parametrize("distance", ["l2", "cosine"])
def test_outputs_of_a_pair_are_compared_one_by_one(distance):
    """Rows 2 i and 2 i + 1 are the two texts of pair i; their mean is what the pair counts."""
    teacher, student = (RNG.normal(size=(2 * B, 3)).astype(np.float32) for _ in range(2))
    batch = {"mask": MASK}
    seen = objectives.Seen(Contrastive(), batch, teacher, np.where(
        np.repeat(MASK, 2)[:, None] > 0, student, np.nan))  # fmt: skip
    t, s = (x.astype(np.float64) for x in (teacher, student))
    if distance == "l2":
        rows = ((t - s) ** 2).mean(1) / 2
    else:
        rows = 1 - (t * s).sum(1) / np.linalg.norm(t, axis=1) / np.linalg.norm(s, axis=1)
    pairs = rows.reshape(B, 2).mean(1)
    check(objectives.Outputs(distance=distance).pair(seen), pairs[REAL].sum())
    other = seen._replace(teacher=teacher[:, :2])
    with pytest.raises(UserError, match=r"the teacher gives \(12, 2\), the student \(12, 3\)"):
        objectives.Outputs().pair(other)


def test_each_label_of_an_example_is_a_distribution_of_its_own():
    """DKD of two classes has no others: alpha times the plain KL is left."""
    labels = (RNG.random((B, K)) < 0.5).astype(np.float32)
    seen = objectives.Seen(MultiLabel(), {"label": labels, "mask": MASK}, TEACHER, STUDENT)
    kl = objectives.Soft(temperature=T).pair(seen)
    dkd = objectives.DKD(temperature=T, alpha=1.5, beta=8.0).pair(seen)
    np.testing.assert_allclose(dkd, (1.5 * kl[0], kl[1]), rtol=2e-6)
