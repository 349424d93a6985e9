"""The kin of Llama against transformers: logits, greedy text and the way back, each family and choice."""

import functools
import tempfile
from pathlib import Path

import jax
import numpy as np
import pytest

from bigjax.core.errors import UserError
from bigjax.models.generate import Sampling, generate
from bigjax.pretrained.families import family_of_config, family_of_model, open_family
from tests import parity
from tests.test_parity_gpt2 import PACKED, assert_equal

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

SIZES = dict(
    vocab_size=50,
    num_hidden_layers=2,
    hidden_size=24,
    num_attention_heads=4,
    num_key_value_heads=2,
    intermediate_size=40,
    max_position_embeddings=32,
    rms_norm_eps=1e-4,
    pad_token_id=0,
    bos_token_id=1,
    eos_token_id=2,
)
TOKENS = np.random.default_rng(0).integers(3, 50, (3, 12)).astype(np.int32)
HEAD = dict(head_dim=10)  # four heads of 10 are wider than the model
WINDOW = dict(use_sliding_window=True, sliding_window=5, max_window_layers=1)
GEMMA = dict(**HEAD, sliding_window=5, query_pre_attn_scalar=7)


def rope(kind, **numbers):
    return dict(rope_parameters=dict(rope_type=kind, rope_theta=500.0, **numbers))


YARN = dict(factor=4.0, original_max_position_embeddings=8)
FACTORS = dict(short_factor=[1.0, 1.2, 1.4], long_factor=[1.0, 2.5, 4.0])
FORMS = {
    "llama-biases": ("llama", "Llama", dict(attention_bias=True, mlp_bias=True)),
    "llama-yarn": ("llama", "Llama", rope("yarn", **YARN)),
    "llama-yarn-more": (
        "llama",
        "Llama",
        rope("yarn", **YARN, beta_fast=8.0, beta_slow=2.0, mscale=1.0, mscale_all_dim=0.5)
        | dict(head_dim=12, num_hidden_layers=1),
    ),
    "llama-dynamic": ("llama", "Llama", rope("dynamic", factor=3.0)),
    "mistral": ("mistral", "Mistral", dict(**HEAD, sliding_window=5)),
    "mistral-whole": ("mistral", "Mistral", dict(sliding_window=None)),
    "qwen2": ("qwen2", "Qwen2", {}),
    "qwen2-windows": ("qwen2", "Qwen2", dict(**WINDOW, tie_word_embeddings=True)),
    "qwen3": ("qwen3", "Qwen3", HEAD),
    "qwen3-windows": ("qwen3", "Qwen3", dict(**HEAD, **WINDOW, attention_bias=True)),
    "gemma2": ("gemma2", "Gemma2", dict(**GEMMA, attn_logit_softcapping=2.0)),
    "gemma3": (
        "gemma3",
        "Gemma3",
        dict(**GEMMA, layer_types=["sliding_attention", "full_attention"]),
    ),
    "gemma3-scaled": (
        "gemma3",
        "Gemma3",
        dict(
            **GEMMA,
            num_hidden_layers=7,
            rope_parameters=dict(
                full_attention=dict(rope_type="linear", factor=8.0, rope_theta=900.0),
                sliding_attention=dict(rope_type="default", rope_theta=50.0),
            ),
        ),
    ),
    "phi3": ("phi3", "Phi3", dict(sliding_window=5)),
    "phi3-long": (
        "phi3",
        "Phi3",
        dict(original_max_position_embeddings=16, **rope("longrope", **FACTORS)),
    ),
    "phi3-part": ("phi3", "Phi3", dict(hidden_size=32, partial_rotary_factor=0.5)),
    "olmo2": ("olmo2", "Olmo2", dict(attention_bias=True)),
    "smollm3": ("smollm3", "SmolLM3", dict(no_rope_layers=[1, 0])),
    "mixtral": ("mixtral", "Mixtral", dict(num_local_experts=5, sliding_window=5)),
    "qwen3-moe": (
        "qwen3_moe",
        "Qwen3Moe",
        dict(**HEAD, num_experts=5, num_experts_per_tok=3, moe_intermediate_size=20),
    ),
    "qwen3-moe-renormalized": (
        "qwen3_moe",
        "Qwen3Moe",
        dict(num_experts=3, num_experts_per_tok=2, norm_topk_prob=True, moe_intermediate_size=20)
        | dict(use_sliding_window=True, sliding_window=5, attention_bias=True),
    ),
}


def reference(kind, options):
    """A small random model of transformers, its biases and scales random too."""
    torch.manual_seed(0)
    name = "Gemma3TextConfig" if kind == "Gemma3" else f"{kind}Config"
    config = getattr(transformers, name)(**{**SIZES, **options})
    # Only written out does attention cap its scores.
    config._attn_implementation = "eager"
    model = getattr(transformers, f"{kind}ForCausalLM")(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


@functools.cache
def both(form):
    """(family, their model, ours, our variables, the values of config.model, the published folder)."""
    family, kind, options = FORMS[form]
    theirs = reference(kind, options)
    folder = Path(tempfile.mkdtemp()) / "published"
    theirs.save_pretrained(folder)
    return family, theirs, *parity.load(folder, family, (TOKENS,)), folder


def logits_of(model, tokens, **options):
    with torch.no_grad():
        return model(torch.tensor(tokens), **options).logits.numpy()


# The others differ from these in a number or two.
FAST = ("llama-biases", "llama-yarn", "qwen2", "gemma2", "gemma3", "phi3-long", "olmo2", "smollm3")
FAST += ("qwen3-moe",)


@pytest.mark.parametrize(
    "form", [pytest.param(form, marks=[pytest.mark.slow] * (form not in FAST)) for form in FORMS]
)
def test_logits_and_the_way_back(form, tmp_path):
    family, theirs, model, variables, values, _ = both(form)
    ours = np.asarray(jax.jit(lambda v: model.apply(v, TOKENS, PACKED, train=False))(variables))
    expected = logits_of(theirs, TOKENS)
    assert_equal(ours[:1], expected[:1], np.ones((1, 12)))
    # Documents of a packed row are as if alone.
    assert_equal(ours[1:2, 4:9], logits_of(theirs, TOKENS[1:2, 4:9]), np.ones((1, 5)))

    assert family_of_model(values) in (
        family,
        "llama",
        "mistral",
    )  # the plainest layout that can say it
    folder = parity.export(variables, values, family, tmp_path / "ours")
    options = dict(output_loading_info=True, attn_implementation="eager")
    back, info = type(theirs).from_pretrained(folder, **options)
    assert not any(info.values()), info
    np.testing.assert_allclose(logits_of(back.eval(), TOKENS), expected, atol=1e-5)


GENERATING = (
    "llama-biases",
    "llama-yarn",
    "mistral",
    "qwen2",
    "qwen3-windows",
    "gemma2",
    "gemma3",
    "phi3",
    "olmo2",
    "smollm3",
    "mixtral",
    "qwen3-moe-renormalized",
)


@pytest.mark.parametrize(
    "form",
    [pytest.param(form, marks=[pytest.mark.slow] * (form not in FAST)) for form in GENERATING],
)
def test_greedy_tokens(form):
    """Of prompts of different length, padded left; with their text they are longer than the window."""
    _, theirs, model, variables, *_ = both(form)
    segments = (np.arange(12) >= np.array([[0], [5], [11]])).astype(np.int32)
    options = dict(max_new_tokens=8, do_sample=False, eos_token_id=None)
    mask = torch.tensor(segments)
    with torch.no_grad():
        tokens = torch.tensor(TOKENS * segments)
        expected = theirs.generate(tokens, attention_mask=mask, **options)[:, 12:]
    write = jax.jit(lambda v, *prompt: generate(model.apply, v, *prompt, Sampling(8)))
    got = write(variables, TOKENS * segments, segments)["tokens"]
    np.testing.assert_array_equal(got, expected)


@pytest.mark.parametrize("form", ["gemma3", "smollm3", "mixtral"])
def test_layers_in_one_loop_are_the_same(form):
    family, theirs, *_, folder = both(form)
    model, variables, _ = parity.load(folder, family, (TOKENS,), scan_layers=True)
    ours = jax.jit(lambda v: model.apply(v, TOKENS, train=False))(variables)
    assert_equal(ours, logits_of(theirs, TOKENS), np.ones_like(TOKENS))


@pytest.mark.parametrize("form", ["llama-dynamic", "phi3-long"])
def test_a_text_longer_than_the_first_ones_is_read_with_other_positions(form, tmp_path):
    family, kind, options = FORMS[form]
    theirs = reference(kind, options)
    theirs.save_pretrained(tmp_path / "published")
    model, variables, _ = parity.load(tmp_path / "published", family, (TOKENS,), context=64)
    tokens = np.random.default_rng(1).integers(3, 50, (2, 40)).astype(np.int32)
    ours = jax.jit(lambda v: model.apply(v, tokens, train=False))(variables)
    assert_equal(ours, logits_of(theirs, tokens), np.ones_like(tokens))


def test_a_config_json_says_its_family_and_a_layout_refuses_what_it_cannot_say():
    assert family_of_config(dict(model_type="gemma3_text")) == "gemma3"
    assert family_of_config(dict(model_type="mamba")) is None
    config = {k: v for k, v in SIZES.items() if k != "num_key_value_heads"}
    qwen3 = dict(type="llama", **open_family("qwen3").model_values(config))
    assert family_of_model(qwen3) == "qwen3"
    with pytest.raises(UserError, match=r"layout of 'llama' cannot say model\.qk_norm 'head'"):
        open_family("llama").published_config(qwen3)
    with pytest.raises(UserError, match=r"'mistral' cannot say model\.layer_kinds"):
        open_family("mistral").published_config(
            {**qwen3, "qk_norm": "none", "layer_kinds": ("no_rope",)}
        )
    with pytest.raises(UserError, match="lacks 'vocab_size'"):
        open_family("llama").model_values({})
    with pytest.raises(UserError, match="layer_types 'chunked_attention' is not known"):
        kinds = dict(layer_types=["chunked_attention"] * 3, sliding_window=4)
        open_family("gemma2").model_values({**config, **kinds})
    # Keys that change what transformers computes, or change nothing there though they look it.
    for family, said, match in (
        ("gemma3", dict(attn_logit_softcapping=0.5), "attn_logit_softcapping 0.5 is not known"),
        ("smollm3", dict(layer_types=["sliding_attention"] * 2), "layer_types 'sliding_attention'"),
        ("llama", dict(num_hidden_layers=0), "num_hidden_layers 0 is no model"),
        ("phi3", dict(partial_rotary_factor=0.0), "partial_rotary_factor 0.0 is not known"),
        ("phi3", dict(sliding_window=0), "sliding_window 0 is no window"),
    ):
        with pytest.raises(UserError, match=match):
            open_family(family).model_values({**config, **said})


def test_the_two_thetas_of_a_gemma_3_are_read_as_both_versions_of_transformers_read_them():
    scaling = dict(rope_type="linear", factor=8.0)
    older = dict(rope_theta=9e5, rope_local_base_freq=2e4, rope_scaling=scaling)
    full = {**scaling, "rope_theta": 9e5}
    local = dict(rope_type="default", rope_theta=2e4)
    newer = dict(rope_parameters=dict(full_attention=full, sliding_attention=local))
    sizes = dict(SIZES, layer_types=["sliding_attention", "full_attention"])
    layout = open_family("gemma3")
    values = layout.model_values(sizes | older)
    assert (
        values == layout.model_values(sizes | newer) == layout.model_values(sizes | older | newer)
    )
    assert (values["rope_theta"], values["local_rope_theta"]) == (9e5, 2e4)
    for changed in (dict(rope_theta=1e6), dict(rope_local_base_freq=1e4)):
        with pytest.raises(UserError, match="read in two ways: rope_theta"):
            layout.model_values(sizes | newer | changed)
    with pytest.raises(UserError, match="settings of 'full_attention' alone"):
        layout.model_values(sizes | dict(rope_scaling=newer["rope_parameters"]))
