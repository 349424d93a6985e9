"""T5 in Hugging Face's layout: config.json and the names of the tensors, both ways."""

from __future__ import annotations

from typing import Any

from bigjax.core.errors import UserError
from bigjax.pretrained import table
from bigjax.pretrained.entry import Entry, linear, norm, projections
from bigjax.pretrained.table import Key

TYPE = "t5"
GENERATES = True
# Each side's own copy of the shared embedding.
IGNORED = (r"(encoder|decoder)\.embed_tokens\.weight",)

KEYS = (
    Key("vocab_size", "vocab"),
    Key("num_layers", "layers"),
    Key("num_decoder_layers", "decoder_layers", None),
    Key("d_model", "width"),
    Key("num_heads", "heads"),
    Key("d_kv", "head_width"),
    Key("d_ff", "mlp_width"),
    Key("feed_forward_proj", "gated", "relu", {"relu": False, "gated-gelu": True}),
    Key("tie_word_embeddings", "tied", True),
    Key("relative_attention_num_buckets", "buckets", 32),
    Key("relative_attention_max_distance", "max_distance", 128),
    Key("dropout_rate", "dropout", 0.1),
    Key("layer_norm_epsilon", "norm_epsilon", 1e-6),
)


def model_values(published: dict[str, Any]) -> dict[str, Any]:
    """The keyword arguments of `bigjax.models.t5.T5` from a published config.json.

    Raises:
      UserError: it describes something that this family is not.
    """
    values = {**table.read(KEYS, published), "positions": "relative"}
    # Said twice in what transformers writes, and only the second is heard.
    activation = "gelu_new" if values["gated"] else "relu"
    table.check(dict(dense_act_fn=activation, is_gated_act=values["gated"]), published)
    values["decoder_layers"] = values["decoder_layers"] or values["layers"]
    # transformers 5 writes "tied" even where it is not, and this beside it.
    values["tied"] = published.get("scale_decoder_outputs", values["tied"])
    return values


def published_config(model: dict[str, Any]) -> dict[str, Any]:
    """The config.json of a model with these values.

    Raises:
      UserError: its positions are sinusoidal, which the published layout does not know.
    """
    if model["positions"] != "relative":
        raise UserError("export: the published T5 has relative positions only")
    filled = dict(
        decoder_layers=model["decoder_layers"] or model["layers"],
        head_width=model["head_width"] or model["width"] // model["heads"],
        mlp_width=model["mlp_width"] or 4 * model["width"],
    )
    return dict(
        model_type="t5",
        architectures=["T5ForConditionalGeneration"],
        **table.write(KEYS, {**model, **filled}),
        pad_token_id=0,
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
            found += block(f"{side}.block.{i}.layer", f"{side}/block_{i}", model)
        found += norm(f"{side}.final_layer_norm", f"{side}/norm", bias=False)
    if not model["tied"]:
        found += linear("lm_head", "head", bias=False)
    return found


def block(name: str, path: str, model: dict[str, Any]) -> list[Entry]:
    """The tensors of one block."""
    parts = [("SelfAttention", "attention")]
    if name.startswith("decoder"):
        parts.append(("EncDecAttention", "cross_attention"))
    found, width = [], model["head_width"] or model["width"] // model["heads"]
    for number, (there, here) in enumerate(parts):
        names = [f"{name}.{number}.{there}.{letter}" for letter in "qkvo"]
        found += projections(names, f"{path}/{here}", width, biases=())
        found += norm(f"{name}.{number}.layer_norm", f"{path}/{here}_norm", bias=False)
    last = f"{name}.{len(parts)}"
    names = dict(wi_0="gate", wi_1="up", wo="down") if model["gated"] else dict(wi="up", wo="down")
    for there, here in names.items():
        found += linear(f"{last}.DenseReluDense.{there}", f"{path}/mlp/{here}", bias=False)
    return found + norm(f"{last}.layer_norm", f"{path}/mlp_norm", bias=False)
