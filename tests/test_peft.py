"""Adapters as `peft` keeps them, against a hand computation in float64 and against the library."""

import json
import re
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from bigjax.core.adapt import Adaptation
from bigjax.core.errors import UserError
from bigjax.core.rules import paths
from bigjax.loop.open import open_run
from bigjax.loop.train import train
from bigjax.methods.lora import DoRA, LoRA
from bigjax.pretrained.families import family_of_source
from bigjax.pretrained.peft import open_adapted
from bigjax.pretrained.peft_train import adapt_section, begun
from bigjax.pretrained.peft_write import write_adapters
from bigjax.verbs.launch import execute
from tests import parity

RNG = np.random.default_rng(0)
TOKENS = RNG.integers(1, 40, (2, 7)).astype(np.int32)


def numbers(*shape):
    return RNG.normal(size=shape).astype(np.float32)


@pytest.fixture
def folder(tmp_path):
    """A base of three tensors, and a folder for its adapters."""
    base = {
        "fc.weight": numbers(5, 4),
        "turned.weight": numbers(4, 5),
        "table.weight": numbers(6, 3),
    }
    (tmp_path / "published").mkdir()
    save_file(base, tmp_path / "published" / "model.safetensors")
    (tmp_path / "adapters").mkdir()
    return tmp_path / "adapters", base


def write(folder, tensors, **settings):
    base = str(folder.parent / "published")
    settings = dict(peft_type="LORA", base_model_name_or_path=base, r=2, lora_alpha=6) | settings
    (folder / "adapter_config.json").write_text(json.dumps(settings))
    named = {f"base_model.model.{name}.weight": x for name, x in tensors.items()}
    save_file(named, folder / "adapter_model.safetensors")


@pytest.mark.parametrize(
    ("settings", "scale"),
    [(dict(), 3.0), (dict(use_rslora=True), 6 / 2**0.5), (dict(alpha_pattern={"fc": 10}), 5.0)],
)
def test_the_product_is_added_by_its_scale(settings, scale, folder):
    folder, base = folder
    a, b = numbers(2, 4), numbers(5, 2)
    write(folder, {"fc.lora_A": a, "fc.lora_B": b}, **settings)
    found = open_adapted(str(folder))
    expected = np.float64(base["fc.weight"]) + scale * np.float64(b) @ np.float64(a)
    np.testing.assert_allclose(found.read("fc.weight"), expected, atol=1e-5)
    np.testing.assert_array_equal(found.read("table.weight"), base["table.weight"])


def test_a_matrix_that_lies_turned_an_embedding_and_magnitudes(folder):
    folder, base = folder
    a, b, rows, columns = numbers(2, 4), numbers(5, 2), numbers(2, 6), numbers(3, 2)
    write(
        folder,
        {
            "turned.lora_A": a,
            "turned.lora_B": b,
            "table.lora_embedding_A": rows,
            "table.lora_embedding_B": columns,
            "fc.lora_A": a,
            "fc.lora_B": b,
            "fc.lora_magnitude_vector": np.float32([1, 2, 3, 4, 5]),
        },
        fan_in_fan_out=True,
    )
    found = open_adapted(str(folder))
    expected = base["turned.weight"] + 3.0 * (b @ a).T
    np.testing.assert_allclose(found.read("turned.weight"), expected, atol=1e-5)
    expected = base["table.weight"] + 3.0 * (columns @ rows).T
    np.testing.assert_allclose(found.read("table.weight"), expected, atol=1e-5)
    norms = np.linalg.norm(np.float64(found.read("fc.weight")), axis=1)
    np.testing.assert_allclose(norms, [1, 2, 3, 4, 5], rtol=1e-5)


@pytest.mark.parametrize(
    ("tensors", "settings", "said"),
    [
        ({}, dict(peft_type="IA3"), "peft_type is 'IA3', not 'LORA'"),
        ({}, dict(use_qalora=True), "use_qalora is set"),
        ({}, dict(base_model_name_or_path=None), "should name the base's folder"),
        ({}, dict(base_model_name_or_path="nowhere"), "no file or folder 'nowhere'"),
        ({"fd.lora_A": numbers(2, 4)}, {}, r"has no 'fd.weight' \(did you mean 'fc.weight'"),
        ({"fc.lora_A": numbers(2, 4)}, {}, "fc lacks its lora_B"),
        (
            {"fc.lora_A": numbers(2, 3), "fc.lora_B": numbers(5, 2)},
            {},
            r"is for \(5, 3\), the base",
        ),
        ({"fc.lora_A": numbers(3, 4), "fc.lora_B": numbers(5, 2)}, {}, "do not fit"),
        (
            {"fc.lora_A": numbers(2, 4), "fc.lora_B": numbers(5, 2)},
            dict(alpha_pattern={"(a+)+": 3}),
            "is a pattern, not a name",
        ),
        (
            {"fc.lora_A": numbers(2, 4), "fc.lora_B": numbers(5, 2)},
            dict(lora_alpha="six"),
            "lora_alpha is 'six'",
        ),
    ],
)
def test_what_cannot_be_read_is_one_line(tensors, settings, said, folder):
    folder, _ = folder
    write(folder, tensors or {"table.lora_A": numbers(2, 2)}, **settings)
    with pytest.raises(UserError, match=said):
        open_adapted(str(folder)).read("fc.weight")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (
            dict(source="nowhere"),
            "'train' needs a folder with adapter_config.json; nowhere is none",
        ),
        (dict(scan_layers=True), "'train' needs config.model.scan_layers=False"),
        (dict(r="two"), "r is 'two', not a rank"),
    ],
)
def test_what_cannot_be_trained_on_is_one_line(changes, said, folder):
    folder, _ = folder
    write(folder, {"fc.lora_A": numbers(2, 4), "fc.lora_B": numbers(5, 2)}, r=changes.get("r", 2))
    init = dict(source=changes.get("source", str(folder)), family="gpt2")
    with pytest.raises(UserError, match=said):
        adapt_section(init, {**MODEL, "scan_layers": changes.get("scan_layers", False)})


MODEL = dict(type="gpt2", vocab=40, layers=2, width=16, heads=2, context=8, dropout=0.0)


@pytest.mark.slow
def test_a_run_exports_its_adapters_and_starts_from_them(tmp_path, capsys):
    (tmp_path / "data").mkdir()
    np.savez(tmp_path / "data" / "train.npz", tokens=RNG.integers(0, 40, (16, 8)).astype(np.int32))
    rules = (("block_0/mlp/.*", "train"), (".*kernel", "adapt"), (".*", None))
    raw = dict(
        train=dict(steps=2, batch_size=8),
        data=dict(
            source=dict(type="npz", directory=str(tmp_path / "data")), splits=dict(train="train")
        ),
        model=MODEL,
        task=dict(type="language_model"),
        optimizer=dict(type="adam", learning_rate=1e-2),
        evaluate=dict(every="never"),
        log=dict(tensorboard=False),
        adapt=(dict(type="lora", rank=2, rules=rules),),
    )
    from bigjax.config.resolve import resolve

    train(resolve(raw), tmp_path / "run")
    words = ["export", f"--workdir={tmp_path / 'run'}", f"--output={tmp_path / 'out'}"]
    assert execute("tiny", lambda: raw, [*words, "--format=peft"]) == 0
    settings = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    fused = [f"transformer.h.{i}.attn.c_attn" for i in range(2)]  # three of rank 2 in one
    assert settings["rank_pattern"] == dict.fromkeys(fused, 6) and settings["r"] == 2
    assert settings["alpha_pattern"] == dict.fromkeys(fused, 48.0)
    fused = load_file(tmp_path / "out" / "adapter_model.safetensors")
    name = "base_model.model.transformer.h.0.attn.c_attn.lora_B.weight"
    assert fused[name].shape == (48, 6) and not fused[name][:16, 2:].any()
    assert settings["modules_to_save"] == ["transformer.h.0.mlp.c_fc", "transformer.h.0.mlp.c_proj"]

    assert family_of_source(str(tmp_path / "out")) == "gpt2"
    again = {**raw, "init": dict(source=str(tmp_path / "out")), "adapt": ()}
    run, other = open_run(tmp_path / "run"), open_run(tmp_path / "other", raw=again)
    for path, leaf in paths(run.variables).items():
        np.testing.assert_allclose(paths(other.variables)[path], leaf, atol=1e-6, err_msg=path)
    # And goes on with them: A and B are the run's own again, of each of what is one matrix in the file.
    on = {**raw, "init": dict(source=str(tmp_path / "out"), adapters="train")}
    del on["adapt"]
    third = open_run(tmp_path / "third", raw=on)
    adapt = third.setup.values["adapt"][0]
    assert (adapt["rank"], adapt["alpha"]) == (2, 16.0)
    assert (r"block_\d+/attention/query/kernel", 2) in adapt["rules"]
    assert ("block_0/mlp/up/kernel", "train") in adapt["rules"]
    for path, leaf in paths(run.state.params).items():
        found = paths(third.state.params)[path]
        np.testing.assert_allclose(found, leaf, atol=1e-6, err_msg=path)
    for path, leaf in paths(run.variables).items():
        np.testing.assert_allclose(paths(third.variables)[path], leaf, atol=1e-6, err_msg=path)
    train(resolve(on), tmp_path / "third")
    words = ["export", f"--workdir={tmp_path / 'third'}", f"--output={tmp_path / 'on'}"]
    assert execute("tiny", lambda: on, [*words, "--format=peft"]) == 0
    settings = json.loads((tmp_path / "on" / "adapter_config.json").read_text())
    assert settings["base_model_name_or_path"] == str(tmp_path / "out" / "base")
    # A run without LoRA has no adapters to hand on.
    capsys.readouterr()
    raw["adapt"] = ()
    words = ["export", f"--workdir={tmp_path / 'other'}", f"--output={tmp_path / 'no'}"]
    assert execute("tiny", lambda: again, [*words, "--format=peft"]) == 2
    assert (
        "needs one config.adapt, of type lora or dora; the run has none" in capsys.readouterr().err
    )
    assert not (tmp_path / "no").exists()


# The library, where it is installed: pip install peft.


def gpt2(transformers):
    config = transformers.GPT2Config(vocab_size=40, n_layer=2, n_embd=16, n_head=2, n_positions=12)
    return transformers.GPT2LMHeadModel(config), ["c_attn", "c_proj", "c_fc"], (TOKENS,)


def llama(transformers):
    config = transformers.LlamaConfig(
        vocab_size=40,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        intermediate_size=24,
        max_position_embeddings=16,
        tie_word_embeddings=False,
    )
    return transformers.LlamaForCausalLM(config), ["q_proj", "k_proj", "v_proj", "o_proj", "up_proj"], (TOKENS,)  # fmt: skip


def bert(transformers):
    config = transformers.BertConfig(
        vocab_size=40,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=24,
        max_position_embeddings=12,
        num_labels=3,
    )
    model = transformers.BertForSequenceClassification(config)
    return model, ["query", "value", "dense"], (TOKENS, np.ones_like(TOKENS))


def t5(transformers):
    config = transformers.T5Config(
        vocab_size=40, d_model=16, d_kv=8, d_ff=24, num_layers=2, num_heads=2
    )
    one = np.ones_like(TOKENS)
    model = transformers.T5ForConditionalGeneration(config)
    return model, ["q", "k", "v", "o", "wi", "wo"], (TOKENS, one, TOKENS[:, ::-1].copy(), one)


def vit(transformers):
    config = transformers.ViTConfig(
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=24,
        image_size=8,
        patch_size=4,
        num_labels=3,
    )
    # However this version names them: of every linear map within the blocks.
    return transformers.ViTForImageClassification(config), None, (numbers(2, 8, 8, 3),)


def theirs(model, family, inputs):
    import torch

    with torch.no_grad():
        if family == "vit":
            return model(pixel_values=torch.tensor(inputs[0].transpose(0, 3, 1, 2))).logits.numpy()
        tokens = [torch.tensor(x).long() for x in inputs]
        if family == "t5":
            read, mask, written, _ = tokens
            found = model(input_ids=read, attention_mask=mask, decoder_input_ids=written)
        else:
            found = model(input_ids=tokens[0])
        return found.logits.numpy()


@pytest.mark.slow
@pytest.mark.parametrize("choices", [dict(), dict(use_rslora=True), dict(use_dora=True)])
@pytest.mark.parametrize("make", [gpt2, llama, bert, t5, vit])
def test_the_library_and_we_give_the_same_logits_both_ways(make, choices, tmp_path):
    torch, peft = pytest.importorskip("torch"), pytest.importorskip("peft")
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    model, targets, inputs = make(transformers)
    family = make.__name__
    model.eval().save_pretrained(tmp_path / "base")
    if targets is None:
        linear = [name for name, m in model.named_modules() if type(m) is torch.nn.Linear]
        targets = [name for name in linear if "layer" in name]
    config = peft.LoraConfig(r=3, lora_alpha=7, target_modules=targets, **choices)
    adapted = peft.get_peft_model(model, config).eval()
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_" in name:
                parameter.add_(0.3 * torch.randn_like(parameter))
    adapted.peft_config["default"].base_model_name_or_path = str(tmp_path / "base")
    adapted.save_pretrained(tmp_path / "theirs")
    expected = theirs(adapted, family, inputs)
    ours, variables, values = parity.load(tmp_path / "theirs", family, inputs)
    found = np.asarray(ours.apply(variables, *inputs, train=False))
    np.testing.assert_allclose(found, expected, atol=1e-5)
    _, plain, _ = parity.load(tmp_path / "base", family, inputs)

    # Trained on: their A and B as ours.
    init = dict(source=str(tmp_path / "theirs"), family=family)
    (section,) = adapt_section(init, values)
    kind = {"lora": LoRA, "dora": DoRA}[section.pop("type")]
    part = kind(**section)
    wanted = jax.eval_shape(part.init, jax.random.key(0), paths(plain["params"]))
    own = begun(SimpleNamespace(**init), values, part, wanted)
    params = Adaptation((part,)).params({"model": plain["params"], part.NAME: own}, {}, 0)
    found = np.asarray(ours.apply({**plain, "params": params}, *inputs, train=False))
    np.testing.assert_allclose(found, expected, atol=1e-5)

    base = np.asarray(ours.apply(plain, *inputs, train=False))
    assert np.abs(base - expected).max() > 1e-2

    # And back: adapters of ours, loaded by the library.
    rules = [
        ("patches/kernel", None),
        ("head/.*", "train"),
        ("pooler/.*", "train"),
        (".*kernel", "adapt"),
        (".*", None),
    ]
    names = paths(plain["params"])
    rules = [(p, rule) for p, rule in rules if any(re.fullmatch(p, name) for name in names)]
    kind = DoRA if choices.get("use_dora") else LoRA
    lora = kind(2, 5.0, rank_stabilized=bool(choices.get("use_rslora")), rules=rules)
    adaptation = Adaptation((lora,))
    trained, frozen = adaptation.begin(jax.random.key(0), plain["params"])
    trained = jax.tree.map(lambda x: x + 0.2 * numbers(*x.shape), trained)
    merged = {**plain, "params": adaptation.params(trained, {"base": frozen}, 0)}
    (tmp_path / "ours").mkdir()
    write_adapters(tmp_path / "ours", lora, trained, merged, values, family, str(tmp_path / "base"))
    if family == "t5":  # what peft 0.21 asks an encoder-decoder for, transformers 5.23 has not
        file = tmp_path / "ours" / "adapter_config.json"
        file.write_text(json.dumps({**json.loads(file.read_text()), "task_type": None}))
    fresh = type(model).from_pretrained(tmp_path / "base").eval()
    read = peft.PeftModel.from_pretrained(fresh, tmp_path / "ours").eval()
    found = np.asarray(ours.apply(merged, *inputs, train=False))
    expected = theirs(read, family, inputs)
    scale = max(1.0, np.abs(found).max())
    np.testing.assert_allclose(expected / scale, found / scale, atol=1e-5)
    assert np.abs(found - base).max() > 1e-2
    _, again, _ = parity.load(tmp_path / "ours", family, inputs)
    again = np.asarray(ours.apply(again, *inputs, train=False))
    np.testing.assert_allclose(again / scale, found / scale, atol=1e-5)
