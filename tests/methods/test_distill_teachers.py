"""Teachers: which outputs are which classes, several of them, and one that changed."""

import argparse
import functools
import json

import flax.linen as nn
import jax
import numpy as np
import pytest

from bigjax.build.assemble import assemble
from bigjax.build.classes import Columns, Translated, Words, columns
from bigjax.build.program import build_program
from bigjax.core.errors import UserError
from bigjax.loop.train import Stopped, train
from bigjax.models.gpt2 import GPT2
from bigjax.models.mlp import MLP
from bigjax.verbs.inspect import references
from scripts.benchmarks import distill
from tests.small import small

TWO = dict(
    type="distill",
    teachers=dict(one="../one", two="../two"),
    objectives=dict(
        one=dict(type="soft", teacher="one", weight=0.75),
        two=dict(type="dkd", teacher="two", weight=0.25, temperature=3.0),
    ),
)


def test_outputs_are_matched_by_the_names_of_classes():
    theirs = Words(("bird", "cat", "dog", "Pferd"))
    key = "config.method.teacher"
    assert columns(Words(("bird", "cat", "dog", "Pferd")), theirs, {}, key) is None
    assert columns(Words(("dog", "cat")), theirs, {}, key) == (2, 1)
    assert columns(Words(("horse", "cat")), theirs, {"horse": "Pferd"}, key) == (3, 1)
    assert columns(Words(), theirs, {}, key) is None
    with pytest.raises(
        UserError, match=r"config.method.teacher: has no class 'cats' \(did you mean 'cat'"
    ):
        columns(Words(("dog", "cats")), theirs, {}, key)
    with pytest.raises(UserError, match="this run has no class 'hors'"):
        columns(Words(("horse",)), theirs, {"hors": "Pferd"}, key)
    with pytest.raises(UserError, match=r"horse and cat are both .cat. of config\.method\.teacher"):
        columns(Words(("horse", "cat")), theirs, {"horse": "cat"}, key)
    with pytest.raises(UserError, match="reads other tokens"):
        columns(Words(tokenizer="a" * 64), Words(tokenizer="b" * 64), {}, key)


def test_columns_of_a_model():
    model, x = MLP(widths=(3,), outputs=4), np.ones((2, 5), np.float32)
    variables = model.init(jax.random.key(0), x, train=False)
    whole = model.apply(variables, x, train=False)
    picked = Columns(model, (2, 0)).apply(variables, x, train=False)
    np.testing.assert_array_equal(picked, whole[:, [2, 0]])


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("teachers")
    for seed, name in enumerate(("one", "two")):
        train(small(f"seed={seed}"), folder / name)
    return folder


def test_a_teacher_of_other_classes_is_refused_before_the_first_step(folder, tmp_path):
    path = folder / "two" / "manifest.json"
    before = path.read_text()
    manifest = json.loads(before)
    manifest["class_names"] = [f"digit {i}" for i in range(10)]
    path.write_text(json.dumps(manifest))
    try:
        with pytest.raises(UserError, match=r"config.method.teachers.two: has no class '0'"):
            assemble(small(method=TWO), folder / "other")
        names = {str(i): f"digit {(i + 1) % 10}" for i in range(10)}
        config = small(method={**TWO, "classes": names})
        setup = assemble(config, folder / "other")
        assert setup.program.method.renamed == names
        # sharding and plan look at the very program of the run
        there = argparse.Namespace(workdir=folder / "other")
        others, words = references(config, {}, there)
        source = setup.sources["train"]
        assert build_program(config, source, others, words=words) is setup.program
    finally:
        path.write_text(before)
    with pytest.raises(UserError, match="has 10 outputs, the student 11"):
        model = dict(type="mlp", widths=(8,), outputs=11)
        assemble(small(method=TWO, model=model), folder / "other")


def test_a_changed_teacher_is_refused_at_resume(folder):
    run, asked = folder / "student", iter([False] * 5)
    with pytest.raises(Stopped):
        train(small(method=TWO), run, stop=lambda: next(asked, True))
    recorded = json.loads((run / "manifest.json").read_text())["frozen"]
    assert recorded.keys() == {"teachers.one", "teachers.two"}
    (folder / "two").rename(folder / "kept")
    train(small("seed=5"), folder / "two")
    with pytest.raises(UserError, match=r"'teachers.two' is not the one that this run began with"):
        train(small(method=TWO), run)
    result = train(small(method=TWO), run, allow_changed=["method.teachers.two"])
    assert result["step"] == 12
    again = json.loads((run / "manifest.json").read_text())["resumes"][-1]["frozen"]
    assert again["teachers.one"] == recorded["teachers.one"]
    assert again["teachers.two"] != recorded["teachers.two"]


def test_tokens_of_a_teacher_are_translated_both_ways():
    model = GPT2(vocab=9, context=4, layers=1, width=4, heads=1, dropout=0.0)
    tokens, ids = np.array([[0, 3, 2, 1]]), np.array([8, 2, 5, 0], np.int32)
    made = jax.jit(lambda key: model.init(key, tokens, train=False))(jax.random.key(0))
    variables, apply = nn.unbox(made), functools.partial(model.apply, train=False)
    shown = {**variables, "vocabulary": {"ids": ids}}
    found = jax.jit(lambda v: Translated(model, (0,)).apply(v, tokens, train=False))(shown)
    expected = jax.jit(apply)(variables, np.array([[8, 0, 5, 2]]))
    assert found.shape == (1, 4, 4)
    for ours, theirs in enumerate(ids):
        np.testing.assert_allclose(found[..., ours], expected[..., theirs], rtol=1e-5)


TEXTS = dict(
    data=dict(
        source=dict(type="markov_tokens", vocab=4, length=4, examples=80, branches=2),
        splits=dict(train="train", test="test"),
    ),
    model=dict(type="gpt2", vocab=4, context=4, layers=1, width=4, heads=1, dropout=0.0),
    task=dict(type="language_model"),
)


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        (np.array([8, 2, 5, 0]), None),
        (np.array([9, 2, 5, 0]), "names ids 0 to 9; the teacher has 9"),
        (np.array([0.5]), "not whole numbers"),
        (None, "the teacher 'teacher' has 9 outputs, the student 4"),
    ],
)
def test_a_vocabulary_is_given_by_the_user(tmp_path, ids, message):
    teacher = tmp_path / "teacher"
    teacher.mkdir()
    wide = {**TEXTS, "model": {**TEXTS["model"], "vocab": 9}}
    (teacher / "config.json").write_text(json.dumps(small(**wide).values))
    method = dict(type="distill", teacher="../teacher")
    if ids is not None:
        np.save(tmp_path / "ids.npy", ids)
        method["tokens"] = "../ids.npy"
    config = small(**TEXTS, method=method)
    if message is not None:
        with pytest.raises(UserError, match=message):
            assemble(config, tmp_path / "student")
        return
    program = assemble(config, tmp_path / "student").program
    assert program.frozen["teacher"]["vocabulary"]["ids"].shape == (4,)
    shape = program.frozen["teacher"]["params"]["embedding"].shape
    assert shape == (9, 4)


def test_a_sharded_teacher_takes_its_share_of_each_device():
    assert 1 <= distill.share_of_memory() <= 1.1
