"""The config reader: what it refuses, what it fills in, where it says a value came from."""

import dataclasses
import json

import pytest
from ml_collections import ConfigDict

from bigjax.config import resolve as config
from bigjax.core import optax_names
from bigjax.core.errors import UserError
from bigjax.run.manifest import differences
from bigjax.verbs.inspect import show


def raw(**changes):
    values = dict(
        train=dict(steps=10, batch_size=8),
        data=dict(source=dict(type="tfds", name="digits"), splits=dict(train="train", test="test")),
        model=dict(type="mlp", widths=(4,), outputs=10),
        task=dict(type="classification"),
        optimizer=dict(type="adamw", learning_rate=1e-3),
    )
    values.update(changes)
    return ConfigDict(values)


def test_what_is_evaluated_by_default_is_all_that_is_not_trained_on():
    splits = dict(train="train[:80%]", validation="train[80%:]", test="test", train_more="train")
    data = dict(source=dict(type="tfds", name="digits"), splits=splits)
    found = config.resolve(raw(data=data))
    assert set(found.get("evaluate.splits")) == {"validation", "test"}
    assert found.origins["evaluate.splits"] == "data" and found.get("evaluate.every") == 0.1
    assert config.resolve(raw(data=data), ["evaluate.splits=()"]).get("evaluate.splits") == ()


REFUSED = {
    # override on the command line -> words the one-line message must hold
    "modle.type=mlp": ["config.modle", "did you mean 'model'"],
    "model.widhts=(3,)": ["config.model.widhts", "did you mean 'widths'"],
    "model.widths=3": ["config.model.widths", "3", "list"],
    "model.widths=('a',)": ["config.model.widths", "'a'"],
    "model.outputs=ten": ["config.model.outputs", "'ten'", "whole number"],
    "model.outputs=1.5": ["config.model.outputs", "1.5"],
    "model.outputs=True": ["config.model.outputs", "True"],
    "model.dropout=high": ["config.model.dropout", "'high'", "number"],
    "model.batch_norm=1": ["config.model.batch_norm", "True or False"],
    "model.type=mpl": ["unknown model 'mpl'", "did you mean 'mlp'"],
    "model.type=3": ["config.model.type"],
    "model.type=no.such:Thing": ["cannot import 'no.such:Thing'"],
    "model.type=bigjax.models.mlp:MPL": ["cannot import"],
    "task.type=clasification": ["did you mean 'classification'"],
    "task.label_smoothing=1.5": ["label_smoothing", "1.5"],
    "task.smoothing=0.1": ["config.task.smoothing"],
    "optimizer.type=adamv": ["optimizer.type", "adamv", "did you mean"],
    "optimizer.learning_rate=fast": ["config.optimizer.learning_rate", "'fast'"],
    "optimizer.learning_rate=-1": ["learning_rate", "-1"],
    "optimizer.beta1=0.9": ["config.optimizer.beta1"],
    "optimizer.b1=big": ["config.optimizer.b1", "'big'"],
    "optimizer.mask=None": ["config.optimizer.mask"],
    "optimizer.clip_norm=0": ["clip_norm"],
    "optimizer.schedule.type=cosin": ["did you mean 'cosine'"],
    "optimizer.schedule.warmup=3": ["config.optimizer.schedule.warmup", "warmup_steps"],
    "optimizer.schedule.warmup_steps=-3": ["warmup_steps", "-3"],
    "optimizer.learning_rate_rules=3": ["config.optimizer.learning_rate_rules"],
    "train.step=5": ["config.train.step", "did you mean 'steps'"],
    "train.steps=0": ["config.train.steps", "more than 0"],
    "train.steps=1.5": ["config.train.steps"],
    "train.batch_size=0": ["config.train.batch_size"],
    "train.accumulate=3": ["config.train.accumulate", "divide"],
    "train.ema_decay=1.0": ["config.train.ema_decay"],
    "train=5": ["config.train", "section"],
    "train.steps.x=5": ["config.train.steps has no keys"],
    "data.splits.train=3": ["config.data.splits"],
    "data.source.type=tfd": ["did you mean 'tfds'"],
    "data.source.nme=digits": ["did you mean 'name'"],
    "data.workers=0": ["config.data.workers"],
    "data.preprocess=(dict(type='normalise'),)": ["config.data.preprocess"],
    "data.preprocess=3": ["config.data.preprocess"],
    "evaluate.splits=('tst',)": ["config.evaluate.splits", "did you mean 'test'"],
    "evaluate.every=0": ["config.evaluate.every", "0"],
    "evaluate.every=sometimes": ["config.evaluate.every", "'sometimes'"],
    "checkpoint.keep=0": ["config.checkpoint.keep"],
    "checkpoint.best_mode=most": ["config.checkpoint.best_mode", "'max'", "'min'"],
    "checkpoint.every=-1": ["config.checkpoint.every"],
    "log.every=0": ["config.log.every"],
    "log.tensorboard=yes": ["config.log.tensorboard", "True or False"],
    "mesh.data=0": ["config.mesh.data"],
    "mesh.fsdp=-1": ["only one axis", "data and fsdp"],
    "mesh.fdsp=2": ["did you mean 'fsdp'"],
    "distill.temperature=2": ["config.method: teacher: name the run that teaches"],
    "distill=dict(teacher='x', alpha=2)": ["config.distill"],
    "seed=-1": ["config.seed"],
    "seed=1.5": ["config.seed"],
    "seed": ["--config.KEY=VALUE"],
}


@pytest.mark.parametrize("override", REFUSED)
def test_wrong_values_are_refused_with_the_key_and_the_reason(override):
    with pytest.raises(UserError) as error:
        config.resolve(raw(), [override])
    message = str(error.value)
    assert "\n" not in message
    for words in REFUSED[override]:
        assert words in message


@pytest.mark.parametrize("section", ["model", "task", "optimizer", "data"])
def test_missing_sections_are_named(section):
    given = raw()
    del given[section]
    with pytest.raises(UserError, match=f"config.{section}"):
        config.resolve(given)


def test_missing_keyword_is_named_with_its_type():
    with pytest.raises(UserError, match=r"config.model.patch is missing.*whole number"):
        config.resolve(raw(model=dict(type="vit", outputs=3)))


@pytest.mark.parametrize("train", [{}, dict(steps=3, epochs=2), dict(epochs=1, examples=10)])
def test_exactly_one_run_length(train):
    with pytest.raises(UserError, match="exactly one of steps, epochs, examples"):
        config.resolve(raw(train=train))


def test_a_length_on_the_command_line_replaces_the_one_in_the_file():
    resolved = config.resolve(raw(train=dict(epochs=3)), ["train.steps=7"])
    assert resolved.section("train").total_steps(1000) == 7


def test_total_steps_cover_the_examples_asked_for():
    train = config.resolve(raw(train=dict(epochs=10, batch_size=64))).section("train")
    assert train.total_steps(60_000) == 9375
    train = config.resolve(raw(train=dict(examples=100, batch_size=64))).section("train")
    assert train.total_steps(60_000) == 2


def test_every_value_says_where_it_came_from():
    resolved = config.resolve(raw(), ["optimizer.b2=0.95"])
    assert resolved.origins["optimizer.b2"] == "command line"
    assert resolved.origins["optimizer.type"] == "experiment"
    assert resolved.origins["optimizer.b1"] == "default"
    assert set(resolved.origins) == set(config.flatten(resolved.values))
    assert "optimizer.b2" in show(resolved)


def test_integers_become_floats_where_floats_are_meant():
    one = config.resolve(raw(), ["optimizer.learning_rate=1"])
    same = config.resolve(raw(), ["optimizer.learning_rate=1.0"])
    assert one.fingerprint == same.fingerprint


def test_fingerprint_is_of_the_values_and_not_of_their_order_or_origin():
    given = raw()
    swapped = ConfigDict(dict(reversed(list(given.to_dict().items()))))
    assert config.resolve(given).fingerprint == config.resolve(swapped).fingerprint
    assert (
        config.resolve(given, ["train.steps=10"]).fingerprint == config.resolve(given).fingerprint
    )
    assert (
        config.resolve(given, ["train.steps=11"]).fingerprint != config.resolve(given).fingerprint
    )


def test_program_fingerprint_ignores_traced_scalars_only():
    base = config.resolve(raw())
    for override in (
        "optimizer.learning_rate=0.5",
        "optimizer.weight_decay=0.1",
        "seed=3",
        "log.every=7",
    ):
        assert config.resolve(raw(), [override]).program_fingerprint == base.program_fingerprint
    for override in ("optimizer.b1=0.5", "model.widths=(5,)", "train.batch_size=16", "mesh.data=2"):
        assert config.resolve(raw(), [override]).program_fingerprint != base.program_fingerprint


def test_config_json_reads_back_as_the_same_config(tmp_path):
    resolved = config.resolve(raw(), ["model.widths=(7,8)"])
    (tmp_path / "config.json").write_text(json.dumps(resolved.values))
    again = config.load(tmp_path / "config.json")
    assert again.values == resolved.values
    assert again.fingerprint == resolved.fingerprint


def test_a_broken_config_json_is_the_users_error(tmp_path):
    (tmp_path / "config.json").write_text('{"train": ')
    with pytest.raises(UserError, match=r"config\.json"):
        config.load(tmp_path / "config.json")


def test_difference_names_keys_and_both_values():
    old, new = config.resolve(raw()), config.resolve(raw(), ["model.widths=(5,)", "log.every=3"])
    changed = differences(old.values, new.values, ignore=("log",))
    assert changed == ["model.widths: (4,) -> (5,)"]


def test_objects_are_refused_since_they_neither_print_nor_hash():
    with pytest.raises(UserError, match="plain values only"):
        config.resolve(raw(train=dict(steps=print)))


@dataclasses.dataclass(frozen=True)
class MyTask:
    """A part that a user brings along."""

    input: str = "image"
    weight: float = 1.0


def test_users_parts_are_named_by_path_and_checked_like_our_own():
    task = dict(type=f"{__name__}:MyTask", weight=2)
    assert config.resolve(raw(task=task)).make("task") == MyTask(weight=2.0)
    with pytest.raises(UserError, match=r"config.task.wait.*did you mean 'weight'"):
        config.resolve(raw(task=dict(type=f"{__name__}:MyTask", wait=2)))


def test_models_are_built_with_their_keywords():
    model = config.resolve(raw()).make("model")
    assert (model.widths, model.outputs, model.dropout) == ((4,), 10, 0.0)


def test_reading_a_config_touches_no_device():
    import subprocess
    import sys

    code = (
        "from tests.test_config import raw; from bigjax.config import resolve as config; config.resolve(raw());"
        "from jax._src import xla_bridge; assert not xla_bridge.backends_are_initialized()"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("name", sorted(optax_names.names()))
def test_a_config_read_back_is_the_same_to_the_last_type(name):
    once = config.resolve(raw(optimizer=dict(type=name, learning_rate=1e-3)))
    assert config.resolve(json.loads(json.dumps(once.values))).fingerprint == once.fingerprint


@pytest.mark.parametrize("text", ["True", "False", "3"])
def test_a_value_where_a_section_with_defaults_belongs_is_named(text):
    with pytest.raises(UserError, match=rf"config\.optimizer\.schedule: {text} must be a section"):
        config.resolve(raw(), [f"optimizer.schedule={text}"])


@pytest.mark.parametrize("key", ["model", "data.source", "adapt"])
def test_a_list_where_one_section_belongs_is_named(key):
    where = r"config\.adapt\[0\]" if key == "adapt" else rf"config\.{key}"
    with pytest.raises(UserError, match=rf"{where}: \(.*\) must be a section"):
        config.resolve(raw(), [f"{key}=((),)"])
