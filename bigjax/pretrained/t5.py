"""T5 in Hugging Face's layout: config.json and the names of the tensors, both ways."""

from __future__ import annotations

from typing import Any

from bigjax.core.errors import UserError
from bigjax.pretrained.entry import Entry

TYPE = "t5"
# Each side's own copy of the shared embedding.
IGNORED = (r"(encoder|decoder)\.embed_tokens\.weight",)

FEED_FORWARD = {"relu": False, "gated-gelu": True}


def model_values(published: dict[str, Any]) -> dict[str, Any]:
    """The keyword arguments of `bigjax.models.t5.T5` from a published config.json.

    Raises:
      UserError: it describes something that this family is not.
    """
    feed_forward = published.get("feed_forward_proj", "relu")
    if feed_forward not in FEED_FORWARD:
        raise UserError(
            f"config.init: feed_forward_proj '{feed_forward}' is not known here; "
            f"{' and '.join(FEED_FORWARD)} are"
        )
    tied = published.get("tie_word_embeddings", True)
    return dict(
        vocab=published["vocab_size"],
        layers=published["num_layers"],
        decoder_layers=published.get("num_decoder_layers") or published["num_layers"],
        width=published["d_model"],
        heads=published["num_heads"],
        head_width=published["d_kv"],
        mlp_width=published["d_ff"],
        gated=FEED_FORWARD[feed_forward],
        # transformers 5 writes "tied" even where it is not, and this beside it.
        tied=published.get("scale_decoder_outputs", tied),
        positions="relative",
        buckets=published.get("relative_attention_num_buckets", 32),
        max_distance=published.get("relative_attention_max_distance", 128),
        dropout=published.get("dropout_rate", 0.1),
        norm_epsilon=published.get("layer_norm_epsilon", 1e-6),
    )


def published_config(model: dict[str, Any]) -> dict[str, Any]:
    """The config.json of a model with these values.

    Raises:
      UserError: its positions are sinusoidal, which the published layout does not know.
    """
    if model["positions"] != "relative":
        raise UserError("export: the published T5 has relative positions only")
    return dict(
        model_type="t5",
        architectures=["T5ForConditionalGeneration"],
        vocab_size=model["vocab"],
        num_layers=model["layers"],
        num_decoder_layers=model["decoder_layers"] or model["layers"],
        d_model=model["width"],
        num_heads=model["heads"],
        d_kv=model["head_width"] or model["width"] // model["heads"],
        d_ff=model["mlp_width"] or 4 * model["width"],
        feed_forward_proj="gated-gelu" if model["gated"] else "relu",
        tie_word_embeddings=model["tied"],
        relative_attention_num_buckets=model["buckets"],
        relative_attention_max_distance=model["max_distance"],
        dropout_rate=model["dropout"],
        layer_norm_epsilon=model["norm_epsilon"],
        decoder_start_token_id=0,
    )


def entries(model: dict[str, Any]) -> list[Entry]:
    """Every published tensor of a model with these values and the leaf it becomes."""
    found = [Entry("shared.weight", ("params/embedding",))]
    depths = dict(encoder=model["layers"], decoder=model["decoder_layers"] or model["layers"])
    for side, layers in depths.items():
        if model["positions"] == "relative":
            first = f"{side}.block.0.layer.0.SelfAttention.relative_attention_bias.weight"
            found.append(Entry(first, (f"params/{side}/distances",)))
        for i in range(layers):
            found += block(f"{side}.block.{i}", f"params/{side}/block_{i}", model)
        found.append(Entry(f"{side}.final_layer_norm.weight", (f"params/{side}/norm/scale",)))
    if not model["tied"]:
        found.append(linear("lm_head", "params/head"))
    return found


def block(name: str, path: str, model: dict[str, Any]) -> list[Entry]:
    """The tensors of one block."""
    parts = [("SelfAttention", "attention")]
    if name.startswith("decoder"):
        parts.append(("EncDecAttention", "cross_attention"))
    found = []
    for number, (there, here) in enumerate(parts):
        sublayer, sizes = f"{name}.layer.{number}", {"n": model["heads"]}
        for letter, part in (("q", "query"), ("k", "key"), ("v", "value")):
            kernel = (f"{path}/{here}/{part}/kernel",)
            pattern = "(n h) d -> d n h"
            found.append(Entry(f"{sublayer}.{there}.{letter}.weight", kernel, pattern, sizes))
        kernel = (f"{path}/{here}/out/kernel",)
        found.append(Entry(f"{sublayer}.{there}.o.weight", kernel, "d (n h) -> n h d", sizes))
        found.append(Entry(f"{sublayer}.layer_norm.weight", (f"{path}/{here}_norm/scale",)))
    sublayer = f"{name}.layer.{len(parts)}"
    names = dict(wi_0="gate", wi_1="up", wo="down") if model["gated"] else dict(wi="up", wo="down")
    for there, here in names.items():
        found.append(linear(f"{sublayer}.DenseReluDense.{there}", f"{path}/mlp/{here}"))
    return [*found, Entry(f"{sublayer}.layer_norm.weight", (f"{path}/mlp_norm/scale",))]


def linear(name: str, path: str) -> Entry:
    return Entry(f"{name}.weight", (f"{path}/kernel",), "o i -> i o")
