"""A GGUF file (llama.cpp) of the Llama family, read as if it were a folder in Hugging Face's layout."""

from __future__ import annotations

import dataclasses
import re
from typing import Any

import numpy as np

from bigjax.core.errors import UserError
from bigjax.pretrained.reader import Published

# llama.cpp's names -> Hugging Face's, both of a ".weight"; {} is the number of a layer.
NAMES = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
    "blk.{}.attn_norm": "model.layers.{}.input_layernorm",
    "blk.{}.ffn_norm": "model.layers.{}.post_attention_layernorm",
    "blk.{}.attn_q": "model.layers.{}.self_attn.q_proj",
    "blk.{}.attn_k": "model.layers.{}.self_attn.k_proj",
    "blk.{}.attn_v": "model.layers.{}.self_attn.v_proj",
    "blk.{}.attn_output": "model.layers.{}.self_attn.o_proj",
    "blk.{}.ffn_gate": "model.layers.{}.mlp.gate_proj",
    "blk.{}.ffn_up": "model.layers.{}.mlp.up_proj",
    "blk.{}.ffn_down": "model.layers.{}.mlp.down_proj",
}


def published_names(layers: int) -> dict[str, str]:
    """llama.cpp's name of every tensor -> Hugging Face's."""
    return {
        f"{name}.weight".format(i): f"{theirs}.weight".format(i)
        for name, theirs in NAMES.items()
        for i in range(layers if "{}" in name else 1)
    }


def as_folder(published: Published) -> Published:
    """A GGUF file as if it were a folder in Hugging Face's layout.

    llama.cpp turns neighbouring pairs of a head where we and Hugging Face turn halves, so its files
    hold the rows of queries and keys in another order (its convert_hf_to_gguf.py, `permute`).

    Raises:
      UserError: the file holds another architecture, or lacks a field.
    """
    config = _config_of(published)
    heads = {"q": config["num_attention_heads"], "k": config["num_key_value_heads"]}
    known = published_names(config["num_hidden_layers"])
    # A name that is known to nobody stays as it is: loading will say so.
    names = {known.get(name, name): name for name in published.shapes}

    def read(name: str) -> np.ndarray:
        tensor = published.read(names[name])
        rotary = re.fullmatch(r".*\.([qk])_proj\.weight", name)
        return _halves(tensor, heads[rotary[1]]) if rotary else tensor

    shapes = {name: published.shapes[theirs] for name, theirs in names.items()}
    return dataclasses.replace(published, config=config, shapes=shapes, read=read, gguf=False)


def _config_of(published: Published) -> dict[str, Any]:
    """What config.json would say, from the header's fields."""
    fields = published.config
    kind = fields.get("general.architecture")
    if kind != "llama":
        raise UserError(f"{published.path}: a GGUF file of architecture '{kind}', not 'llama'")
    if "token_embd.weight" not in published.shapes:
        raise UserError(f"{published.path}: holds no 'token_embd.weight'")

    def value(key: str, default: Any = None) -> Any:
        found = fields.get(f"llama.{key}", default)
        if found is None:
            raise UserError(f"{published.path}: the header lacks 'llama.{key}'")
        return found

    heads = value("attention.head_count")
    return dict(
        model_type="llama",
        vocab_size=published.shapes["token_embd.weight"][0],
        num_hidden_layers=value("block_count"),
        hidden_size=value("embedding_length"),
        num_attention_heads=heads,
        num_key_value_heads=value("attention.head_count_kv", heads),
        head_dim=value("rope.dimension_count", value("embedding_length") // heads),
        intermediate_size=value("feed_forward_length"),
        max_position_embeddings=value("context_length"),
        rope_parameters={"rope_theta": value("rope.freq_base", 10000.0), **_scaling_of(fields)},
        # The header holds float32: 1e-5 reads 9.999999747378752e-06.
        rms_norm_eps=float(f"{value('attention.layer_norm_rms_epsilon'):.6g}"),
        tie_word_embeddings="output.weight" not in published.shapes,
    )


def _scaling_of(fields: dict[str, Any]) -> dict[str, Any]:
    kind = fields.get("llama.rope.scaling.type", "none")
    if kind == "none":
        return {"rope_type": "default"}
    return {"rope_type": kind, "factor": fields.get("llama.rope.scaling.factor", 1.0)}


def _halves(rows: np.ndarray, heads: int) -> np.ndarray:
    """Rows (N * H, D) whose rotary pairs are neighbours -> rows whose pairs are halves of a head."""
    pairs = rows.reshape(heads, -1, 2, rows.shape[-1])
    return pairs.swapaxes(1, 2).reshape(rows.shape)


def neighbours(rows: np.ndarray, heads: int) -> np.ndarray:
    """The way back of `_halves`."""
    pairs = rows.reshape(heads, 2, -1, rows.shape[-1])
    return pairs.swapaxes(1, 2).reshape(rows.shape)
