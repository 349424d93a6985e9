"""The evaluator of text that a student writes: token by token, without a cache, in float64."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bigjax.build.assemble import assemble
from bigjax.core.errors import UserError
from bigjax.loop.evaluators import check_evaluators
from bigjax.loop.open import open_run
from bigjax.loop.train import train
from tests.small import small

V, T, PROMPT = 11, 8, 3
LM = dict(
    data=dict(
        source=dict(type="markov_tokens", vocab=V, length=T, examples=20),
        splits=dict(train="train", test="test"),
    ),
    task=dict(type="language_model"),
    model=dict(type="gpt2", vocab=V, context=T, layers=1, width=8, heads=2, dropout=0.0),
)
SHORT = ("train.steps=6", "evaluate.splits=()", "evaluate.batch_size=8", "checkpoint.every='end'")
METHOD = dict(type="distill", teacher="../teacher", alpha=1.0)


def log_softmax(logits):
    logits = np.asarray(logits, np.float64)
    return logits - np.log(np.exp(logits).sum(-1, keepdims=True))


def test_what_is_written_and_how_likely_it_is_by_hand(tmp_path):
    train(small(*SHORT, **LM), tmp_path / "teacher")
    judged = dict(judged=dict(type="judged", data="test", prompt=PROMPT, temperature=0.0))
    train(small("seed=1", *SHORT, **LM, method=METHOD, evaluators=judged), tmp_path / "student")
    metrics = json.loads((tmp_path / "student" / "result.json").read_text())["metrics"]
    student, teacher = (open_run(tmp_path / name) for name in ("student", "teacher"))
    apply = jax.jit(lambda variables, x: student.model.apply(variables, x, train=False))
    source = student.setup.sources["test"]
    real = source.read(np.arange(len(source)))["tokens"]
    written = np.array(real)
    for t in range(PROMPT, T):
        hidden = jnp.asarray(
            np.where(np.arange(T) < t, written, 0)
        )  # nothing of the data's is seen
        written[:, t] = np.argmax(apply(student.variables, hidden)[:, t - 1], axis=-1)
    assert (written != real).any()

    def likelihood(run, text):
        found = log_softmax(apply(run.variables, text))[:, PROMPT - 1 : -1]
        return np.take_along_axis(found, text[:, PROMPT:, None], axis=-1).mean()

    expected = {
        "teacher_log_likelihood": likelihood(teacher, written),
        "student_log_likelihood": likelihood(student, written),
        "real_log_likelihood": likelihood(teacher, real),
    }
    difference = expected["student_log_likelihood"] - expected["teacher_log_likelihood"]
    for name, value in {**expected, "reverse_kl": difference}.items():
        assert metrics[f"eval/judged/{name}"] == pytest.approx(value, abs=1e-5), name


@pytest.mark.parametrize(
    ("evaluator", "message"),
    [
        (dict(teacher="techer"), r"the method reads no 'techer' \(did you mean 'teacher'"),
        (
            dict(prompt=8),
            "evaluators.judged: prompt: 8 must be at least 1 and less than the 8 tokens",
        ),
        (dict(temperature=-1.0), "temperature: -1.0 must be 0"),
        (dict(data=None), "data: name the split"),
    ],
)
def test_what_cannot_be_judged_is_refused(tmp_path, evaluator, message):
    (tmp_path / "teacher").mkdir()
    (tmp_path / "teacher" / "config.json").write_text(json.dumps(small(**LM).values))
    evaluators = dict(judged={"type": "judged", "data": "test", **evaluator})
    with pytest.raises(UserError, match=message):
        setup = assemble(small(**LM, method=METHOD, evaluators=evaluators), tmp_path / "x")
        check_evaluators(setup, tmp_path / "x")
