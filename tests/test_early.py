"""Early stopping and best weights at the end, by config; callbacks in the Python API."""

import json
import math

import jax
import numpy as np
import pytest

import bigjax
from bigjax.core.errors import UserError
from bigjax.core.state import params_fingerprint
from bigjax.loop.open import open_run
from bigjax.loop.record import since_best
from bigjax.loop.train import train
from bigjax.run.checkpoint.leaves import restore_leaves
from tests.small import small, small_config

NAN = math.nan


@pytest.mark.parametrize(
    ("scores", "mode", "since"),
    [
        ([], "max", 0),
        ([0.9], "max", 0),
        ([0.9, 0.6, 0.7], "max", 2),
        ([0.9, 0.9], "max", 1),
        ([NAN, NAN], "min", 2),
        ([NAN, 0.5, NAN], "min", 1),
        ([0.5, 0.6, 0.4], "min", 0),
    ],
)
def test_evaluations_since_the_best(scores, mode, since):
    assert since_best(scores, mode) == since


# The loss falls, and the largest is called best: the first evaluation is, and none after it.
EARLY = [
    "train.steps=20", "evaluate.every=2", "checkpoint.every=2", "checkpoint.keep=1",
    "checkpoint.best=eval/test/loss", "checkpoint.best_mode=max", "checkpoint.patience=2",
]  # fmt: skip


@pytest.mark.parametrize(
    ("best", "said"),
    [
        ("eval/tset/loss", "no eval/NAME/METRIC of a NAME in .*: test$"),
        ("accuracy", "no eval/NAME/METRIC"),
        ("eval/test/acuracy", "no metric 'eval/test/acuracy' .did you mean 'eval/test/accuracy'"),
    ],
)
def test_a_metric_that_nothing_measures_is_told_not_waited_for(best, said, tmp_path):
    with pytest.raises(UserError, match=said):
        train(small(*EARLY, f"checkpoint.best={best}"), tmp_path / "run")


def result_of(folder):
    return json.loads((folder / "result.json").read_text())


def test_a_run_ends_when_nothing_gets_better_and_is_its_best_save(tmp_path):
    folder = tmp_path / "run"
    result = train(small(*EARLY, "checkpoint.final=best"), folder)
    assert (result["step"], result["best_step"]) == (6, 2)
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    losses = {x["step"]: x["eval/test/loss"] for x in lines if "eval/test/loss" in x}
    assert list(losses) == [2, 4, 6] and max(losses, key=losses.get) == 2
    assert result["metrics"]["eval/test/loss"] == losses[2]

    run = open_run(folder)
    assert run.step == 2 and run.evaluate("test")["loss"] == pytest.approx(losses[2])
    assert params_fingerprint(run.state.params) == result["fingerprint"]
    name, leaf = next(iter(_named(run.state.params)))
    # A teacher of another run is read by this function.
    (read,) = restore_leaves(folder, {name: leaf}).values()
    np.testing.assert_array_equal(read, leaf)
    # Finished: nothing is computed again; and with more patience it goes on from its newest save.
    assert train(small(*EARLY, "checkpoint.final=best"), folder) == result_of(folder)
    longer = [text for text in EARLY if "patience" not in text]
    assert train(small(*longer), folder)["step"] == 20
    assert open_run(folder).step == 20


def _named(params):
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        yield "params/" + jax.tree_util.keystr(path, simple=True, separator="/"), leaf


def test_patience_and_final_need_a_metric():
    for key in ("patience=2", "final=best"):
        with pytest.raises(
            UserError, match=r"checkpoint\.\w+: name the metric in config.checkpoint.best"
        ):
            small(f"checkpoint.{key}")


def test_callbacks_see_every_evaluation(tmp_path):
    seen = []

    def callback(step, metrics, state):
        seen.append((step, int(state.step), metrics["eval/test/accuracy"]))

    config = small_config(train=dict(steps=12, batch_size=40))
    run = bigjax.train(config, tmp_path / "run", callbacks=[callback])
    assert [(step, of_state) for step, of_state, _ in seen] == [(6, 6), (12, 12)]
    assert seen[-1][2] == run.metrics()["eval/test/accuracy"].iloc[-1]
