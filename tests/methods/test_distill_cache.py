"""Cached teachers: what is written, what a step makes of it, and when it is refused."""

import json

import jax
import numpy as np
import pytest
from scipy.special import log_softmax, softmax

from bigjax.build.assemble import assemble
from bigjax.core import settings
from bigjax.core.errors import UserError
from bigjax.core.losses import kl_divergence
from bigjax.loop.open import open_run
from bigjax.loop.replay import replay
from bigjax.loop.train import Stopped, train
from bigjax.mesh.sharding import make_mesh
from bigjax.methods.distill import cached
from tests.small import small

RNG = np.random.default_rng(7)
METHOD = dict(type="distill", teacher="../teacher", temperature=3.0, alpha=0.8)
CACHED = {**METHOD, "cache": "../cache"}


def test_the_student_is_normalised_over_its_whole_vocabulary():
    """KL of the teacher's two likeliest, by hand in float64; not with a student cut to them."""
    t, s = (2 * RNG.normal(size=(4, 9)).astype(np.float32) for _ in range(2))
    mask = np.ones(4, np.float32)
    batch = cached.kept("teacher", t, 2, len(t))
    found = kl_divergence(cached.outputs("teacher", batch, s), s, mask, 1.5)
    expected = renormalised = 0.0
    for row_t, row_s in zip(t.astype(np.float64), s.astype(np.float64), strict=True):
        best = np.argsort(-row_t)[:2]
        p = softmax(row_t[best] / 1.5)
        expected += (p * (np.log(p) - log_softmax(row_s / 1.5)[best])).sum()
        renormalised += (p * (np.log(p) - log_softmax(row_s[best] / 1.5))).sum()
    np.testing.assert_allclose(found, (expected, 4), rtol=2e-6)
    assert renormalised < 0.9 * expected
    np.testing.assert_array_equal(
        cached.outputs("teacher", cached.kept("teacher", t, None, len(t)), s), t
    )


@pytest.mark.parametrize("top", [None, 5])
def test_of_a_pair_both_rows_are_kept_with_their_example(top):
    """Embeddings (2 B, D) of B pairs, first and second texts in turn; the student's may be narrower."""
    t, s = RNG.normal(size=(6, 5)).astype(np.float32), np.zeros((6, 4), np.float32)
    columns = cached.kept("teacher", t, top, 3)
    shuffled = {name: column[np.array([2, 0, 1])] for name, column in columns.items()}
    expected = t[[4, 5, 0, 1, 2, 3]]
    if top is None:
        np.testing.assert_array_equal(cached.outputs("teacher", shuffled, s), expected)
    else:
        wide = np.zeros((6, 5), np.float32)
        np.testing.assert_array_equal(cached.outputs("teacher", shuffled, wide), expected)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cached")
    train(small(), folder / "teacher")
    train(small(method=METHOD), folder / "online")
    train(small(method=CACHED), folder / "cached")
    return folder


def test_a_cached_run_is_the_online_run_bit_for_bit(folder):
    online, found = (json.loads((folder / name / "result.json").read_text()) for name in ("online", "cached"))  # fmt: skip
    assert found["fingerprint"] == online["fingerprint"]
    assert found["metrics"] == online["metrics"]
    (cache,) = (folder / "cache").iterdir()
    payload = 1000 * 10 * 4
    size = sum(path.stat().st_size for path in cache.iterdir())
    assert payload <= size <= 1.1 * payload
    teacher = open_run(folder / "teacher")
    images = teacher.setup.sources["train"].read(np.arange(3))["image"] / np.float32(16)
    expected = teacher.model.apply(teacher.variables, images, train=False)
    np.testing.assert_allclose(np.load(cache / "outputs.npy")[:3], expected, rtol=1e-6)


def test_a_cached_run_reads_no_teacher_and_replays(folder):
    setup = assemble(small(method=CACHED), folder / "cached")
    assert setup.program.frozen == {}
    assert replay(setup, folder / "cached", 4, None).startswith("equal: steps 5 to 12")
    # One that is opened reads no cache at all.
    assert assemble(small(method=CACHED), folder / "cached").cached.prints == {}


def test_a_fill_that_was_broken_off_goes_on_where_it_stopped(folder, monkeypatch):
    (cache,) = (folder / "cache").iterdir()
    whole = np.load(cache / "outputs.npy")
    about = json.loads((cache / "cache.json").read_text())
    (cache / "cache.json").write_text(json.dumps({**about, "rows": 960}))
    broken = np.lib.format.open_memmap(cache / "outputs.npy", mode="r+")
    broken[960:] = -7.0
    broken[0] = 5.0  # is not written again
    broken.flush()
    setup = assemble(small(method=CACHED), folder / "cached")
    setup.frozen()
    found = np.load(cache / "outputs.npy")
    np.testing.assert_array_equal(found[1:], whole[1:])
    assert (found[0] == 5.0).all()
    np.testing.assert_array_equal(
        setup.sources["train"].read(np.array([7, 2]))["teacher/outputs"], whole[[7, 2]]
    )
    (cache / "cache.json").unlink()
    assemble(small(method=CACHED), folder / "cached").frozen()
    np.testing.assert_array_equal(np.load(cache / "outputs.npy"), whole)


def test_the_likeliest_classes_alone(folder):
    whole, top = (
        assemble(small(method=m), folder / "top") for m in (CACHED, {**CACHED, "cache_top": 3})
    )
    ids = np.array([5, 900])
    for setup in (whole, top):
        setup.frozen()
    found, expected = top.sources["train"].read(ids), whole.sources["train"].read(ids)
    np.testing.assert_array_equal(
        found["teacher/values"], -np.sort(-expected["teacher/outputs"], axis=1)[:, :3]
    )
    np.testing.assert_array_equal(
        found["teacher/values"],
        np.take_along_axis(expected["teacher/outputs"], found["teacher/places"], 1),
    )
    assert len(list((folder / "cache").iterdir())) == 2


def test_another_teacher_has_another_cache_and_is_refused_at_resume(folder):
    run, asked = folder / "stopped", iter([False] * 5)
    with pytest.raises(Stopped):
        train(small(method=CACHED), run, stop=lambda: next(asked, True))
    (folder / "teacher").rename(folder / "first")
    train(small("seed=4"), folder / "teacher")
    before = {path.name for path in (folder / "cache").iterdir()}
    try:
        with pytest.raises(UserError, match="'teacher' is not the one that this run began with"):
            train(small(method=CACHED), run)
        assert before < {path.name for path in (folder / "cache").iterdir()}
    finally:
        (folder / "teacher").rename(folder / "second")
        (folder / "first").rename(folder / "teacher")


@pytest.mark.slow
def test_augmented_views_are_cached_as_the_run_will_see_them(folder):
    """Shifted and mixed: what every step of the online run would ask its teacher, bit for bit."""
    augment = (dict(type="shift", pixels=1), dict(type="mixup", alpha=1.0, num_classes=10))
    data = {**small().values["data"], "augment": augment}
    # A thousand examples: 26 steps of 40 go on into a second epoch.
    short = ("train.steps=26", "evaluate.splits=()", "checkpoint.every='end'", "log.every=26")
    views = {**METHOD, "cache": "../views", "cache_views": True}
    online = train(small(*short, method=METHOD, data=data), folder / "mixed")
    found = train(small(*short, method=views, data=data), folder / "mixed_cached")
    assert found["fingerprint"] == online["fingerprint"]
    (cache,) = (folder / "views").iterdir()
    kept = np.load(cache / "outputs.npy")
    assert kept.shape == (2000, 10)
    assert (np.abs(kept).max(1) > 0).sum() == 26 * 40  # and no more
    other = train(small(*short, "seed=1", method=views, data=data), folder / "mixed_other")
    assert other["fingerprint"] != online["fingerprint"]
    assert len(list((folder / "views").iterdir())) == 2
    with pytest.raises(UserError, match=r"cache_views: goes with neither"):
        assemble(small(*short, "check.policy=rewind", method=views, data=data), folder / "x")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(data=dict(augment=(dict(type="shift", pixels=1),))), "is drawn anew each epoch"),
        (dict(method=dict(objectives=dict(kd=dict(type="reverse_kl")), cache_top=2)), "needs all of the"),
        (
            dict(method=dict(objectives=dict(h=dict(type="hint", student_feature="a", teacher_feature="b")))),
            "the cache holds no features",
        ),
    ],
)  # fmt: skip
def test_what_a_cache_cannot_hold_is_refused(folder, changes, message):
    data = {**small().values["data"], **changes.get("data", {})}
    method = {**CACHED, **changes.get("method", {})}
    with pytest.raises(UserError, match=message):
        assemble(small(method=method, data=data), folder / "refused").frozen()


def test_any_mesh_reads_the_same_cache(folder):
    caches = {path.name for path in (folder / "cache").iterdir()}
    one = make_mesh(settings.Mesh(data=1), jax.devices()[:1])
    assemble(small(method=CACHED), folder / "narrow", mesh=one).start()
    assert {path.name for path in (folder / "cache").iterdir()} == caches
