"""The time ledger: it adds up, survives restarts, and prints no figure that cannot be; FLOPs."""

import itertools
import json
import time
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from bigjax.build.parts import example_batch
from bigjax.build.program import build_program
from bigjax.config.resolve import resolve
from bigjax.data.sources import Arrays
from bigjax.loop.train import Stopped, train
from bigjax.plan import flops
from bigjax.run import clock
from tests.poison import poisoned_config
from tests.small import small_config


class Ticks:
    """A clock that is moved by hand."""

    now = 100.0

    def pass_by(self, seconds):
        self.now += seconds


@pytest.fixture
def ticks(monkeypatch):
    ticks = Ticks()
    monkeypatch.setattr(clock, "time", SimpleNamespace(perf_counter=lambda: ticks.now))
    return ticks


def spend(a_clock, ticks, **seconds):
    for name, value in seconds.items():
        with a_clock(name):
            ticks.pass_by(value)


def nonzero(a_clock):
    return {name: value for name, value in a_clock.seconds().items() if value}


def test_every_moment_belongs_to_one_part(tmp_path, ticks):
    a_clock = clock.Clock(tmp_path)
    ticks.pass_by(3)
    a_clock.begin(0)
    ticks.pass_by(1)
    with a_clock("evaluation"):
        ticks.pass_by(10)
        with a_clock("step"):
            ticks.pass_by(5)
        ticks.pass_by(2)
    spend(a_clock, ticks, input=0.5, checkpoint=0.25)
    expected = dict(start_up=3, other=1, evaluation=12, step=5, input=0.5, checkpoint=0.25)
    assert nonzero(a_clock) == expected


def test_a_part_that_ends_in_an_exception_is_charged_too(tmp_path, ticks):
    a_clock = clock.Clock(tmp_path)
    a_clock.begin(0)
    with pytest.raises(KeyError), a_clock("step"):
        ticks.pass_by(2)
        raise KeyError
    ticks.pass_by(1)
    assert nonzero(a_clock) == dict(step=2, other=1)


def test_compiling_is_taken_out_of_the_part_it_happened_in_and_counts_once(tmp_path, ticks):
    a_clock = clock.Clock(tmp_path)
    a_clock.begin(0)
    report = jax.monitoring.record_event_duration_secs
    with a_clock("step"):
        ticks.pass_by(4)
        report("/jax/core/compile/jaxpr_trace_duration", 1.0)  # inside the next
        ticks.pass_by(2)
        report("/jax/core/compile/jaxpr_trace_duration", 5.0)
        ticks.pass_by(3)
        report("/jax/core/compile/backend_compile_duration", 2.5)
        report("/jax/another", 9.0)
    assert nonzero(a_clock) == dict(step=1.5, compile=7.5)


def test_work_after_the_last_checkpoint_is_lost_at_a_restart(tmp_path, ticks):
    first = clock.Clock(tmp_path)
    ticks.pass_by(2)
    first.begin(0)
    spend(first, ticks, step=10)
    first.mark(4)
    spend(first, ticks, step=7, input=1)
    spend(first, ticks, other=clock.SAVE_EVERY)
    first.save()  # and then the process is killed

    second = clock.Clock(tmp_path)
    ticks.pass_by(3)
    second.begin(4)
    spend(second, ticks, step=20)
    assert nonzero(second) == dict(start_up=5, step=30, lost=8 + 5)
    second.mark(8)

    third = clock.Clock(tmp_path)  # the checkpoint of 8 is bad: back to that of 4
    third.begin(4)
    assert nonzero(third) == dict(start_up=2, step=10, lost=13 + 3 + 20)
    assert third.starts == 3

    third.mark(4)
    fourth = clock.Clock(tmp_path)
    fourth.begin(0)
    assert nonzero(fourth) == dict(lost=48)


def test_waiting_for_the_last_save_is_not_lost_but_steps_after_it_are(tmp_path, ticks):
    for steps_after, lost in ((0, 0), (2, 2 + 5)):
        folder = tmp_path / str(steps_after)
        folder.mkdir()
        first = clock.Clock(folder)
        first.begin(0)
        with first:
            spend(first, ticks, step=10)
            first.mark(1)
            if steps_after:
                spend(first, ticks, step=steps_after)
            ticks.pass_by(5)
        second = clock.Clock(folder)
        second.begin(1)
        assert second.seconds()["lost"] == lost
        assert second.seconds()["step"] == 10


def test_time_json_is_written_now_and_then(tmp_path, ticks):
    a_clock = clock.Clock(tmp_path)
    a_clock.begin(0)
    a_clock.save()
    assert not (tmp_path / "time.json").exists()
    spend(a_clock, ticks, step=clock.SAVE_EVERY)
    a_clock.save()
    assert json.loads((tmp_path / "time.json").read_text())["seconds"]["step"] == clock.SAVE_EVERY


def test_the_parts_of_a_run_add_up_to_its_wall_time(tmp_path):
    config = poisoned_config((), "train.steps=40", "evaluate.splits=('train',)")
    before = time.perf_counter()
    spent = train(config, tmp_path)["time"]
    wall = time.perf_counter() - before
    assert spent["wall"] == pytest.approx(sum(spent["seconds"].values()))
    # Less the writing of the result and the report, which come after the sum is drawn.
    assert spent["wall"] == pytest.approx(wall, rel=0.02, abs=0.1)
    assert all(value >= 0 for value in spent["seconds"].values())
    for part in ("start_up", "compile", "step", "input", "evaluation", "checkpoint"):
        assert spent["seconds"][part] > 0
    assert spent["seconds"]["lost"] == 0
    assert 0 < spent["goodput"] < 1
    assert spent["examples_per_second"] == pytest.approx(16 * spent["steps_per_second"])
    assert json.loads((tmp_path / "result.json").read_text())["time"]["starts"] == 1


def test_a_step_is_profiled_when_the_config_says(tmp_path):
    config = resolve(
        small_config(), ["train.steps=2", "log.profile=2", "mesh.data=1", "mesh.fsdp=8"]
    )
    train(config, tmp_path / "run")
    (trace,) = (tmp_path / "run/profile").glob("plugins/profile/*/*.xplane.pb")
    events = [event for plane in jax.profiler.ProfileData.from_file(str(trace)).planes
              for line in plane.lines for event in line.events]  # fmt: skip
    assert any("train_step" in event.name for event in events)


def test_a_stopped_run_goes_on_counting_and_loses_nothing(tmp_path):
    config = poisoned_config(())
    asked = iter(range(1000))
    before = time.perf_counter()
    with pytest.raises(Stopped):
        train(config, tmp_path, stop=lambda: next(asked) > 8)
    first = time.perf_counter() - before
    spent = train(config, tmp_path)["time"]
    wall = time.perf_counter() - before
    assert spent["starts"] == 2
    assert spent["seconds"]["lost"] == 0
    assert first < spent["wall"] <= wall


def test_a_rewind_is_lost_time(tmp_path):
    config = poisoned_config((5,), "check.policy=rewind", checkpoint=dict(every="end"))
    spent = train(config, tmp_path)["time"]
    assert spent["starts"] == 3  # bad twice, then left out for good
    assert spent["seconds"]["lost"] > 0


def test_a_figure_above_the_peak_is_an_error_and_not_a_speed():
    counts = {"6N": 3e12}
    good = clock.speed(2.0, 8, counts, peak=1e12, devices=8)
    assert good["mfu"] == {"6N": pytest.approx(0.75)}
    wrong = clock.speed(3.0, 8, counts, peak=1e12, devices=8)
    assert list(wrong) == ["measurement_error"]
    found = dict(wall=1.0, goodput=1.0, starts=1, seconds={"step": 1.0}, **wrong)
    said = "\n".join(clock.lines(found))
    assert "error in measurement" in said and "steps/s" not in said and "MFU" not in said


@pytest.mark.parametrize(
    "kind, peak",
    [
        ("NVIDIA H200", 989.5e12),
        ("NVIDIA H100 80GB HBM3", 989.5e12),
        ("NVIDIA H100 PCIe", 756e12),
        ("NVIDIA A100-SXM4-80GB", 312e12),
        ("TPU v4", 275e12),
        ("TPU v5 lite", 197e12),
        ("TPU v5", 459e12),
        ("TPU v5p", 459e12),
        ("TPU v6 lite", 918e12),
        ("cpu", None),
    ],
)
def test_peaks_are_known_by_device_kind(kind, peak):
    assert clock.peak_flops(kind) == peak


@pytest.mark.parametrize("accumulate", [1, 4])
def test_flops_of_an_mlp_are_those_counted_by_hand(accumulate):
    batch, widths = 64, (64, 12, 7, 10)
    config = resolve(
        small_config(
            train=dict(steps=1, batch_size=batch, accumulate=accumulate),
            model=dict(type="mlp", widths=widths[1:-1], outputs=widths[-1]),
            mesh=dict(data=-1),
        )
    )
    source = config.section("data").source.open("train")
    program = build_program(config, source)
    found = flops.of_step(
        program.train_step,
        program.formula,
        program.state,
        example_batch(source.features, batch),
        program.frozen,
    )
    products = [a * b for a, b in itertools.pairwise(widths)]
    forward = 2 * batch * sum(products)
    to_weights, to_inputs = forward, 2 * batch * sum(products[1:])  # the image needs no gradient
    assert found == {flops.COUNTED: forward + to_weights + to_inputs}


def test_flops_of_convolutions_agree_with_xla():
    def loss(kernel, image):
        y = jax.lax.conv_general_dilated(
            image, kernel, (2, 2), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
        return jnp.sum(y**2)

    kernel, image = jnp.ones((3, 3, 8, 16)), jnp.ones((4, 17, 17, 8))
    forward = 2 * (4 * 8 * 8 * 16) * (3 * 3 * 8)
    assert flops.of_jaxpr(jax.make_jaxpr(loss)(kernel, image).jaxpr) == forward
    xla = jax.jit(loss).lower(kernel, image).compile().cost_analysis()["flops"]
    assert xla == pytest.approx(forward, rel=0.05)
    gradients = jax.make_jaxpr(jax.grad(loss, argnums=(0, 1)))(kernel, image).jaxpr
    assert flops.of_jaxpr(gradients) == pytest.approx(3 * forward, rel=0.3)  # padded borders


def test_flops_of_loops_and_branches():
    square = jnp.ones((4, 4))
    once = 2 * 4**3

    def scanned(x):
        return jax.lax.scan(lambda carry, _: (carry @ carry, None), x, None, length=5)[0]

    def branched(x):
        return jax.lax.cond(x[0, 0] > 0, lambda x: x @ x @ x, lambda x: x @ x, x)

    for function, times in ((scanned, 5), (branched, 2), (jax.jit(lambda x: x @ x), 1)):
        assert flops.of_jaxpr(jax.make_jaxpr(function)(square).jaxpr) == times * once


@pytest.mark.parametrize("scan_layers", [False, True])
def test_a_transformers_formula_agrees_with_the_count_of_its_products(scan_layers):
    batch, length = 8, 63  # of no four parts: a causal row's queries all meet all its keys
    model = dict(vocab=300, layers=3, width=64, heads=4, context=length, scan_layers=scan_layers)
    config = resolve(
        ConfigDict(
            dict(
                train=dict(steps=1, batch_size=batch),
                data=dict(source=dict(type="tfds", name="digits"), splits=dict(train="train")),
                model=dict(type="gpt2", **model),
                task=dict(type="language_model"),
                optimizer=dict(type="sgd", learning_rate=0.1),
            )
        )
    )
    source = Arrays({"tokens": np.zeros((16, length), np.int32)})
    program = build_program(config, source)
    arguments = program.state, example_batch(source.features, batch), program.frozen
    found = flops.of_step(program.train_step, program.formula, *arguments)
    # The formula multiplies by biases and norms too.
    assert found[flops.COUNTED] == pytest.approx(found["6N + 12LDT"], rel=0.05)
