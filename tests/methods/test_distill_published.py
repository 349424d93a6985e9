"""Teachers from published checkpoints: the same numbers as from the run that was published."""

import json

import jax
import numpy as np
import pytest

from bigjax.build.assemble import assemble
from bigjax.build.references import read_models
from bigjax.core.errors import UserError
from bigjax.loop.open import open_run
from bigjax.loop.train import Stopped, train
from bigjax.pretrained.export import fill_published
from tests.small import small

VIT = dict(type="vit", image=8, patch=4, outputs=10, layers=2, width=8, heads=2, mlp_width=32)
# Little is compiled: what is asked is which numbers a teacher has, not what is learned from it.
SHORT = ("train.steps=2", "evaluate.splits=()", "checkpoint.every='end'")


def method(teacher, **changes):
    return dict(type="distill", teacher=teacher, temperature=3.0, alpha=0.8, **changes)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """ "hub": a published folder."""
    folder = tmp_path_factory.mktemp("published")
    setup = assemble(small(*SHORT, model=VIT), folder / "x")
    publish(setup, setup.start()[0], folder / "hub")
    return folder


@pytest.fixture(scope="module")
def run_folder(folder):
    """And "teacher", a run, with "its_hub", what it publishes."""
    train(small(*SHORT, model=VIT), folder / "teacher")
    run = open_run(folder / "teacher")
    publish(run.setup, run.state, folder / "its_hub")
    return folder


def publish(setup, state, target):
    params = {"params": jax.tree.map(np.asarray, state.params)}
    target.mkdir()
    fill_published(target, params, setup.values["model"], "vit", setup.sources["train"])


@pytest.mark.slow
def test_a_published_teacher_is_the_run_that_was_published(run_folder):
    folder, named = run_folder, str(run_folder / "its_hub")
    setups = [
        assemble(small(*SHORT, method=method(teacher)), folder / "x")
        for teacher in (named, "../teacher")
    ]
    theirs, ours = (setup.frozen()["teacher"] for setup in setups)
    jax.tree.map(np.testing.assert_array_equal, theirs, ours)
    first, second = (setup.program.references["teacher"] for setup in setups)
    assert (first.task, first.preprocess) == (second.task, second.preprocess)


def test_a_folder_in_published_layout_is_known_by_itself(folder):
    config = small(*SHORT, method=method(str(folder / "hub")))
    assert config.get("method.teacher") == dict(source=str(folder / "hub"), family="vit")
    assert config.origins["method.teacher.family"] == "checkpoint"
    assert config.references == {}


def test_its_classes_are_matched_by_the_names_that_it_gives(folder):
    config = small(*SHORT, method=method(str(folder / "hub")))
    words = read_models(config, folder / "x")["teacher"].words
    assert words.classes == tuple(map(str, range(10)))
    path = folder / "hub" / "config.json"
    before = path.read_text()
    try:
        names = {str(i): str((i + 3) % 10) for i in range(10)}
        path.write_text(json.dumps({**json.loads(before), "id2label": names}))
        setup = assemble(config, folder / "x")
        reference = setup.program.references["teacher"]
        assert tuple(reference.model.columns) == tuple((i - 3) % 10 for i in range(10))
        names["4"] = "seven"
        path.write_text(json.dumps({**json.loads(before), "id2label": names}))
        with pytest.raises(UserError, match=r"config.method.teacher: has no class '7'"):
            assemble(config, folder / "x")
    finally:
        path.write_text(before)


@pytest.mark.parametrize("source", ["hub", pytest.param("../teacher", marks=pytest.mark.slow)])
def test_a_teacher_has_its_own_rules_and_precision(folder, source, request):
    if source == "hub":
        source = str(folder / "hub")
    else:
        request.getfixturevalue("run_folder")
    rules = ((r".*/mlp/.*/kernel", "fsdp"), (".*", "replicate"))
    own = dict(source=source, sharding=dict(rules=rules), precision=dict(policy="full_bfloat16"))
    mesh = "mesh.fsdp=8"
    setup = assemble(small(*SHORT, mesh, method=method(own)), folder / "x")
    params = setup.frozen()["teacher"]["params"]
    wide = params["block_0"]["mlp"]["up"]["kernel"]
    assert wide.addressable_shards[0].data.size == wide.size // 8
    assert params["block_0"]["attention"]["query"]["kernel"].sharding.is_fully_replicated
    assert wide.dtype == jax.numpy.bfloat16
    assert setup.program.state.params["dense_0"]["kernel"].dtype == np.float32
    plain = assemble(small(*SHORT, method=method(source)), folder / "x").frozen()
    np.testing.assert_array_equal(
        wide, plain["teacher"]["params"]["block_0"]["mlp"]["up"]["kernel"].astype(wide.dtype)
    )


@pytest.mark.slow
def test_a_published_teacher_online_cached_and_as_a_run_teaches_the_same(run_folder):
    folder, hub = run_folder, str(run_folder / "its_hub")
    methods = dict(run=method("../teacher"), online=method(hub), cached=method(hub, cache="../c"))
    results = [train(small(*SHORT, method=m), folder / name) for name, m in methods.items()]
    assert len({result["fingerprint"] for result in results}) == 1


@pytest.mark.slow
def test_a_changed_checkpoint_is_refused_at_resume(folder):
    run, asked = folder / "resumed", iter([False])
    config = small(*SHORT, method=method(str(folder / "hub")))
    with pytest.raises(Stopped):
        train(config, run, stop=lambda: next(asked, True))
    (folder / "hub").rename(folder / "kept")
    other = assemble(small(*SHORT, "seed=3", model=VIT), folder / "x")
    publish(other, other.start()[0], folder / "hub")
    try:
        with pytest.raises(UserError, match="'teacher' is not the one that this run began with"):
            train(config, run)
    finally:
        (folder / "hub").rename(folder / "changed")
        (folder / "kept").rename(folder / "hub")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(famly="vit"), r"a teacher takes no 'famly' \(did you mean 'family'"),
        (dict(family="vitt"), r"unknown family 'vitt'; known|did you mean 'vit'"),
        (dict(family="bert"), "says it is 'vit', not 'bert'"),
        (dict(source="nowhere", family="vit"), "no file or folder 'nowhere'"),
        (dict(precision=dict(policy="float8")), "'float8' is not one of"),
        (dict(sharding=dict(rules=(("haed/.*", "fsdp"), (".*", None)))), "its own config.sharding.rules: "),
        (dict(model=dict(layers=3)), "layers is 3, the checkpoint has 2"),
    ],
)  # fmt: skip
def test_a_section_that_cannot_be_is_one_line(folder, changes, message):
    section = {"source": str(folder / "hub"), **changes}
    with pytest.raises(UserError, match=f"config.method.*{message}") as raised:
        assemble(small(*SHORT, method=method(section)), folder / "bad")
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    "scan", [False, *(pytest.param(x, marks=pytest.mark.slow) for x in (True, None))]
)
def test_a_student_starts_from_chosen_layers_of_its_teacher(folder, scan, request):
    """DistilBERT's and TinyBERT's start: block 0 of the student is block 1 of the teacher."""
    source, model = folder / "hub", {**VIT, "layers": 1, "scan_layers": bool(scan)}
    if scan is None:  # of a run
        request.getfixturevalue("run_folder")
        source = folder / "teacher"
    else:
        del model["layers"]  # as many as are chosen
    config = small(*SHORT, model=model, init=dict(source=str(source), layers=(1,)))
    ours = dict(assemble(config, folder / "x").start()[0].params)
    whole = small(*SHORT, model=VIT, init=dict(source=str(source)))
    teacher = assemble(whole, folder / "x").start()[0].params
    first = jax.tree.map(lambda x: x[0], ours.pop("blocks")) if scan else ours.pop("block_0")
    jax.tree.map(np.testing.assert_array_equal, first, teacher["block_1"])
    jax.tree.map(np.testing.assert_array_equal, ours, {name: teacher[name] for name in ours})
    other = teacher["block_0"]["mlp"]["up"]["kernel"]
    assert (np.asarray(first["mlp"]["up"]["kernel"]) != other).any()


@pytest.mark.parametrize(
    ("layers", "model", "message"),
    [
        ((0, 1), dict(layers=1), "chooses 2 blocks; config.model.layers is 1"),
        ((5,), dict(layers=1), "has blocks 0 to 1, not 5"),
        ((-1,), dict(layers=1), "must be 0 or more"),
    ],
)
def test_layers_that_are_not_there_are_refused(folder, layers, model, message):
    with pytest.raises(UserError, match=f"config.init.layers: .*{message}"):
        config = small(
            *SHORT, model=VIT | model, init=dict(source=str(folder / "hub"), layers=layers)
        )
        assemble(config, folder / "x")
