"""The pipeline's counts and schedule by hand, and what it refuses; its numbers: tests/contracts/test_axes.py."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bigjax.core import settings
from bigjax.core.errors import UserError
from bigjax.mesh.placement import Vocabulary
from bigjax.mesh.sharding import activations, make_mesh
from bigjax.models.pipeline import Schedule, microbatches, pipeline_of, pipelined
from bigjax.plan.sharding_report import pipeline_line


def test_microbatches_are_the_most_that_divide_a_devices_rows():
    assert microbatches(rows=48, stages=2, wanted=None) == 8  # four a stage
    assert microbatches(rows=6, stages=2, wanted=None) == 6
    assert microbatches(rows=7, stages=2, wanted=3) == 1


def test_the_bubble_is_the_idle_part_of_the_ticks():
    # 3 stages, 6 microbatches: 8 ticks, of which each stage works in 6.
    found = pipeline_of(3, 12, 6)
    assert found == dict(stages=3, microbatches=6, rounds=1, bubble=pytest.approx(2 / 8))
    assert "6 microbatches; each stage is idle for 25% of" in pipeline_line(found)


def by_hand(stages, count, rounds):
    """Ticks of the schedule in which a stage takes what is ready: (stage, microbatch, round) of each tick.

    What waits for the first stage waits in a queue: what comes round again goes before what is new.
    """
    new, round_again, ticks, on = [*range(count)], [], [], [None] * stages
    for _ in range(100):
        left = on[-1]
        if left is not None and left[1] + 1 < rounds:
            round_again.append((left[0], left[1] + 1))
        on = [None, *on[:-1]]
        if round_again:
            on[0] = round_again.pop(0)
        elif new:
            on[0] = (new.pop(0), 0)
        if all(x is None for x in on):
            return ticks
        ticks.append(list(on))
    raise AssertionError("it never ends")


@pytest.mark.parametrize(
    ("stages", "count", "rounds"), [(4, 8, 1), (3, 5, 1), (2, 4, 2), (4, 8, 3)]
)
def test_the_schedule_is_the_one_counted_by_hand(stages, count, rounds):
    schedule, ticks = Schedule(stages, count, rounds), by_hand(stages, count, rounds)
    assert schedule.ticks == len(ticks)
    for time, stands in enumerate(ticks):
        for stage, work in enumerate(stands):
            if work is not None:
                assert tuple(map(int, schedule.at(jnp.int32(time - stage)))) == work
    work, idle = count * rounds, len(ticks) - count * rounds
    assert schedule.bubble == pytest.approx(idle / len(ticks))
    assert idle / work == pytest.approx((stages - 1) / (count * rounds))  # as papers have it


def test_rounds_make_the_bubble_smaller_and_a_group_that_is_not_full_is_counted():
    found = pipeline_of(4, 32, 8, rounds=2)
    assert found["bubble"] == pytest.approx(3 / 19)
    assert "8 microbatches, 2 rounds; each stage is idle for 16%" in pipeline_line(found)
    # 6 in groups of 4: two places of 8 are empty in each of two rounds.
    assert Schedule(4, 6, 2).bubble == pytest.approx((3 + 2 * 2) / (16 + 3))


@pytest.mark.parametrize("count", [4, 3])
def test_layers_are_taken_in_their_order_in_any_rounds(count):
    """Layers that do not commute, x -> x a + b, over 2 stages in 3 rounds, forward and backward."""
    mesh = make_mesh(settings.Mesh(data=1, pipeline=2), jax.devices()[:2])
    options = settings.Sharding(microbatches=count, rounds=3)
    a, b = np.random.default_rng(0).uniform(0.5, 1.5, (2, 6)).astype(np.float32)
    x = np.arange(12, dtype=np.float32)[:, None] / 12

    def stage(own, x, shared):
        return jax.lax.scan(lambda x, ab: (x * ab[0] + ab[1] + shared, None), x, own)[0]

    def loss(layers, x):
        out = pipelined(stage, layers, x, x * 0.1)
        return jnp.sum(out * out), out

    with activations(mesh, Vocabulary(), options):
        found = jax.jit(jax.value_and_grad(loss, has_aux=True))
        (_, out), grads = found((a, b), x)

    def plain(a, b):
        y = x
        for i in range(6):
            y = y * a[i] + b[i] + x * 0.1
        return jnp.sum(y * y), y

    (_, expected), wanted = jax.value_and_grad(plain, (0, 1), has_aux=True)(a, b)
    np.testing.assert_allclose(out, expected, rtol=1e-6)
    np.testing.assert_allclose(grads, wanted, rtol=1e-5)


def test_what_cannot_be_shared_is_refused():
    with pytest.raises(UserError, match=r"5 do not share the 32 rows of a device evenly; 4 would"):
        pipeline_of(2, 32, 5)
    with pytest.raises(UserError, match="at least 1"):
        settings.Sharding(microbatches=0)
    with pytest.raises(UserError, match="at least 1"):
        settings.Sharding(rounds=0)
    mesh = make_mesh(settings.Mesh(data=1, pipeline=2), jax.devices()[:2])
    with (
        activations(mesh, Vocabulary(), settings.Sharding(rounds=2)),
        pytest.raises(
            UserError, match=r"2 rounds of 2 stages do not share 6 layers evenly; 1 or 3"
        ),
    ):
        pipelined(lambda own, x, shared: x, np.zeros(6), np.zeros((4, 1)), ())
