"""What a sweep chooses by where it does not say: the task's metric, held-out rows, one look at the test."""

import dataclasses
import pkgutil

import numpy as np
import pytest

import experiments
from bigjax.config.config import target_of
from bigjax.config.names import NAMES
from bigjax.core.errors import UserError
from bigjax.sweep import Sweep, over
from bigjax.sweep.choose import cut
from bigjax.sweep.drive import conclude
from bigjax.sweep.trials import check_data, complete, expand
from bigjax.tasks import scores
from tests.sweep.toy import SPLITS

RATE = "optimizer.learning_rate"
NO_VALIDATION = {"data.splits": {**SPLITS, "train": "train"}, "evaluate.splits": ("test",)}
del NO_VALIDATION["data.splits"]["validation"]
ALL = [m.name for m in pkgutil.iter_modules(experiments.__path__) if not m.ispkg]
EXPERIMENTS = [name for name in ALL if not name.startswith("_")]


def bare(**more):
    return Sweep("tests.sweep.toy", points=over(RATE, [1e-2, 1e-3]), **more)


WITH_VALIDATION = (  # a validation split of their own
    "digits_omitted_class",
    "efficientnet_qat",
    "fashion_mnist_distill",
    "fashion_mnist_distill_methods",
    "fashion_mnist_prune",
    "mnist1d_consistent_teacher",
)


TENTH = ("train[:90%]", "train[90%:]")
PARTS = {"brown_gpt_distill": ("train[:4%]", "train[4%:5%]")}  # whose students see 5 % of the text


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_every_experiment_takes_a_grid_without_another_word(name):
    plain = Sweep(f"experiments.{name}", points=over(RATE, [1e-3, 3e-4]), seeds=2)
    try:
        sweep = complete(plain)
    except UserError as error:  # a published checkpoint that is not on this machine says the shape
        assert "fetch_data" in str(error)
        return
    shown = [trial for trial in expand(sweep) if trial.in_table]
    assert len(shown) == 4
    _, split, metric = sweep.metric.split("/")
    config = shown[0].config
    assert split == "validation" and split in config.get("evaluate.splits")
    assert metric == config.make("task").MAIN_METRIC[0]
    train, held_out = (config.get("data.splits")[name] for name in ("train", split))
    if name not in WITH_VALIDATION:
        assert (train, held_out) == PARTS.get(name, TENTH) and held_out in sweep.note
    if "test" in config.get("data.splits"):
        assert sweep.test_metric == f"eval/test/{metric}"
    alone = complete(dataclasses.replace(plain, select_on_test=True))  # suffices
    if "test" in config.get("data.splits"):
        assert alone.metric == f"eval/test/{metric}" and alone.test_metric is None
        own = expand(alone)[0].config.get("data.splits")
        assert ("validation" in own) == (name in WITH_VALIDATION)


def test_every_task_names_a_main_metric_whose_better_end_is_known():
    for name in NAMES["task"]:
        metric, mode = target_of("task", name, "config.task").MAIN_METRIC
        assert scores.mode(metric) == mode


def test_metrics_know_their_better_end():
    more = ("accuracy", "top_5", "f1_macro", "rougeL", "bleu", "r2", "roc_auc", "spearman")
    less = ("loss", "rmse", "mae", "errors", "bits_per_byte", "perplexity", "ece")
    assert {scores.mode(name) for name in more} == {"max"}
    assert {scores.mode(name) for name in less} == {"min"}
    assert scores.mode("charm") is None


def test_a_metric_of_ones_own_needs_a_mode():
    with pytest.raises(UserError, match="--mode=max or --mode=min"):
        complete(bare(metric="eval/validation/charm"))
    assert complete(bare(metric="eval/validation/charm", mode="min")).mode == "min"


def test_a_validation_split_that_is_there_is_used_and_evaluated():
    sweep = complete(bare(overrides={"evaluate.splits": ("test",)}))
    assert sweep.metric == "eval/validation/accuracy" and sweep.note == ""
    (config, *_) = (trial.config for trial in expand(sweep))
    assert config.get("evaluate.splits") == ("test", "validation")
    assert config.get("data.splits")["train"] == SPLITS["train"]


@pytest.mark.parametrize(
    ("train", "rest", "held_out"),
    [
        ("train", "train[:90%]", "train[90%:]"),
        ("train[:80%]", "train[:72%]", "train[72%:80%]"),
        ("train[20%:]", "train[20%:92%]", "train[92%:]"),
        ("train[:1000]", "train[:900]", "train[900:1000]"),
        ("train[100:205]", "train[100:195]", "train[195:205]"),
    ],
)
def test_the_last_tenth_of_train_is_cut_off(train, rest, held_out):
    assert cut(train) == (rest, held_out)


@pytest.mark.parametrize(
    "train", ["train[100:]", "train+extra", "train[-50%:]", "train[10:50%]", "train[5%:900]"]
)
def test_a_split_without_a_clear_end_is_refused_with_what_to_write(train):
    with pytest.raises(UserError, match=r"--config.data.splits.validation=SPLIT"):
        cut(train)


def test_points_that_change_the_data_are_not_cut():
    sweep = bare(overrides=NO_VALIDATION)
    points = over("data.splits.train", ["train[:100]", "train[:200]"])
    with pytest.raises(UserError, match="change data"):
        complete(dataclasses.replace(sweep, points=points))


def test_rows_in_order_of_their_classes_are_not_held_out(tmp_path):
    image, label = np.zeros((1000, 8, 8, 1), np.uint8), np.arange(1000, dtype=np.int32) // 100
    for split in ("train", "test"):
        np.savez(tmp_path / f"{split}.npz", image=image, label=label)
    source = {"data.source": {"type": "npz", "directory": str(tmp_path)}}
    sweep = complete(bare(overrides={**NO_VALIDATION, **source}))
    with pytest.raises(UserError, match=r"no example of class 0, 1, .* train is in order"):
        check_data(sweep, expand(sweep))
    np.savez(tmp_path / "train.npz", image=image, label=np.arange(1000, dtype=np.int32) % 10)
    check_data(sweep, expand(sweep))


def test_a_held_out_sweep_says_so_and_prints_the_test_metric_of_the_chosen_once(tmp_path):
    from tests.sweep.test_results import finish

    sweep = complete(bare(overrides=NO_VALIDATION, seeds=2))
    trials = finish(sweep, tmp_path, lambda point, seed: (0.8 + point[RATE], 0.7))
    conclude(sweep, trials, tmp_path)
    text = (tmp_path / "sweep.md").read_text()
    assert "10 % of train (train[90%:]) were held out" in text
    assert text.count("eval/test/accuracy") == 1 and "eval/test/accuracy 0.7 " in text
