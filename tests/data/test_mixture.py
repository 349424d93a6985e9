"""Mixtures: proportions kept over the run, every row computable alone, numbers of each part."""

import json
from fractions import Fraction

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bigjax.build.assemble import assemble
from bigjax.core import settings as sections
from bigjax.core.errors import UserError
from bigjax.core.mixing import Mixing, shared_out
from bigjax.core.schedules import Linear, Piecewise
from bigjax.data.mixed import Mixed
from bigjax.data.sources import Arrays
from bigjax.loop.record import train_batches
from bigjax.loop.train import Stopped, train
from bigjax.mesh.sharding import make_mesh
from tests.contracts.runs import close
from tests.small import small


def mixed(*overrides, **data):
    """Twelve steps of 40 digits of two parts, 3 to 1."""
    given = dict(
        source=dict(type="tfds", name="digits"),
        splits=dict(train="train[:600]", late="train[600:]", test="test"),
        preprocess=(dict(type="normalize", scale=16.0),),
        mixture=dict(train=3, late=1),
    )
    return small("train.steps=12", *overrides, data={**given, **data})


def by_hand(weights, batch_size, steps):
    """Rows of each part before each step, in exact arithmetic, one row of the stream after another."""
    order = sorted(range(len(weights)), key=lambda i: -weights[i])
    before = [[0] * len(weights) for _ in range(steps + 1)]
    for step in range(steps + 1):
        rest = step * batch_size
        for place, i in enumerate(order):
            tail = sum(Fraction(weights[j]) for j in order[place:])
            share = Fraction(weights[i]) / tail if tail else 0
            own = (
                int(share * rest + Fraction(1, 2) + Fraction(1, 2**20))
                if place < len(order) - 1
                else rest
            )
            before[step][i] = own
            rest -= own
    return np.array(before)


@given(st.lists(st.integers(0, 12), min_size=1, max_size=6).filter(any), st.integers(1, 20))
@settings(max_examples=60, deadline=None)
def test_parts_get_their_share_of_the_whole_run_and_no_step_takes_any_back(weights, batch_size):
    before = shared_out(np.tile(np.array(weights, float), (50, 1)), batch_size)
    assert np.array_equal(before, by_hand(weights, batch_size, 50))
    assert (np.diff(before, axis=0) >= 0).all()
    assert (before.sum(axis=1) == np.arange(51) * batch_size).all()
    exact = np.outer(np.arange(51) * batch_size, np.array(weights) / sum(weights))
    rank = np.argsort(np.argsort(-np.array(weights), kind="stable"))
    bound = [(1 + sum(1 / n for n in range(1, j + 1))) / 2 for j in rank]
    assert (np.abs(before - exact) < np.array(bound) + 1e-9).all()


def test_weights_follow_a_schedule_over_the_run():
    schedules = {"b": Linear(final=0.0), "a": Piecewise(pieces=((0, 1.0), (75, 2.0)))}
    mixing = Mixing({"a": 50, "b": 50}, {"a": 1.0, "b": 1.0}, schedules, 0, 64, 100)
    read = np.array([mixing.measure(k)["mixture/b/examples"] for k in range(101)])
    t = np.arange(100) / 100
    factor = np.where(np.arange(100) < 75, 1.0, 2.0)
    exact = np.cumsum(64 * (1 - t) / (factor + 1 - t))
    assert np.abs(read[1:] - exact).max() <= 0.5 + 1e-6
    longer = Mixing({"a": 50, "b": 50}, {"a": 1, "b": 1}, {}, 0, 64, 1000)
    shorter = Mixing({"a": 50, "b": 50}, {"a": 1, "b": 1}, {}, 0, 64, 100)
    steps = np.arange(100)
    for x, y in zip(longer.rows_of(steps), shorter.rows_of(steps), strict=True):
        assert np.array_equal(x, y)


def test_any_step_is_named_alone_and_each_part_goes_through_its_own_shuffled_stream():
    sizes = {"web": 70, "code": 11, "books": 5}
    mixing = Mixing(sizes, {"web": 6, "code": 3, "books": 1}, {}, 4, 16, 40)
    ids, epochs, mask = mixing.rows_of(np.arange(40))
    for step in (0, 7, 39):
        alone = mixing.rows_of(np.array([step]))
        assert np.array_equal(alone[0][0], ids[step]) and np.array_equal(alone[1][0], epochs[step])
    assert mask.all() and ids.max() < 86
    starts = {"web": 0, "code": 70, "books": 81}
    for name, size in sizes.items():
        own = (ids >= starts[name]) & (ids < starts[name] + size)
        counted = mixing.measure(40)
        assert counted[f"mixture/{name}/examples"] == own.sum()
        assert counted[f"mixture/{name}/epochs"] == own.sum() / size
        for epoch in range(own.sum() // size):  # a whole epoch has every example once
            whole = np.sort(ids[own & (epochs == epoch)] - starts[name])
            assert np.array_equal(whole, np.arange(size))


def test_what_a_part_gives_does_not_hang_on_what_it_is_mixed_with():
    one = Mixing({"code": 11, "web": 70}, {"code": 1, "web": 1}, {}, 4, 16, 5)
    other = Mixing({"books": 5, "code": 11}, {"books": 3, "code": 1}, {}, 4, 32, 5)
    steps = np.arange(5)
    mine = [sorted(row[row < 11]) for row in one.rows_of(steps)[0]]
    theirs = [sorted(row[row >= 5] - 5) for row in other.rows_of(steps)[0]]
    assert mine == theirs and [len(row) for row in mine] == [8] * 5
    assert mine != [sorted(row[row < 11]) for row in Mixing(
        {"code": 11, "web": 70}, {"code": 1, "web": 1}, {}, 5, 16, 5).rows_of(steps)[0]]  # fmt: skip


def test_half_a_batch_is_mixed_as_the_whole_is():
    mixing = Mixing({"a": 100, "b": 100}, {"a": 3, "b": 1}, {}, 0, 32, 4)
    ids, _, _ = mixing.rows_of(np.arange(4))
    assert [(row >= 100).sum() for row in ids.reshape(8, 16)] == [4] * 8


def test_rows_come_from_the_part_that_they_name():
    parts = {
        "train": Arrays({"x": np.arange(5, dtype=np.float32)}),
        "more": Arrays({"x": 100 + np.arange(3, dtype=np.float32)}),
    }
    source = Mixed(parts)
    assert len(source) == 8
    found = source.read(np.array([6, 0, 4, 5, 7]))
    assert found["x"].tolist() == [101, 0, 4, 100, 102]
    assert found["part"].tolist() == [1, 0, 0, 1, 1]
    assert source.fingerprint() != Mixed(dict(reversed(parts.items()))).fingerprint()


def test_a_mixture_resumes_bitwise_and_tells_the_loss_of_each_part(tmp_path):
    whole = train(mixed(), tmp_path / "whole")
    asked = iter([False] * 5 + [True] * 100)
    with pytest.raises(Stopped):
        train(mixed(), tmp_path / "halves", stop=lambda: next(asked))
    halves = train(mixed(), tmp_path / "halves")
    assert halves["fingerprint"] == whole["fingerprint"]
    read = {name: value for name, value in whole["metrics"].items() if "mixture/" in name}
    assert read == {
        "mixture/train/examples": 360,
        "mixture/late/examples": 120,
        "mixture/train/epochs": 0.6,
        "mixture/late/epochs": 0.3,
    }
    lines = [json.loads(line) for line in (tmp_path / "whole/metrics.jsonl").open()]
    shown = [line for line in lines if "train/loss" in line]
    assert len(shown) == 12
    for line in shown:  # 30 rows of the one and 10 of the other
        mean = (30 * line["train/loss/train"] + 10 * line["train/loss/late"]) / 40
        assert mean == pytest.approx(line["train/loss"], rel=1e-5)


@pytest.mark.slow
def test_a_mixture_is_the_same_on_any_mesh_and_its_losses_are_those_of_its_rows(tmp_path):
    found = {}
    for devices in (1, 8):
        grid = make_mesh(sections.Mesh(), jax.devices()[:devices])
        setup = assemble(mixed("model.dropout=0.0", "train.accumulate=5"), tmp_path, mesh=grid)
        batch = next(iter(train_batches(setup, tmp_path, 3)))
        state, frozen = setup.start()
        variables = {"params": jax.device_get(state.params)}
        metrics = jax.device_get(setup.program.train_step(state, batch, frozen)[1])
        found[devices] = (jax.device_get(batch), metrics)
    assert all(np.array_equal(found[1][0][k], found[8][0][k]) for k in found[1][0])
    close(found[1][1], found[8][1], 1e-6)
    rows, metrics = found[1]
    x = rows["image"].reshape(40, -1) / 16.0
    hidden, head = (variables["params"][name] for name in ("dense_0", "head"))
    logits = np.maximum(x @ hidden["kernel"] + hidden["bias"], 0) @ head["kernel"] + head["bias"]
    log_p = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    losses = -log_p[np.arange(40), rows["label"]]
    for number, name in enumerate(setup.mixing.names):
        own = rows["part"] == number
        total, weight = metrics[f"loss/{name}"]
        assert weight == own.sum() and total == pytest.approx(losses[own].sum(), rel=1e-5)


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["data.mixture.lat=1"], "no such split.*did you mean 'late'"),
        (["data.mixture.late=-1"], "must be 0 or more"),
        (["data.mixture={'late': 1}"], "must hold 'train'"),
        (["data.mixture={'train': 0, 'late': 0}"], "at step 1 no part has a weight"),
        (["data.mixture_schedules.test={'type': 'linear'}"], "no part of config.data.mixture"),
        (["data.mixture_schedules.late={'type': 'linea'}"], "did you mean 'linear'"),
        (["train.epochs=2"], "a mixture has no epochs"),
        (["method.type=fedavg", "method.rows=5", "method.clients=250"], "chooses its examples"),
    ],
)
def test_what_cannot_be_mixed_is_refused_by_name(overrides, said, tmp_path):
    with pytest.raises(UserError, match=said):
        assemble(mixed(*overrides), tmp_path)


def test_parts_that_are_made_otherwise_are_refused():
    one = Arrays({"x": np.zeros((3, 2), np.float32)})
    with pytest.raises(UserError, match=r"config.data.mixture.other: its features"):
        Mixed({"train": one, "other": Arrays({"x": np.zeros((3, 4), np.float32)})})
