"""Llama in Hugging Face's layout, both ways, and in llama.cpp's (GGUF), to be read."""

from __future__ import annotations

import dataclasses
import re
from typing import Any

import numpy as np

from bigjax.core.errors import UserError
from bigjax.models import rotary
from bigjax.pretrained.entry import Entry
from bigjax.pretrained.reader import Published

TYPE = "llama"
IGNORED = (r"lm_head\.weight",)  # where tied, a copy of the embedding


def model_values(published: dict[str, Any]) -> dict[str, Any]:
    """The keyword arguments of `bigjax.models.llama.Llama` from a published config.json.

    Raises:
      UserError: it describes something that this family is not.
    """
    if published.get("model_type", "llama") != "llama":
        raise UserError(f"config.init: model_type '{published['model_type']}' is not llama")
    heads, width = published["num_attention_heads"], published["hidden_size"]
    for key, known in (("hidden_act", "silu"), ("attention_bias", False), ("mlp_bias", False)):
        if published.get(key) not in (None, known):
            raise UserError(
                f"config.init: {key} {published[key]!r} is not known here; {known!r} is"
            )
    rope = dict(published.get("rope_parameters") or published.get("rope_scaling") or {})
    theta = float(rope.pop("rope_theta", published.get("rope_theta", 10000.0)))
    kind = rope.pop("type", None)  # as older files call it
    rope.setdefault("rope_type", kind or "default")
    if rope["rope_type"] not in ("default", *rotary.SCALING):
        known = ", ".join(("default", *rotary.SCALING))
        raise UserError(
            f"config.init: rope_type '{rope['rope_type']}' is not known here; {known} are"
        )
    return dict(
        vocab=published["vocab_size"],
        layers=published["num_hidden_layers"],
        width=width,
        heads=heads,
        kv_heads=published.get("num_key_value_heads") or heads,
        head_width=published.get("head_dim") or width // heads,
        mlp_width=published["intermediate_size"],
        context=published["max_position_embeddings"],
        rope_theta=theta,
        rope_scaling=None if rope["rope_type"] == "default" else rope,
        norm_epsilon=published.get("rms_norm_eps", 1e-6),
        tied=published.get("tie_word_embeddings", False),
    )


def published_config(model: dict[str, Any]) -> dict[str, Any]:
    """The config.json of a model with these values."""
    rope = model["rope_scaling"] or {"rope_type": "default"}
    return dict(
        model_type="llama",
        architectures=["LlamaForCausalLM"],
        vocab_size=model["vocab"],
        num_hidden_layers=model["layers"],
        hidden_size=model["width"],
        num_attention_heads=model["heads"],
        num_key_value_heads=model["kv_heads"],
        head_dim=model["head_width"] or model["width"] // model["heads"],
        intermediate_size=model["mlp_width"],
        max_position_embeddings=model["context"],
        rope_theta=model["rope_theta"],
        rope_parameters={**rope, "rope_theta": model["rope_theta"]},
        rms_norm_eps=model["norm_epsilon"],
        tie_word_embeddings=model["tied"],
        hidden_act="silu",
        attention_bias=False,
        mlp_bias=False,
    )


def entries(model: dict[str, Any]) -> list[Entry]:
    """Every published tensor of a model with these values and the leaf it becomes."""
    found = [Entry("model.embed_tokens.weight", ("params/embedding",))]
    for i in range(model["layers"]):
        there, here = f"model.layers.{i}", f"params/block_{i}"
        found.append(Entry(f"{there}.input_layernorm.weight", (f"{here}/attention_norm/scale",)))
        for part, letter, heads in (
            ("query", "q", model["heads"]),
            ("key", "k", model["kv_heads"]),
            ("value", "v", model["kv_heads"]),
        ):
            found.append(
                Entry(
                    f"{there}.self_attn.{letter}_proj.weight",
                    (f"{here}/attention/{part}/kernel",),
                    "(n h) d -> d n h",
                    {"n": heads},
                )
            )
        found += [
            Entry(
                f"{there}.self_attn.o_proj.weight",
                (f"{here}/attention/out/kernel",),
                "d (n h) -> n h d",
                {"n": model["heads"]},
            ),
            Entry(f"{there}.post_attention_layernorm.weight", (f"{here}/mlp_norm/scale",)),
        ]
        for part in ("gate", "up", "down"):
            name, path = f"{there}.mlp.{part}_proj.weight", f"{here}/mlp/{part}/kernel"
            found.append(Entry(name, (path,), "o i -> i o"))
    found.append(Entry("model.norm.weight", ("params/norm/scale",)))
    if not model["tied"]:
        found.append(Entry("lm_head.weight", ("params/unembedding",)))
    return found


# llama.cpp's names -> Hugging Face's.
GGUF_NAMES = {
    r"token_embd\.weight": "model.embed_tokens.weight",
    r"output_norm\.weight": "model.norm.weight",
    r"output\.weight": "lm_head.weight",
    r"blk\.(\d+)\.attn_norm\.weight": r"model.layers.\1.input_layernorm.weight",
    r"blk\.(\d+)\.ffn_norm\.weight": r"model.layers.\1.post_attention_layernorm.weight",
    r"blk\.(\d+)\.attn_([qkv])\.weight": r"model.layers.\1.self_attn.\2_proj.weight",
    r"blk\.(\d+)\.attn_output\.weight": r"model.layers.\1.self_attn.o_proj.weight",
    r"blk\.(\d+)\.ffn_(gate|up|down)\.weight": r"model.layers.\1.mlp.\2_proj.weight",
}


def from_gguf(published: Published) -> Published:
    """A GGUF file as if it were a folder in Hugging Face's layout.

    llama.cpp turns neighbouring pairs of a head where we and Hugging Face turn halves, so its files
    hold the rows of queries and keys in another order (its convert_hf_to_gguf.py, `permute`).

    Raises:
      UserError: the file holds another architecture, or lacks a field.
    """
    config = _config_of(published)
    heads = {"q": config["num_attention_heads"], "k": config["num_key_value_heads"]}
    names = {_hugging_face_name(name): name for name in published.shapes}

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


def _hugging_face_name(name: str) -> str:
    for pattern, template in GGUF_NAMES.items():
        if match := re.fullmatch(pattern, name):
            return match.expand(template)
    return name  # known to nobody: loading will say so


def _halves(rows: np.ndarray, heads: int) -> np.ndarray:
    """Rows (N * H, D) whose rotary pairs are neighbours -> rows whose pairs are halves of a head."""
    pairs = rows.reshape(heads, -1, 2, rows.shape[-1])
    return pairs.swapaxes(1, 2).reshape(rows.shape)
