"""Shrinking: GPTQ against its own objective in float64, units against the model without them, a run end to end."""

import json

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bigjax.build.assemble import assemble
from bigjax.compress.chain import Changed, Options, parsed
from bigjax.compress.folder import write as write_run
from bigjax.compress.gptq import gptq
from bigjax.compress.narrow import narrowed
from bigjax.compress.shrink import pareto
from bigjax.core.errors import UserError
from bigjax.core.quantize import Quantized
from bigjax.loop.open import open_run
from bigjax.loop.train import train
from bigjax.models.bert import BERT
from bigjax.models.cnn import CNN
from bigjax.models.gpt2 import GPT2
from bigjax.models.llama import Llama
from bigjax.models.mlp import MLP
from bigjax.models.resnet import ResNet
from bigjax.models.rnn import RNN
from bigjax.models.units import HEADS, UNITS
from bigjax.models.vit import ViT
from bigjax.verbs.launch import execute
from tests.small import small, small_config


def correlated(rows, inputs):
    rng = np.random.default_rng(0)
    return rng.normal(size=(rows, inputs)) @ rng.normal(size=(inputs, inputs))


@pytest.mark.parametrize("group", [None, 8])
def test_gptq_errs_less_on_its_data_than_rounding_to_the_nearest(group):
    x, w = correlated(200, 16), np.random.default_rng(1).normal(size=(16, 12))

    def error(codes, scales):
        seen = codes * np.repeat(scales, group or 16, axis=0)
        return np.sum((x @ w - x @ seen) ** 2)

    blocks = w.reshape(-1, group or 16, 12)
    scales = np.abs(blocks).max(axis=1) / 7
    nearest = np.clip(np.rint(w / np.repeat(scales, group or 16, axis=0)), -7, 7)
    codes, own = gptq(w, x.T @ x, group)
    assert np.array_equal(codes, np.rint(codes)) and np.abs(codes).max() <= 7
    assert error(codes, own) < 0.8 * error(nearest, scales)


def test_gptq_pays_an_error_back_as_the_best_of_what_is_left():
    """After the first input is rounded, the others are those of least squares (eq. 2), without damping."""
    x, w = correlated(50, 3), np.array([[0.9], [0.33], [-0.71]])
    codes, scales = gptq(w, x.T @ x, 1)
    rounded = codes[0] * scales[0]
    rest = np.linalg.lstsq(x[:, 1:], x @ w - x[:, :1] * rounded, rcond=None)[0]
    # Groups of one have exact scales: each later input is its own level, 7 scales.
    assert abs(rounded[0] - w[0, 0]) < 1e-12
    np.testing.assert_allclose(codes[1:, 0] * scales[1:, 0], rest[:, 0], rtol=1e-9)


def test_units_that_do_nothing_are_the_ones_taken_out():
    model = MLP(widths=(6, 4), outputs=3)
    x = jnp.asarray(np.random.default_rng(0).normal(size=(5, 7)), jnp.float32)
    params = jax.tree.map(np.array, model.init(jax.random.key(0), x, train=False))["params"]
    params["dense_0"]["bias"] = np.linspace(-1, 1, 6, dtype=np.float32)
    params["dense_1"]["kernel"][[1, 4]] = 0.0  # what these two give is not read
    params["head"]["kernel"][[0, 3]] = 0.0
    changes, smaller = narrowed("narrow", UNITS, model, {"params": params}, 1 / 3)
    assert changes == {"widths": (4, 3)}
    changes, smaller = narrowed("narrow", UNITS, model, {"params": params}, 0.4)
    assert changes == {"widths": (4, 2)}
    found = MLP(widths=(4, 2), outputs=3).apply(smaller, x, train=False)
    np.testing.assert_allclose(found, model.apply({"params": params}, x, train=False), atol=1e-6)
    with pytest.raises(UserError, match="narrow: RNN does not say which units can be taken out"):
        narrowed("narrow", UNITS, RNN(widths=(4,), outputs=3), {"params": params}, 0.5)


@pytest.mark.parametrize(
    "options", [dict(dense=(5,)), dict(batch_norm=True, global_average_pool=True)]
)
def test_channels_that_do_nothing_are_the_ones_taken_out(options):
    model = CNN(channels=(6, 4), outputs=3, **options)
    x = jnp.asarray(np.random.default_rng(0).normal(size=(5, 8, 8, 2)), jnp.float32)
    variables = jax.tree.map(np.array, model.init(jax.random.key(0), x, train=False))
    params = variables["params"]
    for stats in variables.get("batch_stats", {}).values():  # other than they begin
        stats["mean"] += np.linspace(-1, 1, len(stats["mean"]), dtype=np.float32)
    params["conv_1"]["kernel"][:, :, [1, 4]] = 0.0  # what these two channels give is not read
    after = params["dense_0" if "dense_0" in params else "head"]["kernel"]
    after.reshape(-1, 4, after.shape[-1])[:, [0, 3]] = 0.0
    if "dense_0" in params:
        params["head"]["kernel"][[2, 3]] = 0.0
    changes, smaller = narrowed("narrow", UNITS, model, variables, 0.4)
    dense = {"dense": (3,)} if "dense_0" in params else {}
    assert changes == {"channels": (4, 2), **dense}
    assert smaller["params"]["conv_1"]["kernel"].shape == (3, 3, 4, 2)
    found = model.clone(**changes).apply(smaller, x, train=False)
    np.testing.assert_allclose(found, model.apply(variables, x, train=False), atol=1e-6)


def numbers(model, inputs):
    """Variables of a model: positive, and those of one leaf alike in no two places."""
    shapes = jax.eval_shape(lambda: nn.unbox(model.init(jax.random.key(0), inputs, train=False)))
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda x: rng.uniform(0.1, 0.5, x.shape).astype(np.float32), shapes)


def model_of_heads(kind, **options):
    """(a model of three heads, or pairs of heads, of width 4; its inputs)."""
    sizes = dict(layers=2, width=24, heads=3, mlp_width=6, head_width=4)
    tokens = np.arange(14).reshape(2, 7) % 11
    if kind == "vit":
        pictures = np.random.default_rng(0).normal(size=(2, 8, 8, 1)).astype(np.float32)
        return ViT(outputs=3, image=8, patch=4, pool="map", **sizes), pictures
    if kind == "llama":
        sizes |= dict(heads=6, kv_heads=3)
    return {"gpt2": GPT2, "bert": BERT, "llama": Llama}[kind](
        vocab=11, context=8, **sizes, **options
    ), tokens


@pytest.mark.parametrize("kind", ["llama", "llama_normed", "gpt2", "bert", "vit"])
def test_heads_and_hidden_units_that_do_nothing_are_the_ones_taken_out(kind):
    kind, _, normed = kind.partition("_")
    model, inputs = model_of_heads(kind, **(dict(qk_norm="head") if normed else {}))
    params = numbers(model, inputs)["params"]
    each = 2 if kind == "llama" else 1
    for number, path in enumerate(["block_0", "block_1", *["pool"] * (kind == "vit")]):
        block, out = params[path], (number + 1) % 3  # another one in each
        block["attention"]["out"]["kernel"][each * out : each * (out + 1)] = 0.0
        block["mlp"]["down"]["kernel"][[number, 5]] = 0.0
    expected = jax.jit(lambda p: model.apply({"params": p}, inputs, train=False))(params)
    changes, smaller = narrowed("heads", HEADS, model, {"params": params}, 1 / 3)
    key_heads = {"kv_heads": 2} if kind == "llama" else {}
    assert changes == {"heads": 2 * each, "head_width": 4, **key_heads}
    assert smaller["params"]["block_0"]["attention"]["query"]["kernel"].shape == (24, 2 * each, 4)
    model = model.clone(**changes)
    changes, smaller = narrowed("narrow", UNITS, model, smaller, 1 / 3)
    assert changes == {"mlp_width": 4}
    found = jax.jit(lambda v: model.clone(**changes).apply(v, inputs, train=False))(smaller)
    np.testing.assert_allclose(found, expected, atol=2e-6, rtol=1e-5)


def test_stacked_layers_are_refused():
    model = GPT2(vocab=11, context=8, layers=2, width=8, heads=2, scan_layers=True)
    with pytest.raises(UserError, match="scan_layers stacks the layers"):
        narrowed("heads", HEADS, model, {}, 0.5)


@pytest.mark.parametrize("block", ["basic", "bottleneck"])
def test_channels_within_residual_blocks_that_do_nothing_are_taken_out(block):
    model = ResNet(outputs=3, layers=(1, 1), block=block, width=4, stem="small")
    x = jnp.asarray(np.random.default_rng(0).normal(size=(2, 8, 8, 2)), jnp.float32)
    variables = numbers(model, x)
    for stage in range(2):
        layers = variables["params"][f"stage_{stage}_block_0"]
        for n in range(1 if block == "basic" else 0, 2):
            layers[f"conv_{n + 1}"]["kernel"][:, :, 1::4] = 0.0  # what every fourth channel gives
    changes, smaller = narrowed("narrow", UNITS, model, variables, 0.25)
    assert changes == {"inner_widths": (3, 6)}
    assert smaller["batch_stats"]["stage_1_block_0"]["norm_1"]["mean"].shape == (6,)
    found = jax.jit(lambda v: model.clone(**changes).apply(v, x, train=False))(smaller)
    expected = jax.jit(lambda v: model.apply(v, x, train=False))(variables)
    np.testing.assert_allclose(found, expected, atol=1e-5, rtol=1e-5)


def test_the_front_is_what_nothing_is_smaller_and_better_than():
    rows = [
        {"kB on disk": size, "accuracy": value}
        for size, value in ((9, 0.9), (5, 0.8), (6, 0.7), (2, 0.5), (5, 0.6))
    ]
    assert pareto(rows, "accuracy", True) == [3, 1, 0]
    assert pareto(rows, "accuracy", False) == [3]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("shrink") / "run"
    train(small(model=dict(type="mlp", widths=(16,), outputs=10)), folder)
    return folder


def shrink(folder, *words):
    return execute("tiny", small_config, ["shrink", f"--workdir={folder}", *words])


def test_a_chain_leaves_runs_a_table_and_a_page(run, capsys):
    assert shrink(run, "--chain=prune:0.5,gptq:16", "--keep=head/kernel") == 0
    assert "prune:0.5,gptq:16" in capsys.readouterr().out
    table = json.loads((run / "shrink" / "table.json").read_text())
    assert [row["model"] for row in table] == ["before", "prune:0.5", "prune:0.5,gptq:16"]
    before, pruned, small_ = table
    result = json.loads((run / "result.json").read_text())["metrics"]
    assert before["accuracy"] == pytest.approx(result["eval/test/accuracy"], abs=1e-9)
    assert before["low"] < before["accuracy"] < before["high"]
    assert pruned["parameters"] <= before["parameters"] - 64 * 16 // 2
    assert small_["kB in memory"] < 0.5 * before["kB in memory"] == 0.5 * pruned["kB in memory"]
    assert "<svg" in (run / "shrink" / "shrink.html").read_text()

    opened = open_run(run / "shrink" / "prune:0.5,gptq:16")
    held = opened.frozen["base"]["dense_0"]["kernel"]
    assert isinstance(held, Quantized) and held.codes.dtype == jnp.uint8
    assert opened.evaluate("test")["accuracy"] == pytest.approx(small_["accuracy"], abs=1e-6)
    kept = open_run(run).variables["params"]["head"]["kernel"]
    assert np.array_equal(opened.variables["params"]["head"]["kernel"], kept)
    assert (
        np.mean(
            open_run(run / "shrink" / "prune:0.5").variables["params"]["dense_0"]["kernel"] == 0
        )
        == 0.5
    )

    assert shrink(run, "--chain=int8", "--rule=head/kernel=int4:8") == 0
    held = open_run(run / "shrink" / "int8").frozen["base"]
    assert [held[layer]["kernel"].format for layer in ("dense_0", "head")] == ["int8", "int4"]
    assert held["head"]["kernel"].scales.shape == (2, 1, 10)

    file = run / "shrink" / "prune:0.5,gptq:16" / "base.npz"
    file.write_bytes(file.read_bytes()[:200])
    with pytest.raises(UserError, match=r"base\.npz: cannot be read"):
        open_run(file.parent)


def test_a_batch_norm_is_told_what_rounding_moves(tmp_path):
    """On the calibration data each is given, less its running mean, what it was given before, on average."""
    model = dict(type="cnn", channels=(4, 4), outputs=10, batch_norm=True)
    config = small("train.batch_size=64", model=model, evaluate=dict(splits=(), every="never"))
    abstract = nn.unbox(assemble(config, tmp_path / "run").program.variables)
    rng = np.random.default_rng(0)
    drawn = jax.tree.map(lambda x: rng.uniform(0.2, 1, x.shape).astype(np.float32), abstract)
    run = write_run(Changed(config, drawn, {}), tmp_path / "run", step=1)
    (_, step, argument), *_ = parsed("int4")
    shrunk = write_run(step(run, argument, Options(calibration=1)), tmp_path / "int4", step=1)
    pictures = run.setup.sources["train"].read(np.arange(64))["image"] / 16.0

    def given(run):
        """Norm -> the mean of what it is given, less its running mean."""
        network = run.config.make("model")
        _, kept = network.apply(run.variables, pictures, train=False, capture_intermediates=True)
        convs = {n: kept["intermediates"][f"conv_{n}"]["__call__"][0] for n in range(2)}
        means = {n: np.mean(np.float64(x), axis=(0, 1, 2)) for n, x in convs.items()}
        return [means[n] - run.variables["batch_stats"][f"norm_{n}"]["mean"] for n in range(2)]

    np.testing.assert_allclose(given(shrunk), given(run), atol=2e-5)
    plain = step(run, argument, Options(calibration=0)).variables["batch_stats"]
    moved = shrunk.variables["batch_stats"]["norm_1"]["mean"] - plain["norm_1"]["mean"]
    assert np.abs(moved).max() > 0.05


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ((), "shrink needs --chain"),
        (("--chain=int9",), "no step 'int9' (did you mean 'int8'"),
        (("--chain=prune:2",), "give a number between 0 and 1"),
        (("--chain=svd:64",), "no fewer numbers"),
        (("--chain=gptq", "--calibration=0"), "--calibration: this step needs 1 batch or more"),
        (("--chain=int8", "--keep=haed/.*"), "matches the whole path of no parameter"),
        (("--chain=int8", "--rule=head/kernel"), "give REGEX=FORMAT, such as"),
        (("--chain=int8", "--rule=head/kernel=int5"), "no format (did you mean 'int8'"),
        (("--chain=int8", "--rule=haed/.*=int4"), "matches the whole path of no parameter"),
        (("--chain=svd:2", "--rule=head/kernel=int4"), "--rule is for the steps int8, int4"),
        (("--chain=int8", "--split=tets"), "did you mean 'test'"),
    ],
)
def test_what_does_not_fit_is_one_line_and_leaves_nothing(run, words, said, capsys):
    before = {path.name for path in run.glob("shrink/*")}
    assert shrink(run, *words) == 2
    assert said in capsys.readouterr().err
    assert {path.name for path in run.glob("shrink/*")} == before
