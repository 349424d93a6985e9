"""Objectives that compare features: against definitions in float64, and in whole runs."""

import itertools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.spatial.distance import cdist, cosine
from scipy.special import logsumexp

from bigjax.build.assemble import assemble
from bigjax.core.errors import UserError
from bigjax.core.method import Call, Reference, Scope
from bigjax.core.rules import paths
from bigjax.loop.open import open_run
from bigjax.loop.train import train
from bigjax.methods.distill import features
from bigjax.methods.distill.feature_objectives import (
    AttentionTransfer,
    Contrast,
    Hint,
    Relational,
    SimilarityPreserving,
)
from bigjax.methods.distill.method import Distill
from bigjax.methods.distill.objectives import Seen
from bigjax.models.gpt2 import GPT2
from bigjax.models.mlp import MLP
from bigjax.run.writers import read_metrics
from bigjax.tasks.classification import Classification
from bigjax.tasks.language_model import LanguageModel
from tests.small import small

RNG = np.random.default_rng(5)
B = 6
MASK = np.array([1, 1, 0, 1, 1, 0], np.float32)
REAL = np.flatnonzero(MASK)
T, S = RNG.normal(size=(B, 3, 2, 4)), RNG.normal(size=(B, 3, 2, 4))
ROWS_T, ROWS_S = RNG.normal(size=(B, 7)), RNG.normal(size=(B, 4))


def f32(*arrays):
    """As an objective sees them: float32, padding 0."""
    return [jnp.asarray(x * MASK.reshape(-1, *[1] * (x.ndim - 1)), jnp.float32) for x in arrays]


def test_hints():
    expected = sum(np.mean((T[i] - S[i]) ** 2) / 2 for i in REAL)
    np.testing.assert_allclose(features.squared(*f32(T, S), MASK, MASK), (expected, 4), rtol=1e-6)
    angles = [np.mean([cosine(t, s) for t, s in zip(T[i].reshape(-1, 4), S[i].reshape(-1, 4), strict=True)]) for i in REAL]  # fmt: skip
    np.testing.assert_allclose(features.cosine(*f32(T, S), MASK, MASK), (sum(angles), 4), rtol=1e-6)


def test_only_the_real_positions_of_a_text_count():
    real = np.array([[1, 1, 0], [1, 0, 0], [1, 1, 1], [2, 2, 1], [1, 1, 1], [0, 0, 0]])
    expected = sum(np.mean((T[i][real[i] > 0] - S[i][real[i] > 0]) ** 2) / 2 for i in REAL)
    np.testing.assert_allclose(features.squared(*f32(T, S), MASK, real)[0], expected, rtol=1e-6)


def test_attention_maps():
    expected = 0.0
    for i in REAL:
        q = [np.square(x[i]).sum(-1).ravel() for x in (T, S)]
        expected += np.sum((q[0] / np.linalg.norm(q[0]) - q[1] / np.linalg.norm(q[1])) ** 2)
    np.testing.assert_allclose(features.attention_map(*f32(T, S), MASK), (expected, 4), rtol=1e-6)


def huber(x):
    return 0.5 * x * x if abs(x) <= 1 else abs(x) - 0.5


def test_relations_pair_by_pair_and_angle_by_angle():
    d = [cdist(x[REAL], x[REAL]) for x in (ROWS_T, ROWS_S)]
    pairs = list(itertools.permutations(range(4), 2))
    scaled = [x / np.mean([x[p] for p in pairs]) for x in d]
    of_pairs = np.mean([huber(scaled[0][p] - scaled[1][p]) for p in pairs])

    def angle(x, i, j, k):
        u, v = x[i] - x[j], x[k] - x[j]
        return u @ v / np.linalg.norm(u) / np.linalg.norm(v)

    triples = list(itertools.permutations(range(4), 3))
    of_triples = np.mean(
        [huber(angle(ROWS_T[REAL], *t) - angle(ROWS_S[REAL], *t)) for t in triples]
    )
    relations = jax.jit(lambda t, s: features.relations(t, s, MASK, 1.0, 2.0))
    found = relations(*f32(ROWS_T, ROWS_S))
    np.testing.assert_allclose(found, of_pairs + 2 * of_triples, rtol=1e-6)


def test_similarities():
    g = [x[REAL] @ x[REAL].T for x in (ROWS_T, ROWS_S)]
    g = [x / np.linalg.norm(x, axis=1, keepdims=True) for x in g]
    expected = np.linalg.norm(g[0] - g[1]) ** 2 / 16
    np.testing.assert_allclose(
        features.similarities(*f32(ROWS_T, ROWS_S), MASK), expected, rtol=1e-6
    )


def test_contrast():
    student = RNG.normal(size=(B, 7))
    cos = 1 - cdist(student[REAL], ROWS_T[REAL], "cosine")
    expected = np.mean(logsumexp(cos / 0.2, axis=1) - np.diag(cos) / 0.2)
    found = features.contrast(*f32(ROWS_T, student), MASK, 0.2)
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_gradients_are_finite_where_both_are_equal_or_zero():
    losses = {
        "l2": lambda s, t: features.squared(t, s, MASK, MASK)[0],
        "cosine": lambda s, t: features.cosine(t, s, MASK, MASK)[0],
        "attention": lambda s, t: features.attention_map(t, s, MASK)[0],
        "relations": lambda s, t: features.relations(t, s, MASK, 1.0, 2.0),
        "similarities": lambda s, t: features.similarities(t, s, MASK),
    }
    for name, loss in losses.items():
        for x in (f32(ROWS_T)[0], jnp.zeros((B, 7))):
            value, gradient = jax.jit(jax.value_and_grad(loss))(x, x)
            assert np.isfinite(gradient).all(), name
            if x.any() or name != "cosine":  # a vector of zeros has no direction
                assert abs(value) < 1e-6, name


def decoder(scan):
    model = GPT2(vocab=11, context=8, layers=2, width=8, heads=2, scan_layers=scan, dropout=0.0)
    tokens = jnp.arange(10).reshape(2, 5)
    init = jax.jit(lambda: model.init(jax.random.key(0), tokens, train=False))
    return model, nn.unbox(init()), tokens


@pytest.mark.slow
def test_features_of_a_decoder_are_its_blocks_also_in_a_loop():
    found = {}
    for scan in (False, True):
        model, variables, tokens = decoder(scan)
        if scan:
            blocks = [found[False][1]["params"][f"block_{i}"] for i in range(2)]
            params = dict(found[False][1]["params"])
            params = {k: v for k, v in params.items() if not k.startswith("block_")}
            stacked = jax.tree.map(lambda *x: jnp.stack(x), *blocks)
            variables = {"params": {**params, "blocks": stacked}}
        known = features.shapes(Call(model, variables, (tokens,)))
        assert known["block_1"] == (2, 5, 8)
        both = features.WithFeatures(model, ("block_0", "block_1"))
        outputs, inside = both.apply(variables, tokens, train=False)
        np.testing.assert_array_equal(outputs, model.apply(variables, tokens, train=False))
        found[scan] = (inside, variables)
    for name in ("block_0", "block_1"):
        np.testing.assert_allclose(
            found[False][0][name], found[True][0][name], rtol=1e-5, atol=1e-6
        )
    with pytest.raises(UserError, match=r"no module 'blok_1' \(did you mean 'block_1'"):
        features.find(known, "blok_1", "student_feature")


def test_a_hint_of_tokens_counts_the_tokens_that_the_loss_counts():
    tokens = jnp.asarray(RNG.integers(0, 9, (B, 3)))
    segments = jnp.asarray([[1, 1, 1], [1, 1, 0], [1, 1, 1], [1, 1, 1], [1, 2, 2], [1, 1, 1]])
    batch = {"tokens": tokens, "segments": segments, "mask": jnp.asarray(MASK)}
    task = LanguageModel(input=("tokens", "segments"))
    counted = [(i, t) for i in REAL for t in range(2) if segments[i, t] == segments[i, t + 1] > 0]
    t, s = RNG.normal(size=(B, 3, 5)), RNG.normal(size=(B, 3, 4))
    kernel = RNG.normal(size=(4, 5))
    hint = Hint(student_feature="a", teacher_feature="b")
    seen = Seen(task, batch, None, jnp.zeros((B, 3, 9)), [tuple(map(jnp.asarray, (t, s)))], {"kernel": jnp.asarray(kernel)})  # fmt: skip
    expected = sum(np.mean((t[p] - s[p] @ kernel) ** 2) / 2 for p in counted)
    np.testing.assert_allclose(hint.pair(seen), (expected, len(counted)), rtol=1e-5)
    with pytest.raises(UserError, match="other positions"):
        hint.check_shapes((2, 4, 8), (2, 5, 8))
    assert {k: v.shape for k, v in Contrast(student_feature="a", teacher_feature="b", width=3).parameters(jax.random.key(0), (2, 4, 8), (2, 5)).items()} == {"teacher": (32, 3), "student": (5, 3)}  # fmt: skip


def test_all_kinds_in_one_loss_each_on_the_features_that_it_names():
    student, teacher = MLP(widths=(3,), outputs=4), MLP(widths=(5, 6), outputs=4)
    x = RNG.normal(size=(B, 7)).astype(np.float32)
    own, frozen = (
        jax.jit(lambda m=m, i=i: m.init(jax.random.key(i), x, train=False))()
        for i, m in enumerate((student, teacher))
    )
    at = dict(student_feature="dense_0", teacher_feature="dense_1")
    kinds = dict(
        hint=Hint(**at, weight=2.0),
        bare=Hint(student_feature="head", teacher_feature="head", projection=False, distance="cosine"),
        attention=AttentionTransfer(**at),
        relational=Relational(**at, distance=3.0, angle=0.5),
        similarity=SimilarityPreserving(**at),
        contrast=Contrast(**at, width=2),
    )  # fmt: skip
    method = Distill("../teacher", alpha=1.0, objectives=kinds)
    kernels = {
        "hint": {"kernel": RNG.normal(size=(3, 6))},
        "contrast": {"teacher": RNG.normal(size=(6, 2)), "student": RNG.normal(size=(3, 2))},
    }
    scope = Scope(
        model=student, task=Classification(), rng=jax.random.key(0), step=jnp.int32(0), collections={},
        ema=None, memory=None, frozen={"teacher": frozen}, hyper={"alpha": 1.0, "temperature": 2.0},
        references={"teacher": Reference(teacher, Classification(), ())}, own=kernels,
    )  # fmt: skip
    batch = {"image": x, "label": np.zeros(B, np.int32), "mask": MASK}
    found = jax.jit(lambda params: method.loss(params, batch, scope))(own["params"])

    def dense(x, params):
        return x @ params["kernel"] + params["bias"]

    relu, (p, q) = (lambda x: np.maximum(x, 0)), (own["params"], frozen["params"])
    s = dense(x, p["dense_0"])
    t = dense(relu(dense(x, q["dense_0"])), q["dense_1"])
    heads = dense(relu(t), q["head"]), dense(relu(s), p["head"])
    t, s, *heads = f32(*map(np.asarray, (t, s, *heads)))
    of_rows = {
        "relational": features.relations(t, s, MASK, 3.0, 0.5),
        "similarity": features.similarities(t, s, MASK),
        "contrast": features.contrast(
            t @ kernels["contrast"]["teacher"], s @ kernels["contrast"]["student"], MASK, 0.07
        ),
    }
    expected = {
        "hint": features.squared(t, s @ kernels["hint"]["kernel"], MASK, MASK)[0],
        "bare": features.cosine(*heads, MASK, MASK)[0],
        "attention": features.attention_map(t, s, MASK)[0],
        **{name: 4 * value for name, value in of_rows.items()},
    }
    for name, value in expected.items():
        np.testing.assert_allclose(
            found.metrics[f"objectives/{name}"], (value, 4), rtol=1e-4, atol=1e-9, err_msg=name
        )
    np.testing.assert_allclose(found.sum, sum(expected.values()) + expected["hint"], rtol=1e-4)


TEACHER = dict(type="mlp", widths=(16,), outputs=10)
HINTS = dict(
    type="distill",
    teacher="../teacher",
    alpha=0.9,
    objectives=dict(
        hint=dict(type="hint", student_feature="dense_0", teacher_feature="dense_0", weight=5.0),
    ),
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A teacher of 16 hidden units, and a student of 8 that was given its hints."""
    folder = tmp_path_factory.mktemp("hints")
    train(small(model=TEACHER), folder / "teacher")
    train(small("train.steps=40", method=HINTS), folder / "student")
    return folder


def test_a_projection_is_trained_saved_and_no_part_of_the_student(folder):
    setup = assemble(small("train.steps=40", method=HINTS), folder / "student")
    first, _ = setup.start()
    assert first.params["method"]["hint"]["kernel"].shape == (8, 16)
    run = open_run(folder / "student")
    last = run.state.params["method"]["hint"]["kernel"]
    assert np.abs(last - first.params["method"]["hint"]["kernel"]).max() > 0.01
    assert set(run.variables["params"]) == {"dense_0", "head"}
    # Another run starts from the student as from any other.
    config = small("train.steps=1", init=dict(source="../student"))
    second, _ = assemble(config, folder / "second").start()
    jax.tree.map(np.testing.assert_array_equal, second.params, run.variables["params"])


def test_hints_come_nearer(folder):
    lines = [x["train/objectives/hint"] for x in read_metrics(folder / "student/metrics.jsonl") if "train/objectives/hint" in x]  # fmt: skip
    assert lines[-1] < 0.7 * lines[0]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(student_feature="dense_1"), r"student_feature: no module 'dense_1' \(did you mean 'dense_0'"),
        (dict(projection=False), "widths 16 and 8 differ"),
    ],
)  # fmt: skip
def test_wrong_features_are_refused_before_the_first_step(folder, changes, message):
    objective = {**HINTS["objectives"]["hint"], **changes}
    method = {**HINTS, "objectives": {"hint": objective}}
    with pytest.raises(UserError, match=f"config.method.objectives.hint: {message}"):
        assemble(small("train.steps=3", method=method), folder / "other")


def test_nothing_of_the_method_lies_among_the_models_own_leaves(folder):
    state, _ = assemble(small("train.steps=40", method=HINTS), folder / "student").start()
    assert {path.partition("/")[0] for path in paths(state.params)} == {"model", "method"}
