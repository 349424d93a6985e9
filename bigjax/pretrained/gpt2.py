"""GPT-2 in Hugging Face's layout: config.json and the names of the tensors, both ways."""

from __future__ import annotations

from typing import Any

from bigjax.core.errors import UserError
from bigjax.pretrained.entry import Entry

TYPE = "gpt2"
PREFIXES = ("transformer.",)  # save_pretrained writes it, OpenAI's own checkpoints lack it
IGNORED = (r"lm_head\.weight",)  # a copy of the embedding

# What our model computes, and so a checkpoint must say, if it says anything.
FIXED = {
    "activation_function": "gelu_new",
    "layer_norm_epsilon": 1e-5,
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
    if published.get("model_type", "gpt2") != "gpt2":
        raise UserError(f"config.init: model_type '{published['model_type']}' is not gpt2")
    for key, wanted in FIXED.items():
        if published.get(key, wanted) != wanted:
            raise UserError(
                f"config.init: {key} {published[key]!r} is not known here; {wanted!r} is"
            )
    return dict(
        vocab=published["vocab_size"],
        layers=published["n_layer"],
        width=published["n_embd"],
        heads=published["n_head"],
        context=published["n_positions"],
        mlp_width=published.get("n_inner"),
        dropout=published.get("resid_pdrop", 0.1),
    )


def published_config(model: dict[str, Any]) -> dict[str, Any]:
    """The config.json of a model with these values."""
    return dict(
        model_type="gpt2",
        architectures=["GPT2LMHeadModel"],
        vocab_size=model["vocab"],
        n_layer=model["layers"],
        n_embd=model["width"],
        n_head=model["heads"],
        n_positions=model["context"],
        n_inner=model["mlp_width"],
        resid_pdrop=model["dropout"],
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
    heads = {"p": 3, "n": model["heads"]}
    for i in range(model["layers"]):
        there, here = f"h.{i}", f"params/block_{i}"
        parts = [f"{here}/attention/{part}" for part in ("query", "key", "value")]
        kernels, biases = (tuple(f"{p}/{leaf}" for p in parts) for leaf in ("kernel", "bias"))
        out = f"{here}/attention/out"
        found += [
            *pair(f"{there}.ln_1", f"{here}/attention_norm", "scale"),
            Entry(f"{there}.attn.c_attn.weight", kernels, "d (p n h) -> p d n h", heads),
            Entry(f"{there}.attn.c_attn.bias", biases, "(p n h) -> p n h", heads),
            Entry(
                f"{there}.attn.c_proj.weight",
                (f"{out}/kernel",),
                "(n h) d -> n h d",
                {"n": model["heads"]},
            ),
            Entry(f"{there}.attn.c_proj.bias", (f"{out}/bias",)),
            *pair(f"{there}.ln_2", f"{here}/mlp_norm", "scale"),
            *pair(f"{there}.mlp.c_fc", f"{here}/mlp/up", "kernel"),
            *pair(f"{there}.mlp.c_proj", f"{here}/mlp/down", "kernel"),
        ]
    return found + pair("ln_f", "params/norm", "scale")


def pair(name: str, path: str, weight: str) -> list[Entry]:
    """Weight and bias that lie as ours do."""
    return [
        Entry(f"{name}.weight", (f"{path}/{weight}",)),
        Entry(f"{name}.bias", (f"{path}/bias",)),
    ]
