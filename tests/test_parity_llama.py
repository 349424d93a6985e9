"""Llama against transformers: the same weights give the same numbers, in both directions; and GGUF."""

import copy

import jax
import numpy as np
import pytest

from bigjax.core.errors import UserError
from bigjax.data.sources import default_data_dir
from bigjax.models.generate import Sampling, generate
from bigjax.pretrained.decoders import LLAMA
from tests import parity
from tests.test_parity_gpt2 import PACKED, assert_equal, torch_logits

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

SIZES = dict(
    vocab_size=50,
    num_hidden_layers=2,
    hidden_size=32,
    num_attention_heads=4,
    num_key_value_heads=2,
    intermediate_size=40,
    max_position_embeddings=24,
    rms_norm_eps=1e-4,
    pad_token_id=0,
)
THETA = dict(rope_parameters={"rope_type": "default", "rope_theta": 500.0})
model_values = LLAMA.model_values
TOKENS = np.random.default_rng(0).integers(1, 50, (3, 12)).astype(np.int32)


LLAMA3 = dict(
    rope_type="llama3",
    factor=8.0,
    low_freq_factor=1.0,
    high_freq_factor=4.0,
    original_max_position_embeddings=16,
)


def reference(tied, **options):
    torch.manual_seed(0)
    options = {**THETA, **options}
    config = transformers.LlamaConfig(**SIZES, **options, tie_word_embeddings=tied)
    model = transformers.LlamaForCausalLM(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


@pytest.fixture(
    scope="module",
    params=[
        dict(tied=False),
        dict(tied=True),
        dict(tied=True, head_dim=6, rope_parameters={**LLAMA3, "rope_theta": 500.0}),
        dict(tied=False, rope_parameters=dict(rope_type="linear", factor=3.0, rope_theta=500.0)),
    ],
    ids=["untied", "tied", "llama3", "linear"],
)
def both(request, tmp_path_factory):
    """(their model, ours, our variables, the values of config.model, the published folder)."""
    theirs = reference(**request.param)
    folder = tmp_path_factory.mktemp("llama") / "published"
    theirs.save_pretrained(folder)
    return theirs, *parity.load(folder, "llama", (TOKENS,)), folder


def test_logits_of_rows_and_of_packed_and_padded_rows(both):
    theirs, model, variables, *_ = both
    with torch.no_grad():
        expected = theirs(torch.tensor(TOKENS)).logits.numpy()
    assert_equal(model.apply(variables, TOKENS, train=False), expected, np.ones_like(TOKENS))
    ours = model.apply(variables, TOKENS, PACKED, train=False)
    assert_equal(ours, torch_logits(theirs, TOKENS, PACKED), PACKED)


def test_an_export_is_read_by_transformers(both, tmp_path):
    theirs, _, variables, values, _ = both
    folder = parity.export(variables, values, "llama", tmp_path / "exported")
    again, info = transformers.LlamaForCausalLM.from_pretrained(folder, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    with torch.no_grad():
        before, after = (m(torch.tensor(TOKENS)).logits for m in (theirs, again.eval()))
    np.testing.assert_array_equal(after, before)


def test_greedy_tokens_of_prompts_of_different_length(both):
    theirs, model, variables, *_ = both
    segments = (np.arange(12) >= np.array([[0], [5], [11]])).astype(np.int32)  # padded left
    with torch.no_grad():
        expected = theirs.generate(
            torch.tensor(TOKENS * segments),
            attention_mask=torch.tensor(segments),
            max_new_tokens=12,
            do_sample=False,
            eos_token_id=None,
        )[:, 12:]
    write = jax.jit(lambda v, *prompt: generate(model.apply, v, *prompt, Sampling(12)))
    got = write(variables, TOKENS * segments, segments)["tokens"]
    np.testing.assert_array_equal(got, expected)


# Hugging Face's names -> llama.cpp's.
NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "model.layers": "blk",
    "self_attn.o_proj": "attn_output",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    **{f"self_attn.{x}_proj": f"attn_{x}" for x in "qkv"},
    **{f"mlp.{x}_proj": f"ffn_{x}" for x in ("gate", "up", "down")},
}


def neighbours(rows, heads):
    """llama.cpp's order of the rows of queries and keys, written out one row at a time."""
    width = len(rows) // heads
    ours = np.empty_like(rows)
    for n in range(heads):
        for i in range(width // 2):
            ours[n * width + 2 * i] = rows[n * width + i]
            ours[n * width + 2 * i + 1] = rows[n * width + i + width // 2]
    return ours


def write_gguf(path, model):
    """A model of transformers as llama.cpp would write it, in float32."""
    gguf = pytest.importorskip("gguf")
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(SIZES["num_hidden_layers"])
    writer.add_embedding_length(SIZES["hidden_size"])
    writer.add_context_length(SIZES["max_position_embeddings"])
    writer.add_feed_forward_length(SIZES["intermediate_size"])
    writer.add_head_count(SIZES["num_attention_heads"])
    writer.add_head_count_kv(SIZES["num_key_value_heads"])
    writer.add_layer_norm_rms_eps(SIZES["rms_norm_eps"])
    writer.add_rope_freq_base(500.0)
    for name, tensor in model.state_dict().items():
        rows = tensor.numpy()
        for letter, heads in (("q", 4), ("k", 2)):
            rows = neighbours(rows, heads) if f"{letter}_proj" in name else rows
        for theirs, gguf_name in NAMES.items():
            name = name.replace(theirs, gguf_name)
        if name != "lm_head.weight":
            writer.add_tensor(name, rows)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def test_a_gguf_file_gives_the_same_model(tmp_path):
    theirs = reference(tied=True)
    write_gguf(tmp_path / "model.gguf", theirs)
    model, variables, values = parity.load(tmp_path / "model.gguf", "llama", (TOKENS,))
    assert values["norm_epsilon"] == 1e-4 and values["rope_theta"] == 500.0 and values["tied"]
    with torch.no_grad():
        expected = theirs(torch.tensor(TOKENS)).logits.numpy()
    assert_equal(model.apply(variables, TOKENS, train=False), expected, np.ones_like(TOKENS))


@pytest.mark.parametrize(
    "changed",
    [
        dict(model_type="gpt2"),
        dict(hidden_act="gelu_9"),
        dict(rope_scaling={"rope_type": "axial", "factor": 8.0}),
        dict(rope_parameters={"rope_type": "linear"}),
        dict(partial_rotary_factor=0.5),
    ],
    ids=str,
)
def test_another_form_is_refused(changed):
    with pytest.raises(UserError, match=r"gpt2|gelu_9|axial|'linear' has factor|partial_rotary"):
        model_values({**SIZES, **changed})


DOUBLED = dict(rope_type="linear", factor=2.0)
WITHIN = {**DOUBLED, "rope_theta": 5e5}


@pytest.mark.parametrize(
    ("settings", "older", "newer"),  # rope_theta to transformers 4.57.6 and to 5.23.0
    [
        (dict(rope_theta=5e5, rope_scaling=DOUBLED), 5e5, 5e5),
        (dict(rope_parameters=WITHIN), None, 5e5),  # 4 reads no scaling there
        (dict(rope_theta=3e4, rope_parameters=DOUBLED), None, 3e4),
        (dict(rope_theta=5e5, rope_parameters=WITHIN), None, 5e5),
        (dict(rope_theta=5e5, rope_scaling=WITHIN), 5e5, 5e5),
        (dict(rope_scaling={**DOUBLED, "rope_theta": 1e4}), 1e4, 1e4),
        (dict(rope_scaling=DOUBLED, rope_parameters={**WITHIN, "factor": 4.0}), 1e4, 1e4),
        (dict(rope_theta=3e4, rope_scaling=DOUBLED, rope_parameters=WITHIN), 3e4, 3e4),
        (dict(rope_scaling=WITHIN), 1e4, 5e5),
        (dict(rope_theta=3e4, rope_scaling=WITHIN), 3e4, 5e5),
        (dict(rope_theta=3e4, rope_parameters=WITHIN), 3e4, 5e5),
    ],
    ids=str,
)
def test_rotary_settings_are_read_as_both_versions_of_transformers_read_them(
    settings, older, newer
):
    installed = transformers.LlamaConfig(**copy.deepcopy(settings)).rope_parameters
    assert (installed["rope_theta"], installed["factor"]) == (newer, 2.0)
    given = {key: value for key, value in SIZES.items() if not key.startswith("rope")} | settings
    if older not in (None, newer):
        with pytest.raises(UserError, match=f"rope_theta is {newer} to transformers 5 and {older}"):
            model_values(given)
        return
    values = model_values(given)
    assert values["rope_theta"] == newer
    assert values["rope_scaling"] == DOUBLED


def test_a_key_that_says_nothing_is_as_if_it_were_not_there():
    nothing = dict.fromkeys(("mlp_bias", "head_dim", "rope_scaling", "rope_parameters"))
    assert model_values({**SIZES, **nothing}) == model_values(SIZES)


PROMPTS = (
    "The capital of France is",
    "Once upon a time, in a small village by the sea,",
    "def fibonacci(n):",
    "<|im_start|>user\nWhy is the sky blue?<|im_end|>\n<|im_start|>assistant\n",
    "Water boils at",
)


def halves(rows, heads):
    """The way back from `neighbours`."""
    order = neighbours(np.arange(len(rows))[:, None], heads)[:, 0]
    ours = np.empty_like(rows)
    ours[order] = rows
    return ours


def smollm2_of_transformers(file):
    """The GGUF file's numbers in transformers' model, read here by the gguf library alone."""
    gguf = pytest.importorskip("gguf")
    state = {}
    for tensor in gguf.GGUFReader(file).tensors:
        rows = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
        rows = rows.reshape(tuple(tensor.shape)[::-1])
        for letter, heads in (("q", 9), ("k", 3)):
            rows = halves(rows, heads) if f"attn_{letter}." in tensor.name else rows
        name = tensor.name
        for theirs, gguf_name in NAMES.items():
            name = name.replace(f"{gguf_name}.", f"{theirs}.")
        state[name] = torch.from_numpy(np.array(rows, np.float32))
    config = transformers.LlamaConfig(
        vocab_size=49152,
        num_hidden_layers=30,
        hidden_size=576,
        num_attention_heads=9,
        num_key_value_heads=3,
        intermediate_size=1536,
        max_position_embeddings=8192,
        rms_norm_eps=1e-5,
        rope_parameters={"rope_type": "default", "rope_theta": 100000.0},
        tie_word_embeddings=True,
    )
    model = transformers.LlamaForCausalLM(config).eval()
    missing, unexpected = model.load_state_dict(state, strict=False)
    assert missing == ["lm_head.weight"] and not unexpected
    return model


@pytest.mark.slow
def test_the_real_smollm2_writes_the_tokens_of_the_reference():
    """50 greedy tokens after each of five prompts, of different length and padded to one."""
    from tokenizers import Tokenizer

    folder = default_data_dir() / "weights" / "smollm2"
    if not folder.exists():
        pytest.skip("needs `scripts/fetch_data smollm2`")
    (file,) = folder.glob("*.gguf")
    theirs = smollm2_of_transformers(file)
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    rows = [tokenizer.encode(prompt, add_special_tokens=False).ids for prompt in PROMPTS]
    longest = max(map(len, rows))
    tokens, segments = np.zeros((2, len(rows), longest), np.int32)
    for row, ids in enumerate(rows):
        tokens[row, : len(ids)], segments[row, : len(ids)] = ids, 1
    model, variables, _ = parity.load(file, "llama", (tokens[:, :4],))
    write = jax.jit(lambda v, *prompt: generate(model.apply, v, *prompt, Sampling(50)))
    ours = np.asarray(write(variables, tokens, segments)["tokens"])
    assert tokenizer.decode(ours[0]).startswith(" Paris")
    for ids, written in zip(rows, ours, strict=True):
        with torch.no_grad():
            expected = theirs.generate(
                torch.tensor([ids]), max_new_tokens=50, do_sample=False, eos_token_id=None
            )
        assert written.tolist() == expected[0, len(ids) :].tolist()
