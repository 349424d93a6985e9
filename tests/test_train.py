"""Whole runs: the folder they leave, resuming bit for bit, stopping, compiling once."""

import json

import numpy as np
import pytest

from bigjax.build import program, weights
from bigjax.build.assemble import open_sources
from bigjax.config.resolve import load
from bigjax.core.errors import UserError
from bigjax.loop.open import open_run
from bigjax.loop.train import Stopped, train
from bigjax.run.writers import read_metrics
from tests.small import small


def losses(folder):
    return {
        line["step"]: line["train/loss"]
        for line in read_metrics(folder / "metrics.jsonl")
        if "train/loss" in line
    }


def stop_after(calls):
    """A stop request that comes true at the `calls`-th time of asking."""
    asked = iter(range(10**9))
    return lambda: next(asked) >= calls


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "whole"
    return folder, train(small(), folder)


def test_a_run_leaves_the_folder_that_the_design_promises(finished):
    folder, result = finished
    assert {"config.json", "manifest.json", "metrics.jsonl", "result.json", "report.html"} <= {
        p.name for p in folder.iterdir()
    }
    assert (folder / "checkpoints" / "12").is_dir()
    assert json.loads((folder / "result.json").read_text())["fingerprint"] == result["fingerprint"]
    assert len(result["fingerprint"]) == 64
    assert load(folder / "config.json").values == small().values
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["data"]["train"]["examples"] == 1000
    assert len(manifest["data"]["train"]["fingerprint"]) == 64
    assert manifest["devices"]["count"] == 8
    assert set(losses(folder)) == set(range(1, 13))
    evaluated = [
        line["step"] for line in read_metrics(folder / "metrics.jsonl") if "eval/test/loss" in line
    ]
    assert evaluated == [6, 12]


def test_the_same_config_gives_the_same_bits(finished, tmp_path):
    folder, result = finished
    again = train(small(), tmp_path / "again")
    assert again["fingerprint"] == result["fingerprint"]
    assert again["metrics"] == result["metrics"]
    assert losses(tmp_path / "again") == losses(folder)


def test_another_seed_gives_other_bits(finished, tmp_path):
    other = train(small("seed=1", "train.steps=2"), tmp_path / "other")
    assert losses(tmp_path / "other")[1] != losses(finished[0])[1]
    assert other["fingerprint"] != finished[1]["fingerprint"]


@pytest.mark.parametrize("calls", [1, 7, 11])
def test_a_stopped_run_resumes_bit_for_bit(finished, tmp_path, calls):
    folder, result = finished
    with pytest.raises(Stopped):
        train(small(), tmp_path / "run", stop=stop_after(calls))
    assert not (tmp_path / "run" / "result.json").exists()
    resumed = train(small(), tmp_path / "run")
    assert resumed["fingerprint"] == result["fingerprint"]
    assert losses(tmp_path / "run") == losses(folder)
    steps = [line["step"] for line in read_metrics(tmp_path / "run" / "metrics.jsonl")]
    assert steps == sorted(steps)


def test_resume_with_accumulation_batch_norm_and_moving_average_is_bitwise(tmp_path):
    overrides = (
        "train.accumulate=5",
        "model.batch_norm=True",
        "train.ema_decay=0.9",
        "train.steps=7",
    )
    whole = train(small(*overrides), tmp_path / "whole")
    with pytest.raises(Stopped):
        train(small(*overrides), tmp_path / "run", stop=stop_after(3))
    resumed = train(small(*overrides), tmp_path / "run")
    assert resumed["fingerprint"] == whole["fingerprint"]
    assert resumed["metrics"] == whole["metrics"]


def test_a_finished_run_is_not_trained_again(finished):
    folder, result = finished
    before = (folder / "metrics.jsonl").read_bytes()
    assert train(small(), folder)["fingerprint"] == result["fingerprint"]
    assert (folder / "metrics.jsonl").read_bytes() == before


def test_a_folder_with_another_run_is_refused_with_the_differing_keys(finished):
    with pytest.raises(UserError, match=r"optimizer.learning_rate: 0.01 -> 0.02"):
        train(small("optimizer.learning_rate=0.02"), finished[0])


def test_keys_that_change_nothing_computed_may_change(finished):
    folder, result = finished
    assert (
        train(small("log.every=5", "checkpoint.keep=2"), folder)["fingerprint"]
        == result["fingerprint"]
    )


def test_the_train_step_compiles_once_in_a_run_and_after_a_resume(tmp_path):
    program._PROGRAMS.clear()
    with pytest.raises(Stopped):
        train(small("model.widths=(9,)"), tmp_path / "run", stop=stop_after(5))
    train(small("model.widths=(9,)"), tmp_path / "run")
    (built,) = program._PROGRAMS.values()
    assert built.train_step._cache_size() == 1
    assert built.eval_step._cache_size() == 1


def test_runs_that_differ_in_learning_rate_and_seed_share_one_compilation(tmp_path):
    program._PROGRAMS.clear()
    for number, rate in enumerate((0.1, 0.01)):
        overrides = (f"seed={number}", f"optimizer.learning_rate={rate}", "train.steps=3")
        train(small(*overrides), tmp_path / str(number))
    (built,) = program._PROGRAMS.values()
    assert built.train_step._cache_size() == 1


def test_evaluation_counts_every_example_once_whatever_the_batch(finished):
    folder, result = finished
    for size in (8, 200, 1000):
        run = open_run(folder, [f"evaluate.batch_size={size}"])
        values = run.evaluate("test")
        assert np.sum(values["confusion_matrix"]) == 797
        assert values["errors"] == result["metrics"]["eval/test/errors"]
        np.testing.assert_allclose(values["loss"], result["metrics"]["eval/test/loss"], rtol=1e-5)


def test_the_best_checkpoint_is_kept_beside_the_newest(tmp_path):
    overrides = (
        "checkpoint.best=eval/test/loss",
        "checkpoint.best_mode=max",  # the worst loss: surely an early one
        "checkpoint.keep=1",
        "checkpoint.every=2",
        "evaluate.every=2",
    )
    train(small(*overrides), tmp_path / "run")
    kept = sorted(
        int(p.name) for p in (tmp_path / "run" / "checkpoints").iterdir() if p.name.isdigit()
    )
    values = {
        line["step"]: line["eval/test/loss"]
        for line in read_metrics(tmp_path / "run" / "metrics.jsonl")
        if "eval/test/loss" in line
    }
    assert kept == sorted({max(values, key=values.get), 12})


def test_a_batch_that_does_not_divide_is_refused_with_sizes_that_do(tmp_path):
    with pytest.raises(UserError, match=r"batch_size: 12 .* 8 or 16 would"):
        train(small("train.batch_size=12"), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_weights_of_another_run_are_taken_over_by_rules(finished, tmp_path):
    folder, _ = finished
    rules = (("head/.*", None), ("(.*)", r"\1"))
    config = small(init=dict(source=str(folder), rules=rules))
    built = program.build_program(config, open_sources(config)["train"])
    state, _ = weights.initial_state(config, built, tmp_path)
    fresh, _ = weights.initial_state(small(), built, tmp_path)
    trained = weights.read_variables(folder, {"params": built.state.params})["params"]
    np.testing.assert_array_equal(state.params["dense_0"]["kernel"], trained["dense_0"]["kernel"])
    np.testing.assert_array_equal(state.params["head"]["kernel"], fresh.params["head"]["kernel"])
    assert state.step == 0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(init=dict(source="nowhere")), "config.init.source.*holds no run"),
        (dict(init=dict(source="{run}", rules=(("(.*)", r"body/\1"),))), "holds no 'params/body"),
        (
            dict(init=dict(source="{run}"), model=dict(type="mlp", widths=(9,), outputs=10)),
            "has shape",
        ),
        (dict(distill=dict(teacher="nowhere")), "config.method.teacher.*holds no run"),
    ],
)
def test_wrong_sources_of_weights_are_named(finished, tmp_path, changes, message):
    for section in ("init", "distill"):
        if section in changes:
            changes[section] = {
                k: v.format(run=finished[0]) if isinstance(v, str) else v
                for k, v in changes[section].items()
            }
    with pytest.raises(UserError, match=message):
        train(small(**changes), tmp_path / "run")


def test_a_run_stopped_again_and_again_loses_no_evaluation(finished, tmp_path):
    folder, result = finished
    for calls in range(1, 60):  # each start is stopped a little later than the one before
        try:
            again = train(small(), tmp_path / "run", stop=stop_after(calls))
            break
        except Stopped:
            continue
    assert calls > 3 and again["metrics"] == result["metrics"]
    evaluated = [
        [line for line in read_metrics(run / "metrics.jsonl") if "eval/test/loss" in line]
        for run in (folder, tmp_path / "run")
    ]
    assert evaluated[0] == evaluated[1]
