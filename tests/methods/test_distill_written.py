"""Text of a model's own in place of the data's: sequence-level and on-policy distillation."""

import functools
import json

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bigjax.build.assemble import assemble
from bigjax.core.errors import UserError
from bigjax.core.method import Reference, Scope
from bigjax.loop.train import train
from bigjax.methods.distill.method import Distill
from bigjax.methods.distill.objectives import Labels
from bigjax.models.generate import Sampling
from bigjax.models.gpt2 import GPT2
from bigjax.models.t5 import T5
from bigjax.tasks.language_model import LanguageModel
from bigjax.tasks.seq2seq import Seq2Seq
from tests.contracts.runs import steps_of
from tests.small import small

RNG = np.random.default_rng(2)
B, T, V, P = 3, 8, 11, 3
TASK = LanguageModel(input=("tokens", "segments"), token_mask="new")
MODEL = GPT2(vocab=V, context=T, layers=1, width=8, heads=2, dropout=0.0)
TOKENS = RNG.integers(1, V, (B, T))
BATCH = {
    "tokens": jnp.asarray(TOKENS),
    "segments": jnp.asarray([[1] * 8, [1, 1, 2, 2, 2, 2, 2, 2], [1, 1, 1, 1, 0, 0, 0, 0]]),
    "new": jnp.ones((B, T)),
    "mask": jnp.ones(B),
}
KEY = jax.random.key(0)
PROMPTS = [TOKENS[0, :3].tolist(), TOKENS[1, :2].tolist(), TOKENS[2, :3].tolist()]


@pytest.fixture(scope="module")
def pair():
    """The variables of a teacher and of a student, unlike enough to write other texts."""
    made = jax.jit(lambda key: MODEL.init(key, BATCH["tokens"], train=False))
    return [
        jax.tree.map(lambda x: 4 * x, nn.unbox(made(jax.random.key(seed)))) for seed in range(2)
    ]


@jax.jit
def logits_of(variables, tokens):
    return MODEL.apply(variables, tokens, train=False)


def greedy(variables, prompt, length):
    """One token after the other, without a cache; what stands behind them no token sees."""
    text = list(prompt)
    for _ in range(length):
        padded = jnp.asarray([[*text, *[0] * (T - len(text))]])
        text.append(int(jnp.argmax(logits_of(variables, padded)[0, len(text) - 1])))
    return text


@functools.cache
def written(by, temperature=0.0):
    """`prepared(params, frozen, rng)`: a batch written anew, and the method that wrote it."""
    options = dict(by=by, prompt=P, temperature=temperature)
    method = Distill("../teacher", alpha=1.0, written=options, objectives={"labels": Labels()})
    return method, jax.jit(
        lambda pair, rng: method.prepare(pair[1]["params"], BATCH, scope_of(pair, rng))[0]
    )


def scope_of(pair, rng):
    return Scope(
        model=MODEL, task=TASK, rng=rng, step=jnp.int32(0), collections={}, ema=None,
        memory=None, frozen={"teacher": pair[0]}, hyper={"alpha": 1.0, "temperature": 1.0},
        references={"teacher": Reference(MODEL, TASK, ())}, total_steps=10,
    )  # fmt: skip


@pytest.mark.parametrize("by", ["student", "teacher"])
def test_the_text_is_what_the_writer_would_say(pair, by):
    batch = written(by)[1](pair, KEY)
    writer = pair[0] if by == "teacher" else pair[1]
    tokens, segments = np.asarray(batch["tokens"]), np.asarray(batch["segments"])
    for row, prompt in enumerate(PROMPTS):
        assert tokens[row][segments[row] > 0].tolist() == greedy(writer, prompt, T - P)
    np.testing.assert_array_equal(segments.sum(1), [8, 7, 8])  # of the second its first document
    np.testing.assert_array_equal(batch["new"], np.arange(T)[None] >= np.full((B, 1), P))
    counted = TASK.units(jnp.zeros((B, T, V)), batch)
    np.testing.assert_array_equal(counted.sum(1), [T - P] * B)  # what was written, and no prompt


def test_what_was_written_is_what_is_learned_from(pair):
    """Sequence-level: the student's cross-entropy of the teacher's text, in float64."""
    method, prepared = written("teacher")
    batch = prepared(pair, KEY)
    found = jax.jit(lambda p: method.loss(p, batch, scope_of(pair, KEY)))(pair[1]["params"])
    total = 0.0
    for prompt in PROMPTS:
        text = greedy(pair[0], prompt, T - P)
        padded = jnp.asarray([[*text, *[0] * (T - len(text))]])
        logits = np.asarray(logits_of(pair[1], padded)[0], np.float64)
        log_p = logits - np.log(np.exp(logits).sum(1, keepdims=True))
        total -= sum(log_p[i - 1, text[i]] for i in range(len(prompt), len(text)))
    np.testing.assert_allclose(found.sum, total, rtol=1e-4)
    assert found.weight == B * (T - P)


@pytest.mark.slow
def test_no_gradient_passes_through_what_is_drawn(pair):
    method, prepared = written("student", temperature=1.0)
    scope, params, batch = scope_of(pair, KEY), pair[1]["params"], prepared(pair, KEY)

    def loss(params):
        batch, _ = method.prepare(params, BATCH, scope)
        return method.loss(params, batch, scope).sum

    fixed = jax.jit(jax.grad(lambda params: method.loss(params, batch, scope).sum))(params)
    found = jax.jit(jax.grad(loss))(params)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), found, fixed)


@pytest.mark.slow
def test_a_share_of_the_steps_sees_the_data(pair):
    method = Distill("../teacher", written=dict(by="student", prompt=P, share=0.5))

    @jax.jit
    def prepared(seed):
        scope = scope_of(pair, jax.random.key(seed))
        return method.prepare(pair[1]["params"], BATCH, scope)[0]["tokens"]

    wrote = [not np.array_equal(prepared(seed), TOKENS) for seed in range(40)]
    assert 10 < sum(wrote) < 30  # 20 expected, sd 3.2


@pytest.mark.slow
def test_a_row_that_stopped_ends_with_the_stop_token(pair):
    first = greedy(pair[0], PROMPTS[0], 1)[-1]
    sampling = lambda length: Sampling(length, stop=(first,))  # noqa: E731
    batch = jax.jit(lambda v: TASK.rewritten(MODEL.apply, v, BATCH, sampling, P, KEY))(pair[0])
    assert batch["tokens"][0, P] == first
    np.testing.assert_array_equal(batch["segments"][0], [1] * (P + 1) + [0] * (T - P - 1))


@pytest.mark.slow
def test_a_target_is_written_from_its_source():
    model = T5(vocab=V, layers=1, width=8, heads=2, head_width=4, mlp_width=16)
    source = jnp.asarray(RNG.integers(1, V, (B, 5)))
    target = jnp.asarray([[0, 4, 5, 10, 3, 3], [0, 6, 10, 3, 3, 3], [0, 1, 1, 1, 1, 10]])
    real = jnp.asarray([[1, 1, 1, 1, 0, 0], [1, 1, 1, 0, 0, 0], [1] * 6])
    task, inputs = Seq2Seq(), (source, jnp.ones_like(source), target, real)
    batch = {**dict(zip(task.input, inputs, strict=True)), "mask": jnp.ones(B)}
    made = jax.jit(lambda key: model.init(key, *inputs, train=False))(jax.random.key(4))
    variables = jax.tree.map(lambda x: 3 * x, nn.unbox(made))
    expected = jax.jit(lambda v: task.decode(model.apply, v, batch)["written"])(variables)
    found = jax.jit(lambda v: task.rewritten(model.apply, v, batch, Sampling, None, KEY))(variables)
    for row in range(B):
        text = [t for t in np.asarray(expected[row]).tolist() if t >= 0]
        seen = np.asarray(found["target"][row])[np.asarray(found["target_segments"][row]) > 0]
        assert seen.tolist() == [0, *text, 10][: target.shape[1]]


LM = dict(
    data=dict(
        source=dict(type="markov_tokens", vocab=V, length=T, examples=80),
        splits=dict(train="train", test="test"),
    ),
    model=dict(type="gpt2", vocab=V, context=T, layers=1, width=8, heads=2, dropout=0.0),
    task=dict(type="language_model"),
)
ON_POLICY = dict(
    type="distill",
    teacher="../teacher",
    alpha=1.0,
    written=dict(by="student", prompt=2, temperature=1.0),
    objectives=dict(gkd=dict(type="jsd", temperature=1.0, beta=0.5)),
)


@pytest.mark.parametrize(
    ("written", "message"),
    [
        (dict(by="studen"), r"written.by: no 'studen' \(did you mean 'student'"),
        (dict(by="student"), "written.prompt: None must be at least 1 and less than the 8"),
        (dict(by="student", prompt=2, stop=(1,)), "written.stop: needs segments"),
        (dict(by="student", prompt=2, share=0.0), "written.share: 0.0 must be above 0"),
        (dict(by="student", promt=2), r"text takes no 'promt' \(did you mean 'prompt'"),
    ],
)
def test_what_cannot_be_written_is_refused(written, message, tmp_path):
    teacher = tmp_path / "teacher"
    teacher.mkdir()
    (teacher / "config.json").write_text(json.dumps(small(**LM).values))
    with pytest.raises(UserError, match=message):
        assemble(small(**LM, method={**ON_POLICY, "written": written}), tmp_path / "x")


@pytest.mark.slow
def test_on_policy_distillation_brings_a_student_near_its_teacher(tmp_path):
    train(small("train.steps=60", "evaluate.every='end'", **LM), tmp_path / "teacher")
    config = small("train.steps=60", "evaluate.every='end'", **LM, method=ON_POLICY)
    found, _ = steps_of(assemble(config, tmp_path / "student"), 60)
    assert found[-10:].mean() < 0.5 * found[:5].mean()
