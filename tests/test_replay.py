"""Replay: the same bits again, or the first difference by name; and nothing written."""

import json
import shutil

import jax
import numpy as np
import pytest

from bigjax.build.parts import example_batch, key_data, traced_hyper
from bigjax.build.program import build_program
from bigjax.loop import bits
from bigjax.loop.train import train
from bigjax.run import ledger
from bigjax.run.checkpoint import Checkpoints
from bigjax.run.writers import read_metrics
from bigjax.verbs import launch
from tests.poison import BATCH, ids_of, poisoned_config


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """12 steps in which sample 5 is poisoned and the run rewound: checkpoints every 2 steps."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    config = poisoned_config((5,), "check.policy=rewind", checkpoint=dict(every=2, keep=20))
    train(config, folder)
    return config, folder


def command(config, folder, *flags):
    arguments = ["replay", f"--workdir={folder}", *flags]
    return launch.execute("experiments.x", lambda: config.values, arguments)


def changed_copy(run, tmp_path, step, change):
    """The run's folder, its metrics of one step changed."""
    folder = tmp_path / "run"
    shutil.copytree(run[1], folder)
    lines = read_metrics(folder / "metrics.jsonl")
    for line in lines:
        if line["step"] == step:
            line["train/loss"] = change(line["train/loss"])
    text = "".join(
        json.dumps({k: str(v) if v != v else v for k, v in x.items()}) + "\n" for x in lines
    )
    (folder / "metrics.jsonl").write_text(text.replace('"nan"', '"NaN"'))
    return folder


@pytest.mark.parametrize("start", [0, 4])
def test_a_run_with_its_ledger_is_repeated_bit_for_bit_and_nothing_is_written(run, start, capsys):
    config, folder = run
    assert len(ledger.read_ledger(folder)) == 2

    def content():
        return {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()}

    before = content()
    assert command(config, folder, f"--from={start}") == 0
    steps = 12 - start
    # loss, gradient norm, learning rate and mean absolute error of every step; a checkpoint every 2
    assert (
        f"equal: steps {start + 1} to 12, {4 * steps} recorded numbers, {steps // 2} checkpoints"
        in (capsys.readouterr().out)
    )
    assert content() == before


def test_steps_say_how_far(run, capsys):
    assert command(*run, "--from=2", "--steps=3") == 0
    assert "equal: steps 3 to 5, 12 recorded numbers, 1 checkpoints" in capsys.readouterr().out


def test_a_loss_of_one_ulp_more_is_named(run, tmp_path, capsys):
    folder = changed_copy(run, tmp_path, 7, lambda loss: float(np.nextafter(loss, np.inf)))
    assert command(run[0], folder, "--from=4") == 1
    assert "error: step 7: train/loss was" in capsys.readouterr().err
    assert command(run[0], folder, "--from=8") == 0


def test_a_leaf_that_differs_is_named(run, monkeypatch, capsys):
    restore = Checkpoints.restore

    def one_bit_off(self, abstract, step=None):
        state = restore(self, abstract, step)
        if step != 8:
            return state
        bias = state.params["head"]["bias"]
        head = {**state.params["head"], "bias": bias.at[0].set(np.nextafter(bias[0], np.inf))}
        return state.replace(params={"head": head})

    monkeypatch.setattr(Checkpoints, "restore", one_bit_off)
    assert command(*run, "--from=4") == 1
    assert "step 8: params/head/bias differ from the checkpoint" in capsys.readouterr().err


def test_the_ledger_is_what_makes_it_the_same_run(run, tmp_path, capsys):
    folder = changed_copy(run, tmp_path, 1, lambda loss: loss)
    (folder / ledger.LEDGER).unlink()
    assert command(run[0], folder, "--from=0") == 1
    first = next(step for step in range(1, 13) if 5 in ids_of(step)[0])
    assert f"error: step {first}: train/" in capsys.readouterr().err


def test_a_halt_is_replayed_as_a_halt(tmp_path, capsys):
    config = poisoned_config((5,))
    with pytest.raises(ledger.BadNumbers):
        train(config, tmp_path)
    assert command(config, tmp_path, "--from=0") == 0
    assert "halts, as recorded" in capsys.readouterr().out


@pytest.mark.parametrize(
    "flags, message",
    [
        ([], "needs --from"),
        (["--from=3"], "has checkpoints of [2, 4, 6, 8, 10, 12], and step 0"),
        (["--from=12"], "nothing is recorded of steps"),
        (["--from=2", "--steps=0"], "of 1 or more"),
    ],
)
def test_what_cannot_be_replayed_is_refused(run, flags, message, capsys):
    assert command(*run, *flags) == 2
    assert message in capsys.readouterr().err


def test_checking_steps_again_while_training_changes_nothing(run, tmp_path):
    plain = train(poisoned_config(()), tmp_path / "plain")
    checked = train(poisoned_config((), "check.replay_every=3"), tmp_path / "checked")
    assert plain["fingerprint"] == checked["fingerprint"]


def test_a_bit_that_flips_in_one_execution_is_found_and_named(run):
    config, _ = run
    source = config.section("data").source.open("train")
    program = build_program(config, source)
    batch = example_batch(source.features, BATCH)
    before = program.init(key_data(0), traced_hyper(config))[0]
    kept, again = (jax.tree.map(lambda x: x + 0, before) for _ in range(2))
    after, _ = program.train_step(before, batch, {})
    bits.check_again(1, program, kept, batch, {}, after)
    kernel = np.asarray(after.params["head"]["kernel"]).copy()
    kernel.view(np.uint32)[1, 0] ^= 1
    flipped = after.replace(params={"head": {**after.params["head"], "kernel": kernel}})
    with pytest.raises(bits.Different, match=r"step 1: .* params/head/kernel"):
        bits.check_again(1, program, again, batch, {}, flipped)


def test_bits_are_compared_and_not_values():
    a = {"x": np.float32([0.0, np.nan]), "n": np.int32([1, 2])}
    assert bits.differing(a, {"x": a["x"].copy(), "n": a["n"]}) == []
    assert bits.differing(a, {"x": np.float32([-0.0, np.nan]), "n": a["n"]}) == ["x"]
    assert bits.differing(a, {"x": a["x"], "n": np.int32([1, 3])}) == ["n"]
