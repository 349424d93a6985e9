"""Bad numbers: seen within the step, never applied, and what each policy does then."""

import json
import re

import flax
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bigjax.build.parts import abstract_batch, example_batch, key_data, traced_hyper
from bigjax.build.program import build_program
from bigjax.config.resolve import resolve
from bigjax.core import guard, settings
from bigjax.core.errors import UserError
from bigjax.loop.train import train
from bigjax.mesh.sharding import make_mesh
from bigjax.plan.sharding_report import lowered_step
from bigjax.run import ledger
from bigjax.run.checkpoint import Checkpoints
from bigjax.run.writers import read_metrics
from bigjax.verbs import launch
from tests.poison import BATCH, RATE, columns, ids_of, poisoned_config

BAD_STEP = 6  # in the second epoch: 64 examples are 4 steps
BAD_SAMPLE = int(ids_of(BAD_STEP)[0][3])


@flax.struct.dataclass
class State:
    params: jax.Array
    step: jax.Array
    guard: guard.Guard


def losses(folder):
    return {
        line["step"]: line["train/loss"]
        for line in read_metrics(folder / "metrics.jsonl")
        if "train/loss" in line
    }


def final_state(config, folder):
    source = config.section("data").source.open("train")
    checkpoints = Checkpoints(folder, config.section("checkpoint"))
    state = checkpoints.restore(build_program(config, source).state)
    checkpoints.close()
    return jax.device_get(state)


def gradient_descent(start, steps, *, without=(), for_good={}, samples=(), factor=1.0):  # noqa: B006
    """Linear regression by hand, in float64: the losses by step and the last (kernel, bias)."""
    data = {k: v.astype(np.float64) for k, v in columns(samples, factor).items()}
    kernel, bias, found = *start, {}
    for step in range(1, steps + 1):
        ids, _ = ids_of(step)
        ids = ids[ids != for_good.get(step)]
        x, y = data["features"][ids], data["label"][ids]
        error = x @ kernel + bias - y
        found[step] = np.mean(error**2)
        if step not in without:
            kernel = kernel - RATE * 2 / len(ids) * x.T @ error
            bias = bias - RATE * 2 / len(ids) * error.sum()
    return found, (kernel, bias)


def first_weights(config):
    program = build_program(config, config.section("data").source.open("train"))
    head = jax.device_get(program.init(key_data(0), traced_hyper(config))[0].params["head"])
    return head["kernel"][:, 0].astype(np.float64), head["bias"][0].astype(np.float64)


def steps_with(sample, steps):
    return [step for step in range(1, steps + 1) if sample in ids_of(step)[0]]


def test_the_bad_sample_comes_once_an_epoch():
    assert len(steps_with(BAD_SAMPLE, 12)) == 3


def test_stop_exits_with_a_dump_before_any_bad_number_is_applied(tmp_path):
    config = poisoned_config((BAD_SAMPLE,))
    first = steps_with(BAD_SAMPLE, 12)[0]
    with pytest.raises(ledger.BadNumbers, match=f"step {first}: the loss is nan"):
        train(config, tmp_path)
    dump = json.loads((tmp_path / "bad_step.json").read_text())
    assert dump["step"] == first
    assert dump["first_non_finite"] == "batch: features"
    assert dump["non_finite"]["batch"] == {"features": 3}
    assert dump["non_finite"]["params"] == {}
    assert set(dump["non_finite"]["gradients"]) == {"head/kernel", "head/bias"}
    epoch = (first - 1) * BATCH // 64
    assert dump["examples_with_non_finite_inputs"] == [[epoch, BAD_SAMPLE]]
    assert sorted(s for _, s in dump["examples"]) == sorted(ids_of(first)[0].tolist())
    assert not (tmp_path / "result.json").exists()


def test_stop_is_one_line_and_exit_code_1(tmp_path, capsys):
    config = poisoned_config((BAD_SAMPLE,)).values
    assert launch.execute("experiments.x", lambda: config, [f"--workdir={tmp_path}"]) == 1
    assert "error: step" in capsys.readouterr().err.splitlines()[-1]


def test_no_checkpoint_holds_a_bad_number(tmp_path):
    config = poisoned_config((BAD_SAMPLE,), "check.policy=stop", checkpoint=dict(every=1, keep=20))
    with pytest.raises(ledger.BadNumbers):
        train(config, tmp_path)
    state = final_state(config, tmp_path)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(state.params))


@pytest.mark.parametrize("accumulate", [1, 2])
def test_skip_is_the_run_in_which_that_update_was_not_applied(tmp_path, accumulate):
    config = poisoned_config(
        (BAD_SAMPLE,),
        "check.policy=skip",
        "mesh.data=8",
        train=dict(steps=12, batch_size=BATCH, accumulate=accumulate),
    )
    result = train(config, tmp_path)
    bad = steps_with(BAD_SAMPLE, 12)
    # The poisoned rows only matter in steps that are left out, so they may be whole in the oracle.
    expected, (kernel, bias) = gradient_descent(first_weights(config), 12, without=bad)
    seen = losses(tmp_path)
    assert [step for step, loss in seen.items() if not np.isfinite(loss)] == bad
    for step in set(seen) - set(bad):
        assert seen[step] == pytest.approx(expected[step], rel=1e-5)
    head = final_state(config, tmp_path).params["head"]
    np.testing.assert_allclose(head["kernel"][:, 0], kernel, rtol=1e-5)
    np.testing.assert_allclose(head["bias"][0], bias, rtol=1e-5, atol=1e-7)
    assert result["step"] == 12
    lines = [x for x in read_metrics(tmp_path / "metrics.jsonl") if x.get("train/bad")]
    assert [line["step"] for line in lines] == bad


def test_skip_gives_up_after_max_skips_in_a_row(tmp_path):
    everything = tuple(range(64))
    config = poisoned_config(everything, "check.policy=skip", "check.max_skips=3")
    with pytest.raises(ledger.BadNumbers, match=r"step 3: .* 3 such in a row"):
        train(config, tmp_path)


def test_rewind_leaves_the_examples_out_and_ends_the_same_twice(tmp_path):
    config = poisoned_config((BAD_SAMPLE,), "check.policy=rewind")
    bad = steps_with(BAD_SAMPLE, 12)
    result = train(config, tmp_path / "a")
    again = train(config, tmp_path / "b")
    assert result["fingerprint"] == again["fingerprint"]
    np.testing.assert_equal(losses(tmp_path / "a"), losses(tmp_path / "b"))
    noted = ledger.read_ledger(tmp_path / "a")
    assert noted == ledger.read_ledger(tmp_path / "b")
    assert [line["step"] for line in noted] == bad[:2]  # bad twice is left out for good
    assert [line["for_good"] for line in noted] == [[], [BAD_SAMPLE]]
    for line in noted:
        ids, epochs = ids_of(line["step"])
        assert line["examples"] == np.stack([epochs, ids], 1).tolist()
        assert line["suspects"] == [BAD_SAMPLE]
    _, (kernel, _) = gradient_descent(
        first_weights(config), 12, without=bad[:2], for_good={bad[2]: BAD_SAMPLE}
    )
    head = final_state(config, tmp_path / "a").params["head"]
    np.testing.assert_allclose(head["kernel"][:, 0], kernel, rtol=1e-5)


def test_a_fresh_run_with_the_ledger_of_another_is_that_run_bit_for_bit(tmp_path):
    config = poisoned_config((BAD_SAMPLE,), "check.policy=rewind")
    result = train(config, tmp_path / "a")
    (tmp_path / "b").mkdir()
    noted = (tmp_path / "a" / ledger.LEDGER).read_text()
    (tmp_path / "b" / ledger.LEDGER).write_text(noted)
    again = train(config, tmp_path / "b")
    assert again["fingerprint"] == result["fingerprint"]
    np.testing.assert_equal(losses(tmp_path / "a"), losses(tmp_path / "b"))
    assert (tmp_path / "b" / ledger.LEDGER).read_text() == noted  # no rewind was needed


def test_rewinds_are_bounded(tmp_path):
    config = poisoned_config((BAD_SAMPLE,), "check.policy=rewind", "check.max_rewinds=1")
    second = steps_with(BAD_SAMPLE, 12)[1]
    with pytest.raises(ledger.BadNumbers, match=rf"step {second}: .* after 1 rewinds"):
        train(config, tmp_path)


def test_a_row_that_is_bad_in_every_epoch_is_left_out_for_good_after_the_second(tmp_path):
    """24 epochs and 3 rewinds at most: without the rule the fourth epoch would end the run."""
    config = poisoned_config(
        (BAD_SAMPLE,), "check.policy=rewind", train=dict(steps=96, batch_size=BATCH)
    )
    assert train(config, tmp_path)["step"] == 96
    out = ledger.left_out(tmp_path)
    assert (1, BAD_SAMPLE) in out and (23, BAD_SAMPLE) in out
    innocent = next(s for _, s in ledger.read_ledger(tmp_path)[0]["examples"] if s != BAD_SAMPLE)
    assert (0, innocent) in out and (2, innocent) not in out


def test_without_a_row_to_blame_those_that_were_in_two_bad_steps_are_left_out(tmp_path):
    bad = ledger.BadNumbers(1, "spike")
    ledger.append_to_ledger(tmp_path, bad, [[0, 7], [0, 8]])
    ledger.append_to_ledger(tmp_path, bad, [[1, 8], [1, 9]])
    out = ledger.left_out(tmp_path)
    assert (0, 7) in out and (1, 7) not in out and (2, 8) in out and (2, 9) not in out


def test_a_damaged_ledger_is_refused(tmp_path):
    for text in ('{"step": 3, "exa\n', "[1]\n", '{"step": 3, "examples": [[1, "x"]]}\n', "no"):
        (tmp_path / ledger.LEDGER).write_text(text)
        with pytest.raises(UserError, match=r"skipped\.jsonl"):
            ledger.left_out(tmp_path)


def test_a_spike_is_caught_and_only_with_a_full_window(tmp_path):
    # A factor of 1,000 on one example makes its error large but finite. Epochs of 4 steps: the sample
    # comes every epoch, and the first 64 losses are let pass, as there is nothing to compare with.
    config = poisoned_config(
        (BAD_SAMPLE,),
        "check.policy=skip",
        "check.spike=20.0",
        factor="1000",
        train=dict(steps=80, batch_size=BATCH),
        optimizer=dict(type="sgd", learning_rate=1e-5),
        checkpoint=dict(every="end"),
    )
    train(config, tmp_path)
    bad = [x["step"] for x in read_metrics(tmp_path / "metrics.jsonl") if x.get("train/bad")]
    seen = losses(tmp_path)
    expected = []
    window = []
    for step in range(1, 81):
        recent = np.float64(window[-64:])
        if len(recent) == 64:
            median = np.median(recent)
            if seen[step] > median + 20 * 1.4826 * np.median(np.abs(recent - median)):
                expected.append(step)
                continue
        window.append(seen[step])
    assert bad == expected
    assert bad == [step for step in steps_with(BAD_SAMPLE, 80) if step > 64]


def test_a_spike_is_rewound_and_ends_as_a_run_that_never_saw_its_examples(tmp_path):
    config = poisoned_config(
        (BAD_SAMPLE,),
        "check.policy=rewind",
        "check.spike=20.0",
        factor="1000",
        train=dict(steps=72, batch_size=BATCH),
        optimizer=dict(type="sgd", learning_rate=1e-5),
        checkpoint=dict(every=8),
    )
    result = train(config, tmp_path / "a")
    noted = ledger.read_ledger(tmp_path / "a")
    assert [line["step"] for line in noted] == [s for s in steps_with(BAD_SAMPLE, 72) if s > 64]
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / ledger.LEDGER).write_text((tmp_path / "a" / ledger.LEDGER).read_text())
    assert train(config, tmp_path / "b")["fingerprint"] == result["fingerprint"]
    np.testing.assert_equal(losses(tmp_path / "a"), losses(tmp_path / "b"))


def test_the_window_survives_a_resume_bit_for_bit(tmp_path):
    config = poisoned_config((), "check.spike=8.0")
    train(config, tmp_path / "whole")

    asked = iter(range(100))
    with pytest.raises(Exception, match="stopped"):
        train(config, tmp_path / "parts", stop=lambda: next(asked) > 10)
    train(config, tmp_path / "parts")
    whole, parts = (final_state(config, tmp_path / name).guard for name in ("whole", "parts"))
    np.testing.assert_array_equal(whole.losses, parts.losses)
    assert whole.count == parts.count == 12
    np.testing.assert_array_equal(
        whole.losses[:12], np.float32(list(losses(tmp_path / "whole").values()))
    )


def test_steps_dispatched_after_a_halt_change_nothing():
    config = poisoned_config((), "check.policy=stop")
    program = build_program(config, config.section("data").source.open("train"))
    state = program.init(key_data(0), traced_hyper(config))[0]
    good = {
        **example_batch(config.section("data").source.open("train").features, BATCH),
        "label": jnp.ones((BATCH,)),
    }
    bad = {**good, "features": good["features"].at[0, 0].set(jnp.inf)}
    before = jax.device_get(state.params)
    state, metrics = program.train_step(state, bad, {})
    assert ledger.flags(metrics) == (True, True)
    state, _ = program.train_step(state, good, {})
    state, _ = program.train_step(state, good, {})
    assert int(state.step) == 0
    jax.tree.map(np.testing.assert_array_equal, before, jax.device_get(state.params))


def test_spike_limit_is_the_median_and_its_absolute_deviation():
    values = np.random.default_rng(1).exponential(size=64).astype(np.float32)
    median = np.median(values.astype(np.float64))
    expected = median + 7 * 1.4826 * np.median(np.abs(values - median))
    assert guard.spike_limit(jnp.asarray(values), 7.0) == pytest.approx(expected, rel=1e-6)


def test_nothing_is_applied_for_a_batch_of_weight_zero():
    zero = jnp.zeros((), jnp.int32)
    old = State(params=jnp.float32(1.0), step=zero, guard=guard.init_guard())
    state, shown = guard.guarded(
        old,
        lambda old: (old.replace(params=jnp.float32(2.0)), {"rate": jnp.float32(3.0)}),
        (jnp.nan, jnp.float32(0)),
        jnp.float32(0),
        settings.Check(),
    )
    assert float(state.params) == 1.0
    assert not shown["bad"] and not shown["halted"] and float(shown["rate"]) == 0.0


def test_one_example_on_the_ledger_reaches_no_other(tmp_path):
    config = poisoned_config(
        (BAD_SAMPLE,), train=dict(steps=steps_with(BAD_SAMPLE, 12)[0], batch_size=BATCH)
    )
    step = config.get("train.steps")
    ids, epochs = ids_of(step)
    pair = [int(epochs[0]), BAD_SAMPLE]
    ledger.append_to_ledger(tmp_path, ledger.BadNumbers(step, "by hand"), [pair])
    train(config, tmp_path)
    _, (kernel, bias) = gradient_descent(first_weights(config), step - 1)
    data, rest = columns(), ids[ids != BAD_SAMPLE]
    error = data["features"][rest] @ kernel + bias - data["label"][rest]
    assert len(rest) == BATCH - 1
    assert losses(tmp_path)[step] == pytest.approx(np.mean(error**2), rel=1e-5)
    head = final_state(config, tmp_path).params["head"]
    expected = kernel - RATE * 2 / len(rest) * data["features"][rest].T @ error
    np.testing.assert_allclose(head["kernel"][:, 0], expected, rtol=1e-5)


@pytest.mark.parametrize("policy", ["stop", "off"])
def test_no_parameter_is_copied_in_a_compiled_step(tmp_path, policy):
    """An update in place of what is still to be read would cost a copy of each kernel a step; and beside the
    gradients' sums, none of their size is written down."""
    np.savez(
        tmp_path / "train.npz", image=np.zeros((64, 8, 8, 1), np.uint8), label=np.arange(64) % 7
    )
    config = resolve(
        dict(
            train=dict(steps=3, batch_size=16),
            data=dict(
                source=dict(type="npz", directory=str(tmp_path)),
                splits=dict(train="train"),
                preprocess=(dict(type="normalize", scale=255.0),),
            ),
            model=dict(type="mlp", widths=(56, 72), outputs=7),
            task=dict(type="classification"),
            optimizer=dict(type="adamw", learning_rate=0.01),
            check=dict(policy=policy),
        )
    )
    source = config.section("data").source.open("train")
    device = make_mesh(config.section("mesh"), jax.devices()[:1])
    program = build_program(config, source, mesh=device)
    batch = abstract_batch(
        program.mesh, {"image": ((8, 8, 1), np.uint8), "label": ((), np.int64)}, 16
    )
    compiled = lowered_step(program, batch).compile()
    gradients = sum(4 * leaf.size for leaf in jax.tree.leaves(program.state.params))
    assert compiled.memory_analysis().temp_size_in_bytes < 2.25 * gradients
    text = compiled.as_text()
    assert "f32[56,72]" in text
    assert not re.findall(r"f32\[(?:64,56|56,72|72,7)\]\S* copy\(", text)
