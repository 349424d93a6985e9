"""Weights & Biases and MLflow hold what metrics.jsonl holds; without them a run says how to get them."""

import sys

import pytest

from bigjax.core.errors import UserError
from bigjax.loop.train import train
from bigjax.run import trackers
from bigjax.run.writers import Writers
from tests.small import small

STEPS = {1: 0.5, 2: 0.25}


def write(workdir, name):
    (workdir / "config.json").write_text('{"optimizer": {"learning_rate": 0.125}}')
    with Writers(
        workdir, tensorboard=False, progress=False, total_steps=2, trackers=(name,)
    ) as writers:
        for step, loss in STEPS.items():
            writers.write(step, {"train/loss": loss, "eval/test/confusion_matrix": [[1, 2]]})


def test_mlflow_holds_the_config_and_every_scalar_in_local_files(tmp_path):
    mlflow = pytest.importorskip("mlflow", reason="pip install 'bigjax[mlflow]'")
    write(tmp_path, "mlflow")
    client = mlflow.MlflowClient((tmp_path / "mlflow").as_uri())
    (run,) = client.search_runs([client.get_experiment_by_name("bigjax").experiment_id])
    assert run.data.params == {"optimizer.learning_rate": "0.125"}
    history = client.get_metric_history(run.info.run_id, "train/loss")
    assert {point.step: point.value for point in history} == STEPS
    assert run.info.status == "FINISHED"


def test_wandb_holds_the_config_and_every_scalar_offline(tmp_path):
    pytest.importorskip("wandb", reason="pip install 'bigjax[wandb]'")
    write(tmp_path, "wandb")
    (record,) = tmp_path.glob("wandb/offline-run-*/*.wandb")
    content = record.read_bytes()
    assert b"learning_rate" in content and content.count(b"train/loss") >= len(STEPS)


def test_one_that_is_unknown_or_not_installed_is_refused_at_once(tmp_path, monkeypatch):
    with pytest.raises(UserError, match="did you mean 'wandb'"):
        trackers.check(["wandd"])
    monkeypatch.setattr(sys, "path", [])
    monkeypatch.delitem(sys.modules, "wandb", raising=False)
    with pytest.raises(UserError, match=r"bin/python\S* -m pip install wandb$"):
        write(tmp_path, "wandb")


def test_a_run_with_a_missing_tracker_makes_no_folder(tmp_path, monkeypatch):
    monkeypatch.setattr(trackers.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(
        UserError, match=r"config.log.trackers: 'mlflow' needs .*-m pip install mlflow"
    ):
        train(small("log.trackers=('mlflow',)"), tmp_path / "run")
    assert list(tmp_path.iterdir()) == []
