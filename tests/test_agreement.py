"""The evaluator of a student beside its teacher: every number by hand, and its place on the page."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import softmax
from scipy.stats import entropy

from bigjax.build.assemble import assemble
from bigjax.core.errors import UserError
from bigjax.loop.agreement import metrics_of, sums_of_rows, with_intervals
from bigjax.loop.evaluators import check_evaluators
from bigjax.loop.open import open_run
from bigjax.loop.train import train
from bigjax.report.page import write_report
from bigjax.tasks.classification import Classification
from bigjax.tasks.masked_lm import MaskedLM
from tests.small import small

RNG = np.random.default_rng(1)
SHORT = ("train.steps=8", "evaluate.splits=()", "checkpoint.every='end'")
METHOD = dict(type="distill", teacher="../teacher", temperature=2.0, alpha=0.9)


def ece(p, right):
    """Guo et al. 2017, eq. 3, bin by bin."""
    sure, total = p.max(1), 0.0
    for m in range(15):
        inside = (sure > m / 15) & (sure <= (m + 1) / 15)
        if inside.any():
            total += inside.sum() * abs(right[inside].mean() - sure[inside].mean())
    return total / len(p)


def test_every_metric_of_classes_by_hand():
    t, s = (2 * RNG.normal(size=(40, 6)) for _ in range(2))
    labels, mask = RNG.integers(0, 6, 40), (np.arange(40) % 8 > 0).astype(np.float32)
    batch = {"label": jnp.asarray(labels), "mask": jnp.asarray(mask)}
    rows = sums_of_rows(Classification(), *(jnp.asarray(x, jnp.float32) for x in (t, s)), batch)
    found = metrics_of(jax.tree.map(lambda x: np.asarray(x, np.float64)[mask > 0].sum(0), rows))
    t, s, labels = (x[mask > 0] for x in (t, s, labels))
    p, q = softmax(t, axis=1), softmax(s, axis=1)
    expected = {
        "agreement": np.mean(t.argmax(1) == s.argmax(1)),
        "kl": entropy(p, q, axis=1).mean(),
        "teacher_accuracy": np.mean(t.argmax(1) == labels),
        "student_accuracy": np.mean(s.argmax(1) == labels),
        "teacher_ece": ece(p, t.argmax(1) == labels),
        "student_ece": ece(q, s.argmax(1) == labels),
    }
    assert found == pytest.approx(expected, rel=1e-5)


def test_of_tokens_those_count_that_the_loss_counts():
    t, s = (jnp.asarray(RNG.normal(size=(3, 4, 5)), jnp.float32) for _ in range(2))
    labels = np.where(RNG.random((3, 4)) < 0.5, RNG.integers(0, 5, (3, 4)), -100)
    batch = {"labels": jnp.asarray(labels), "mask": jnp.ones(3)}
    rows = sums_of_rows(MaskedLM(), t, s, batch)
    np.testing.assert_array_equal(rows["count"], (labels >= 0).sum(1))
    alike = (np.asarray(t).argmax(-1) == np.asarray(s).argmax(-1)) & (labels >= 0)
    np.testing.assert_array_equal(rows["agreement"], alike.sum(1))


def test_the_interval_is_that_of_a_share():
    """Of 400 rows that agree in 0.8: the normal interval, 0.8 +- 1.96 sqrt(0.8 0.2 / 400)."""
    bins = {name: np.ones((400, 15)) for name in ("count", "correct", "confidence")}
    one = np.ones(400)
    rows = {"count": one, "agreement": (np.arange(400) % 5 > 0) * 1.0, "kl": one}
    rows |= {f"{name}_correct": one for name in ("teacher", "student")}
    rows |= {f"{name}_bins": bins for name in ("teacher", "student")}
    found = with_intervals(rows)
    assert found["agreement"] == 0.8
    assert found["agreement_low"] == pytest.approx(0.8 - 0.0392, abs=0.005)
    assert found["agreement_high"] == pytest.approx(0.8 + 0.0392, abs=0.005)
    assert found["kl_low"] == found["kl_high"] == 1.0


TEACHER = dict(type="mlp", widths=(16,), outputs=10)


@pytest.mark.slow
def test_a_run_reports_how_alike_it_is_to_its_teacher(tmp_path):
    folder = tmp_path
    train(small(*SHORT, model=TEACHER), folder / "teacher")
    evaluators = dict(alike=dict(type="agreement", data="test", timed=3))
    cached = {**METHOD, "cache": "../cache"}  # also where no teacher is in the program
    train(small(*SHORT, method=cached, evaluators=evaluators), folder / "student")
    metrics = json.loads((folder / "student" / "result.json").read_text())["metrics"]
    found = {k.removeprefix("eval/alike/"): v for k, v in metrics.items()}
    teacher, student = (open_run(folder / name) for name in ("teacher", "student"))
    images = student.setup.sources["test"].read(np.arange(797))["image"] / np.float32(16)
    t, s = (run.model.apply(run.variables, images, train=False) for run in (teacher, student))
    assert found["agreement"] == pytest.approx(np.mean(t.argmax(1) == s.argmax(1)))
    assert found["agreement_low"] < found["agreement"] < found["agreement_high"]
    of = lambda width: 64 * width + width + width * 10 + 10  # noqa: E731
    assert found["parameters_ratio"] == pytest.approx(of(8) / of(16))
    assert found["flops_ratio"] == pytest.approx(0.5)
    assert found["latency_ratio_low"] <= found["latency_ratio"] <= found["latency_ratio_high"]
    page = write_report(folder / "student").read_text()
    assert "95 % intervals" in page
    assert "eval/alike/agreement" in page
    assert "agreement_low" not in page


@pytest.mark.parametrize(
    ("evaluator", "message"),
    [
        (dict(teacher="techer"), r"the method reads no 'techer' \(did you mean 'teacher'"),
        (dict(timed=-1), "timed: -1 must be 0 or more"),
        (dict(data=None), "data: name the split"),
    ],
)
def test_what_cannot_be_compared_is_refused(tmp_path, evaluator, message):
    folder = tmp_path
    (folder / "teacher").mkdir()
    values = small(*SHORT, model=TEACHER).values
    (folder / "teacher" / "config.json").write_text(json.dumps(values))
    evaluators = dict(alike={"type": "agreement", "data": "test", **evaluator})
    with pytest.raises(UserError, match=rf"config.evaluators.alike: .*{message}"):
        setup = assemble(small(*SHORT, method=METHOD, evaluators=evaluators), folder / "x")
        check_evaluators(setup, folder / "x")
