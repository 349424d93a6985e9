"""Objectives that compare layers of two Transformers: against float64 by hand, and the published presets."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util
from scipy.special import softmax
from scipy.stats import entropy

from bigjax.config.config import made
from bigjax.core.errors import UserError
from bigjax.core.method import Call, Reference, Scope
from bigjax.methods.distill import features, layers
from bigjax.methods.distill.layer_objectives import AttentionScores, HiddenStates, Relations
from bigjax.methods.distill.method import Distill
from bigjax.methods.distill.objectives import Seen
from bigjax.methods.distill.presets import distilbert, minilm, tinybert
from bigjax.models.bert import BERT
from bigjax.tasks.masked_lm import MaskedLM

RNG = np.random.default_rng(11)
B, T, N, H = 4, 5, 2, 3
# Two documents in one row, padding, a whole row of padding.
SEGMENTS = np.array([[1, 1, 1, 2, 2], [1, 1, 0, 0, 0], [0] * 5, [1] * 5])
LABELS = np.array([[-100, 3, -100, 1, -100], [2, -100, -100, -100, -100], [-100] * 5, [0, 1, -100, 2, -100]])  # fmt: skip
MASK = np.array([1, 1, 0, 1], np.float32)
UNITS = (LABELS >= 0).sum(1) * MASK
F32 = lambda *xs: tuple(jnp.asarray(x, jnp.float32) for x in xs)  # noqa: E731


def normal(*shape):
    return RNG.normal(size=shape)


Q, K, V = ([normal(B, T, N, H), normal(B, T, N, H)] for _ in range(3))  # teacher's, student's
HIDDEN = normal(B, T, 6), normal(B, T, 4)


def seen_by(b, t):
    return np.flatnonzero((SEGMENTS[b] == SEGMENTS[b, t]) & (SEGMENTS[b] > 0))


def real(b):
    return np.flatnonzero(SEGMENTS[b])


def test_hidden_states():
    kernel = normal(4, 6)
    t, s = HIDDEN[0], HIDDEN[1] @ kernel
    found = layers.hidden_states(*F32(t, s), SEGMENTS)
    expected = [np.mean((t[b][real(b)] - s[b][real(b)]) ** 2) if len(real(b)) else 0 for b in range(B)]  # fmt: skip
    np.testing.assert_allclose(found, expected, rtol=2e-6)


def test_angles_of_hidden_states():
    t, s = HIDDEN[0], normal(B, T, 6)
    cos = (t * s).sum(-1) / np.linalg.norm(t, axis=-1) / np.linalg.norm(s, axis=-1)
    expected = [np.mean(1 - cos[b][real(b)]) if len(real(b)) else 0 for b in range(B)]
    np.testing.assert_allclose(layers.hidden_angles(*F32(t, s), SEGMENTS), expected, rtol=2e-6)


def test_attention_scores_pair_by_pair():
    expected = []
    for b in range(B):
        apart = [
            (Q[0][b, i, n] @ K[0][b, j, n] - Q[1][b, i, n] @ K[1][b, j, n]) ** 2 / H
            for i in real(b)
            for j in seen_by(b, i)
            for n in range(N)
        ]
        expected.append(np.mean(apart) if apart else 0)
    teacher, student = (F32(Q[i], K[i]) for i in (0, 1))
    found = layers.attention_scores(teacher, student, layers.pairs_of(SEGMENTS))
    np.testing.assert_allclose(found, expected, rtol=2e-6)


@pytest.mark.parametrize("heads", [2, 1, 6])
@pytest.mark.parametrize("names", ["qk", "vv"])
def test_relations_token_by_token(heads, names):
    x, y = {"qk": (Q, K), "vv": (V, V)}[names]
    expected = []
    for b in range(B):
        kl = []
        for i in real(b):
            for n in range(heads):
                rows = []
                for model in (0, 1):
                    cut = [a[model][b].reshape(T, heads, -1)[:, n] for a in (x, y)]
                    scores = cut[1][seen_by(b, i)] @ cut[0][i] / np.sqrt(N * H // heads)
                    rows.append(softmax(scores))
                kl.append(entropy(*rows))
        expected.append(np.mean(kl) if kl else 0)
    teacher, student = (F32(x[i], y[i]) for i in (0, 1))
    relations = jax.jit(lambda t, s: layers.relations(t, s, layers.pairs_of(SEGMENTS), heads))
    found = relations(teacher, student)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-7)


def test_a_row_weighs_as_many_units_as_the_loss_counts_in_it():
    kernel = normal(4, 6)
    objective = HiddenStates(layers=((0, 1), (1, 3)))
    assert objective.features == (("block_1", "block_0"), ("block_3", "block_1"))
    batch = {"labels": jnp.asarray(LABELS), "mask": MASK, "segments": jnp.asarray(SEGMENTS)}
    own = {"kernel": jnp.asarray(kernel, jnp.float32)}
    seen = Seen(MaskedLM(), batch, None, jnp.zeros((B, T, 7)), [F32(*HIDDEN)] * 2, own)
    rows = np.asarray(layers.hidden_states(*F32(HIDDEN[0], HIDDEN[1] @ kernel), SEGMENTS))
    np.testing.assert_allclose(objective.pair(seen), (2 * (UNITS * rows).sum(), UNITS.sum()), rtol=1e-5)  # fmt: skip


@pytest.mark.parametrize(
    ("objective", "shapes", "message"),
    [
        (AttentionScores(layers=((0, 0),)), ((2, 5, 4, 3), (2, 5, 2, 6)), "has 4 heads, the student 2"),
        (Relations(layers=((0, 0),), heads=5), ((2, 5, 2, 5), (2, 5, 2, 3)), "6 numbers do not divide into 5"),
        (HiddenStates(layers=((0, 0),)), ((2, 5, 4), (2, 6, 4)), "no hidden states of one text"),
        (HiddenStates(layers=((0, 0),), projection=False), ((2, 5, 4), (2, 5, 3)), "need projection=True"),
    ],
)  # fmt: skip
def test_layers_that_cannot_be_compared_are_refused(objective, shapes, message):
    with pytest.raises(UserError, match=message):
        objective.check_shapes(*shapes)


def test_layers_are_pairs():
    with pytest.raises(UserError, match="must be pairs"):
        HiddenStates(layers=((1,),))


def bert(number, scan=False):
    return BERT(vocab=7, layers=number, width=4, heads=2, mlp_width=8, context=T, head="mlm", scan_layers=scan)  # fmt: skip


TOKENS = jnp.asarray(RNG.integers(0, 7, (B, T)))
BATCH = {"tokens": TOKENS, "segments": jnp.asarray(SEGMENTS), "labels": jnp.asarray(LABELS), "mask": MASK}  # fmt: skip


@pytest.fixture(scope="module")
def berts():
    """(model, variables, all that its modules give, by path) of a teacher of four layers, a student of two."""

    def make(model, seed):
        inputs = (TOKENS, BATCH["segments"])
        made = jax.jit(lambda key: model.init(key, *inputs, train=False))(jax.random.key(seed))
        variables = nn.unbox(made)
        see_all = dict(train=False, capture_intermediates=True)
        outputs, kept = jax.jit(lambda v: model.apply(v, *inputs, **see_all))(variables)
        found = traverse_util.flatten_dict(kept["intermediates"])
        inside = {"/".join(path[:-1]): np.asarray(x[0], np.float64) for path, x in found.items()}
        return model, variables, {**inside, "": np.asarray(outputs, np.float64)}

    return make(bert(4), 0), make(bert(2), 1)


def sum_of(berts, preset, own=None):
    (teacher, frozen, _), (student, variables, _) = berts
    objectives = made("method.objectives", "method.objectives", preset["objectives"])
    method = Distill(teacher="../teacher", alpha=preset["alpha"], objectives=objectives)
    scope = Scope(
        model=student, task=MaskedLM(), rng=jax.random.key(0), step=jnp.int32(0), collections={}, ema=None,
        memory=None, frozen={"teacher": frozen}, hyper={"alpha": preset["alpha"], "temperature": 2.0},
        references={"teacher": Reference(teacher, MaskedLM(), ())}, own=own or {},
    )  # fmt: skip
    return jax.jit(lambda params: method.loss(params, BATCH, scope))(variables["params"])


def test_the_triple_loss_of_distilbert(berts):
    found = sum_of(berts, distilbert(2, 4))
    t, t_logits = (berts[0][2][path] for path in ("block_3", ""))
    s, s_logits = (berts[1][2][path] for path in ("block_1", ""))
    cos = (t * s).sum(-1) / np.linalg.norm(t, axis=-1) / np.linalg.norm(s, axis=-1)
    angles = sum(UNITS[b] * np.mean(1 - cos[b][real(b)]) for b in (0, 1, 3))
    p, q = (softmax(x / 2.0, axis=-1) for x in (t_logits, s_logits))
    counted = (LABELS >= 0) & (MASK[:, None] > 0)
    soft = entropy(p[counted], q[counted], axis=-1).sum() * 4
    hard = -np.log(softmax(s_logits, axis=-1)[counted, LABELS[counted]]).sum()
    np.testing.assert_allclose(found.sum, 5 * soft + 2 * hard + angles, rtol=2e-5)


@pytest.mark.slow
def test_the_layers_of_tinybert_and_minilm(berts):
    preset = tinybert(2, 4)
    assert preset["objectives"]["hidden"]["layers"] == ((0, 1), (1, 3))
    own = {name: {"kernel": normal(4, 4)} for name in ("embeddings", "hidden")}
    found = sum_of(berts, preset, own).metrics
    of = lambda which, path: berts[which][2][path]  # noqa: E731
    expected = sum(
        layers.hidden_states(*F32(of(0, f"block_{t}"), of(1, f"block_{s}") @ own["hidden"]["kernel"]), SEGMENTS)
        for s, t in ((0, 1), (1, 3))
    )  # fmt: skip
    np.testing.assert_allclose(found["objectives/hidden"][0], (UNITS * expected).sum(), rtol=1e-4)
    first = of(0, "embedding_norm"), of(1, "embedding_norm") @ own["embeddings"]["kernel"]
    expected = layers.hidden_states(*F32(*first), SEGMENTS)
    np.testing.assert_allclose(found["objectives/embeddings"][0], (UNITS * expected).sum(), rtol=1e-4)  # fmt: skip

    def parts(which, block, *names):
        return F32(*(of(which, f"block_{block}/attention/{name}") for name in names))

    seen = layers.pairs_of(SEGMENTS)
    expected = sum(
        layers.attention_scores(parts(0, t, "query", "key"), parts(1, s, "query", "key"), seen)
        for s, t in ((0, 1), (1, 3))
    )
    np.testing.assert_allclose(found["objectives/attention"][0], (UNITS * expected).sum(), rtol=1e-4)  # fmt: skip
    expected = sum(
        layers.relations(parts(0, 3, *names), parts(1, 1, *names), seen, 2)
        for names in (("query", "key"), ("value", "value"))
    )
    relations = sum_of(berts, minilm(2, 4, heads=2)).metrics["objectives/relations"]
    np.testing.assert_allclose(relations[0], (UNITS * expected).sum(), rtol=1e-4)


def test_the_scores_are_those_that_the_model_looks_by(berts):
    """What attention gives, made again from its captured query, key and value."""
    _, variables, inside = berts[1]
    q, k, v = (inside[f"block_0/attention/{name}"] for name in ("query", "key", "value"))
    mixed = np.zeros_like(v)
    for b in (0, 1, 3):
        for i in real(b):
            for n in range(2):
                keys = seen_by(b, i)
                p = softmax(k[b, keys, n] @ q[b, i, n] / np.sqrt(2))
                mixed[b, i, n] = p @ v[b, keys, n]
    out = variables["params"]["block_0"]["attention"]["out"]
    expected = np.einsum("BTNH,NHD->BTD", mixed, out["kernel"]) + out["bias"]
    found = inside["block_0/attention"]
    for b in (0, 1, 3):
        np.testing.assert_allclose(found[b][real(b)], expected[b][real(b)], rtol=1e-4, atol=1e-6)


@pytest.mark.slow
def test_inside_a_loop_over_layers_the_paths_are_the_same(berts):
    (_, variables, inside), loop = berts[1], bert(2, scan=True)
    params = dict(variables["params"])
    blocks = [params.pop(f"block_{i}") for i in range(2)]
    stacked = {"params": {**params, "blocks": jax.tree.map(lambda *x: jnp.stack(x), *blocks)}}
    inputs, path = (TOKENS, BATCH["segments"]), "block_1/attention/value"
    shown = features.WithFeatures(loop, (path, "block_0"))
    _, found = jax.jit(lambda v: shown.apply(v, *inputs, train=False))(stacked)
    for name in (path, "block_0"):
        np.testing.assert_allclose(found[name], inside[name], rtol=1e-5, atol=1e-6)
    assert features.shapes(Call(loop, stacked, inputs))[path] == (B, T, 2, 2)
