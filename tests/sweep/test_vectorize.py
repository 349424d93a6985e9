"""Many trials at once give each one's own numbers, and each one's ordinary folder."""

import json

import jax
import numpy as np
import pytest

from bigjax.build import together as mapping
from bigjax.config.resolve import load, resolve
from bigjax.core.errors import UserError
from bigjax.loop.together import train_together
from bigjax.loop.train import Stopped, train
from bigjax.run.writers import read_metrics
from bigjax.sweep.drive import Plan, jobs
from bigjax.sweep.trials import expand
from tests.sweep.test_run import Here, run, tables
from tests.sweep.toy import rates, temperatures


def test_vectorised_equals_sequential_down_to_the_last_bit_of_the_parameters(tmp_path):
    sweep = temperatures(1.0, 4.0, overrides={"evaluate.every": 4})
    run(sweep, tmp_path / "one")
    found, _ = run(sweep, tmp_path / "all", vectorize=64)
    assert tables(tmp_path / "one") == tables(tmp_path / "all")
    for row in found.rows:
        one, together = (row.trial.folder(tmp_path / name) for name in ("one", "all"))
        assert read_metrics(one / "metrics.jsonl") == read_metrics(together / "metrics.jsonl")
        results = [json.loads((f / "result.json").read_text()) for f in (one, together)]
        assert results[0]["fingerprint"] == results[1]["fingerprint"]
        assert load(one / "config.json") == load(together / "config.json")
        manifests = [json.loads((f / "manifest.json").read_text()) for f in (one, together)]
        for key in ("seed", "config_fingerprint", "data", "versions"):
            assert manifests[0][key] == manifests[1][key]
        assert (together / "report.html").exists()


@pytest.mark.slow
def test_through_vmap_losses_agree_to_1e_6(tmp_path, monkeypatch):
    trials = expand(rates(1e-2, 1e-3))
    for name, backend in (("one", "cpu"), ("all", "an accelerator")):
        mapping._MAPPED.clear()
        monkeypatch.setattr(jax, "default_backend", lambda backend=backend: backend)
        configs = [trial.config for trial in trials]
        folders = [trial.folder(tmp_path / name) for trial in trials]
        train_together(configs, folders, stop=lambda: False)
    mapping._MAPPED.clear()
    for trial in trials:
        one, together = (
            [line["train/loss"] for line in read_metrics(trial.folder(tmp_path / name) / "metrics.jsonl") if "train/loss" in line]
            for name in ("one", "all")
        )  # fmt: skip
        assert len(one) == 12
        np.testing.assert_allclose(one, together, rtol=1e-6)


def test_a_teacher_trained_with_others_is_a_run_like_any_other(tmp_path):
    from bigjax.loop.open import open_run

    found, _ = run(temperatures(1.0, seeds=1), tmp_path / "s", vectorize=64)
    (teacher,) = (t for t in expand(found.sweep) if not t.in_table)
    folder = teacher.folder(tmp_path / "s")
    state = open_run(folder).state
    assert int(state.step) == 12
    again = train(teacher.config, folder)
    assert again == json.loads((folder / "result.json").read_text())


def test_one_bad_trial_fails_alone_and_says_what_it_says_by_itself(tmp_path):
    sweep = rates(1e30, 1e-2)
    run(sweep, tmp_path / "one")
    found, _ = run(sweep, tmp_path / "all", vectorize=64)
    assert tables(tmp_path / "one") == tables(tmp_path / "all")
    assert [row.status for row in found.rows] == ["failed", "failed", "done", "done"]


def test_a_stop_keeps_nothing_and_the_next_start_ends_in_the_same_table(tmp_path):
    left = 7

    def stop():
        nonlocal left
        left -= 1
        return left <= 0

    sweep = rates(1e-2, 1e-3)
    with pytest.raises(Stopped):
        run(sweep, tmp_path / "s", stop=stop, vectorize=64)
    run(sweep, tmp_path / "s", vectorize=64)
    run(sweep, tmp_path / "whole")
    assert tables(tmp_path / "s") == tables(tmp_path / "whole")


def test_jobs_hold_what_can_run_together_and_no_more_than_asked(tmp_path):
    points = [
        {"model.widths": w, "optimizer.learning_rate": r} for w in ((8,), (9,)) for r in (1, 2)
    ]
    trials = expand(rates(points=points, seeds=3))
    plan = Plan(Here(), tmp_path, lambda: False, vectorize=4)
    found = [[(t.point["model.widths"], t.seed) for t in job] for job in jobs(trials, plan)]
    assert [len(job) for job in found] == [3, 3, 3, 3]
    assert all(len({widths for widths, _ in job}) == 1 for job in found)


def test_what_cannot_run_together_is_refused(tmp_path):
    a, b = (
        t.config
        for t in expand(rates(points=[{"model.widths": (8,)}, {"model.widths": (9,)}], seeds=1))
    )
    with pytest.raises(UserError, match="one by one"):
        train_together([a, b], [tmp_path / "a", tmp_path / "b"], stop=lambda: False)
    (rewinding,) = expand(rates(1e-2, seeds=1, overrides={"check.policy": "rewind"}))
    with pytest.raises(UserError, match="rewind"):
        train_together([rewinding.config], [tmp_path / "a"], stop=lambda: False)


@pytest.mark.slow
def test_written_texts_are_judged_as_those_of_runs_alone(tmp_path):
    """Sequence to sequence: evaluation writes tokens, and BLEU is of texts."""
    words = ["the", "cat", "sat", "on", "a", "mat", "and", "the", "dog", "ran", "to", "it"]
    for split, start in (("train", 0), ("test", 3)):
        rows = [
            {
                "source": " ".join(words[i % 7 : i % 7 + 4]),
                "target": " ".join(words[i % 5 : i % 5 + 3]),
            }
            for i in range(start, start + 16)
        ]
        (tmp_path / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    raw = dict(
        train=dict(steps=2, batch_size=8),
        data=dict(
            source=dict(
                type="text_pairs",
                path=str(tmp_path / "{split}.jsonl"),
                tokenizer="bpe-300",
                length=8,
                data_dir=str(tmp_path / "data"),
            ),
            splits=dict(train="train", test="test"),
        ),
        model=dict(type="t5", vocab=300, layers=1, width=8, heads=2, head_width=4, mlp_width=16),
        task=dict(type="seq2seq"),
        optimizer=dict(type="adam", learning_rate=0.01),
        evaluate=dict(splits=("test",), batch_size=8),
        log=dict(tensorboard=False),
    )
    configs = [resolve(raw, [f"optimizer.learning_rate={rate}"]) for rate in (0.01, 0.02)]
    folders = [tmp_path / f"together{i}" for i in range(2)]
    results, failures = train_together(configs, folders, stop=lambda: False)
    assert not failures
    for i, config in enumerate(configs):
        alone = train(config, tmp_path / f"alone{i}")
        assert "eval/test/bleu" in alone["metrics"]
        assert results[i]["metrics"] == alone["metrics"]
