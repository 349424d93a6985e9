"""LoRA against float64 by hand, on whole runs, on stacked layers and on a published layout."""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bigjax.core.adapt import Adaptation
from bigjax.core.errors import UserError
from bigjax.core.rules import paths
from bigjax.loop.open import open_run
from bigjax.loop.train import train
from bigjax.methods.lora import LoRA, as_matrix
from bigjax.models.llama import Llama
from bigjax.verbs.launch import execute
from tests.small import small

RULES = (("head/.*", "train"), (".*kernel", "adapt"), (".*", None))
LORA = dict(adapt=(dict(type="lora", rank=2, rules=RULES),))


def begun(params, **fields):
    adaptation = Adaptation((LoRA(**fields),))
    trained, base = adaptation.begin(jax.random.key(1), params)
    return adaptation, trained, {"base": base}


def numbers(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape)


def test_gradient_equals_the_float64_derivation():
    x, w, target = numbers(0, 7, 6), numbers(1, 6, 5), numbers(2, 7, 5)
    params = {"head": {"kernel": jnp.float32(w), "bias": jnp.zeros(5)}}
    adaptation, trained, frozen = begun(params, rank=2, alpha=6.0)
    a, b = np.asarray(trained["lora"]["head"]["kernel"]["a"], np.float64), numbers(3, 2, 5)
    trained["lora"]["head"]["kernel"]["b"] = jnp.float32(b)

    def loss(trained):
        kernel = adaptation.params(trained, frozen, 0)["head"]["kernel"]
        return 0.5 * jnp.sum((jnp.float32(x) @ kernel - jnp.float32(target)) ** 2)

    found = jax.grad(loss)(trained)["lora"]["head"]["kernel"]
    dw = x.T @ (x @ (w + 3.0 * a @ b) - target)  # alpha / r = 3
    np.testing.assert_allclose(found["a"], 3.0 * dw @ b.T, rtol=2e-5, atol=1e-4)
    np.testing.assert_allclose(found["b"], 3.0 * a.T @ dw, rtol=2e-5, atol=1e-4)
    assert set(paths(trained)) == {"lora/head/kernel/a", "lora/head/kernel/b"}


def test_a_is_drawn_with_variance_one_over_its_inputs():
    params = {"head": {"kernel": jnp.zeros((400, 300))}}
    _, trained, _ = begun(params, rank=64)
    found = trained["lora"]["head"]["kernel"]
    assert np.std(found["a"]) == pytest.approx(400**-0.5, rel=0.02)
    assert not np.any(found["b"])


@pytest.mark.parametrize(
    ("path", "shape", "expected"),
    [
        ("block_0/attention/query/kernel", (576, 9, 64), ((), 576, 576)),
        ("block_0/attention/key/kernel", (576, 3, 64), ((), 576, 192)),
        ("block_0/attention/out/kernel", (9, 64, 576), ((), 576, 576)),
        ("blocks/attention/key/kernel", (30, 576, 3, 64), ((30,), 576, 192)),
        ("conv_1/kernel", (3, 3, 64, 128), ((), 576, 128)),
    ],
)
def test_which_matrix_a_leaf_is(path, shape, expected):
    assert as_matrix(path, shape) == expected


def tiny_llama(**fields):
    model = Llama(
        vocab=31, layers=3, width=16, heads=4, kv_heads=2, mlp_width=24, context=8, **fields
    )
    tokens = jnp.arange(16).reshape(2, 8) % 31
    variables = jax.jit(lambda key: model.init(key, tokens, train=False))(jax.random.key(0))
    import flax.linen as nn

    return model, nn.unbox(variables)["params"], tokens


@pytest.mark.slow
def test_stacked_layers_have_adapters_of_their_own():
    model, params, tokens = tiny_llama(scan_layers=True)
    adaptation, trained, frozen = begun(params, rank=2)
    merged = adaptation.params(trained, frozen, 0)
    assert all(np.array_equal(leaf, paths(params)[path]) for path, leaf in paths(merged).items())
    own = trained["lora"]["blocks"]["attention"]["query"]["kernel"]
    assert own["a"].shape == (3, 16, 2) and own["b"].shape == (3, 2, 16)

    own["b"] = jnp.float32(numbers(4, 3, 2, 16))
    merged = adaptation.params(trained, frozen, 0)
    plain, whole = tiny_llama()[0], {k: v for k, v in merged.items() if k != "blocks"}
    whole |= {f"block_{i}": jax.tree.map(lambda x, i=i: x[i], merged["blocks"]) for i in range(3)}
    np.testing.assert_allclose(
        model.apply({"params": merged}, tokens, train=False),
        plain.apply({"params": whole}, tokens, train=False),
        atol=1e-5,
    )
    one = params["blocks"]["attention"]["query"]["kernel"][1].reshape(16, 16)
    expected = one + 8.0 * np.asarray(own["a"][1]) @ np.asarray(own["b"][1])
    found = merged["blocks"]["attention"]["query"]["kernel"][1].reshape(16, 16)
    np.testing.assert_allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (dict(rules=((".*", "adapt"),)), "is no matrix"),
        (dict(rules=((".*kernel", "adept"), (".*", None))), "'adept'"),
        (dict(rules=((".*karnel", "adapt"), (".*", None))), "matches the whole path of no"),
        (dict(rank=99), "rank 99 is more than"),
        (dict(rank=0), "must be 1 or more"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(fields, message):
    params = {"head": {"kernel": jnp.zeros((6, 5)), "bias": jnp.zeros(5)}}
    with pytest.raises(UserError, match=message):
        begun(params, **fields)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("lora")
    return folder, train(small(**LORA), folder)


def test_a_run_saves_adapters_alone_and_starts_as_its_base(run):
    folder, _ = run
    arrays = json.loads(next(folder.glob("checkpoints/12/*.json")).read_text())["arrays"]
    kept = {path for path in arrays if path.startswith(("params/", "opt_state/"))}
    assert "params/lora/dense_0/kernel/a" in kept and "params/model/head/kernel" in kept
    assert not any(path.endswith(("dense_0/kernel", "dense_0/bias")) for path in kept)

    opened = open_run(folder)
    state, frozen = opened.setup.start()
    first = opened.setup.program.evaluation_variables(state, frozen)["params"]
    base = frozen["base"]["dense_0"]["kernel"]
    assert np.array_equal(first["dense_0"]["kernel"], base)
    assert not np.array_equal(opened.variables["params"]["dense_0"]["kernel"], base)
    assert np.array_equal(opened.frozen["base"]["dense_0"]["kernel"], base)


def test_another_base_is_refused(run, tmp_path):
    folder, _ = run
    recorded = json.loads((folder / "manifest.json").read_text())
    assert len(recorded["frozen"]["base"]) == 64
    started = tmp_path / "from"
    train(small(), started)
    config = small(**LORA, init=dict(source=str(started)))
    train(config, tmp_path / "run")
    (started / "config.json").write_text(
        (started / "config.json").read_text().replace('"seed": 0', '"seed": 1')
    )
    for path in (started / "checkpoints").iterdir():
        if path.name == "12":
            path.rename(started / "away")  # the newest is now another: so is the base
    with pytest.raises(UserError, match="trained on another base"):
        open_run(tmp_path / "run")


@pytest.mark.slow
def test_exported_it_is_a_whole_model_with_the_same_logits(tmp_path):

    tokens = np.random.default_rng(0).integers(0, 31, (32, 8)).astype(np.int32)
    (tmp_path / "data").mkdir()
    np.savez(tmp_path / "data" / "train.npz", tokens=tokens)
    raw = dict(
        train=dict(steps=3, batch_size=8),
        data=dict(
            source=dict(type="npz", directory=str(tmp_path / "data")), splits=dict(train="train")
        ),
        model=dict(
            type="llama", vocab=31, layers=2, width=16, heads=4, kv_heads=2, mlp_width=24, context=8
        ),
        task=dict(type="language_model"),
        optimizer=dict(type="adam", learning_rate=1e-2),
        evaluate=dict(every="never"),
        log=dict(tensorboard=False),
        adapt=(dict(type="lora", rank=2),),
    )
    from ml_collections import ConfigDict

    def command(*words):
        return execute("tiny", lambda: ConfigDict(raw), list(words))

    command(f"--workdir={tmp_path / 'run'}")
    command("export", f"--workdir={tmp_path / 'run'}", f"--output={tmp_path / 'out'}")
    opened = open_run(tmp_path / "run")
    ours = opened.model.apply(opened.variables, tokens, train=False)

    init = dict(source=str(tmp_path / "out"), family="llama")
    again = {**raw, "init": init, "adapt": (), "model": dict(type="llama")}
    loaded = open_run(tmp_path / "other", raw=again)
    theirs = loaded.model.apply(loaded.variables, tokens, train=False)
    np.testing.assert_allclose(ours, theirs, atol=1e-6)
    base = opened.model.apply({"params": opened.setup.start()[1]["base"]}, tokens, train=False)
    assert np.abs(ours - base).max() > 1e-3


def test_adapters_are_switched_on_one_base(run, tmp_path):
    folder, _ = run
    train(small("optimizer.learning_rate=0.03", **LORA), tmp_path / "other")
    opened, rows = open_run(folder), {"image": np.full((3, 8, 8, 1), 7.0, np.float32)}
    switched = opened.switched(tmp_path / "other")
    assert switched.frozen is opened.frozen and switched.setup is opened.setup
    alone = open_run(tmp_path / "other").predict(rows)
    assert switched.predict(rows) == alone != opened.predict(rows)

    train(small("seed=5", **LORA), tmp_path / "elsewhere")
    with pytest.raises(UserError, match="not trained on the base of"):
        opened.switched(tmp_path / "elsewhere")
    train(small("train.steps=1", adapt=(dict(type="lora", rank=3),)), tmp_path / "wider")
    with pytest.raises(UserError, match=r"its config\.adapt is not that of"):
        opened.switched(tmp_path / "wider")


def test_adapters_are_switched_by_name_at_predict(run, tmp_path, capsys):
    folder, _ = run
    name = "other"
    train(small("optimizer.learning_rate=0.03", **LORA), folder.parent / name)
    rows = np.full((2, 8, 8, 1), 7.0, np.float32)
    np.savez(tmp_path / "rows.npz", image=rows)
    words = ["predict", f"--workdir={folder}", f"--input={tmp_path / 'rows.npz'}"]
    command = functools.partial(execute, "tiny", lambda: None)
    assert command([*words, f"--adapter={name}", f"--adapter={folder}"]) == 0
    found = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [(line.pop("adapter"), line["row"]) for line in found] == [
        (name, 0),
        (name, 1),
        (str(folder), 0),
        (str(folder), 1),
    ]
    alone = [open_run(f).predict({"image": rows}) for f in (folder.parent / name, folder)]
    assert found == alone[0] + alone[1] and alone[0] != alone[1]
    assert command([*words, "--adapter=othr"]) == 2
    said = capsys.readouterr().err
    assert "--adapter=othr: no run of that name beside" in said and "did you mean 'other'?" in said
