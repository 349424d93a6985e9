"""GPT-2 in Hugging Face's layout: config.json and the names of the tensors, both ways."""

from __future__ import annotations

from typing import Any

from bigjax.pretrained import table
from bigjax.pretrained.entry import Entry, linear, norm
from bigjax.pretrained.table import Key, activations

TYPE = "gpt2"
GENERATES = True
PREFIXES = ("transformer.",)  # save_pretrained writes it, OpenAI's own checkpoints lack it
IGNORED = (r"lm_head\.weight",)  # a copy of the embedding

KEYS = (
    Key("vocab_size", "vocab"),
    Key("n_layer", "layers"),
    Key("n_embd", "width"),
    Key("n_head", "heads"),
    Key("n_positions", "context"),
    Key("n_inner", "mlp_width", None),
    Key("resid_pdrop", "dropout", 0.1),
    Key("layer_norm_epsilon", "norm_epsilon", 1e-5),
    Key("activation_function", "activation", "gelu_new", activations("gelu_new")),
)
FIXED = {
    "model_type": "gpt2",
    "scale_attn_weights": True,
    "scale_attn_by_inverse_layer_idx": False,
    "tie_word_embeddings": True,
    "add_cross_attention": False,
}


def model_values(published: dict[str, Any]) -> dict[str, Any]:
    """The keyword arguments of `bigjax.models.gpt2.GPT2` from a published config.json.

    Raises:
      UserError: it describes something that this family is not.
    """
    table.check(FIXED, published)
    return table.read(KEYS, published)


def published_config(model: dict[str, Any]) -> dict[str, Any]:
    """The config.json of a model with these values; UserError if transformers has no such model."""
    table.check_heads(model)
    return dict(
        architectures=["GPT2LMHeadModel"],
        **table.write(KEYS, model),
        embd_pdrop=model["dropout"],
        attn_pdrop=0.0,
        **FIXED,
    )


def entries(model: dict[str, Any]) -> list[Entry]:
    """Every published tensor of a model with these values and the leaf it becomes.

    The matrices lie as ours do, (in, out); queries, keys and values are one matrix.
    """
    found = [
        Entry("wte.weight", ("params/embedding",)),
        Entry("wpe.weight", ("params/positions",)),
    ]
    heads = {"n": model["heads"]}
    for i in range(model["layers"]):
        there, here = f"h.{i}", f"block_{i}"
        parts = [f"params/{here}/attention/{part}" for part in ("query", "key", "value")]
        kernels, biases = (tuple(f"{p}/{leaf}" for p in parts) for leaf in ("kernel", "bias"))
        fused = dict(sizes=heads, shares=(1, 1, 1), axis=-1)
        found += [
            *norm(f"{there}.ln_1", f"{here}/attention_norm"),
            Entry(f"{there}.attn.c_attn.weight", kernels, "d (n h) -> d n h", **fused),
            Entry(f"{there}.attn.c_attn.bias", biases, "(n h) -> n h", **fused),
            *linear(f"{there}.attn.c_proj", f"{here}/attention/out", "(n h) d -> n h d", **heads),
            *norm(f"{there}.ln_2", f"{here}/mlp_norm"),
            *linear(f"{there}.mlp.c_fc", f"{here}/mlp/up", None),
            *linear(f"{there}.mlp.c_proj", f"{here}/mlp/down", None),
        ]
    return found + norm("ln_f", "norm")
