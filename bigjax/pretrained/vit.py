"""ViT and DeiT in Hugging Face's layout: config.json and the names of the tensors, both ways."""

from __future__ import annotations

from typing import Any

from bigjax.core.errors import UserError
from bigjax.models.transformer import BIASES
from bigjax.pretrained import table
from bigjax.pretrained.entry import Entry, linear, norm, projections
from bigjax.pretrained.table import Key, activations

TYPE = "vit"
# An encoder under a head has names with a prefix, a bare one without.
PREFIXES = ("vit.", "deit.")
IGNORED = (r"embeddings\.mask_token", r"pooler\..*")
KEYS = (
    Key("image_size", "image"),
    Key("patch_size", "patch"),
    Key("num_hidden_layers", "layers"),
    Key("hidden_size", "width"),
    Key("num_attention_heads", "heads"),
    Key("intermediate_size", "mlp_width"),
    Key("hidden_dropout_prob", "dropout", 0.0),
    Key("layer_norm_eps", "norm_epsilon", 1e-12),
    Key("hidden_act", "activation", "gelu", activations("gelu")),
    Key("qkv_bias", "biases", True, {True: BIASES, False: ("out", "mlp")}),
)


def model_values(published: dict[str, Any]) -> dict[str, Any]:
    """The keyword arguments of `bigjax.models.vit.ViT` from a published config.json.

    Raises:
      UserError: it describes something that this family is not.
    """
    architecture = (published.get("architectures") or ["ViTForImageClassification"])[0]
    return dict(
        outputs=table.outputs_of(published, default=1000),
        **table.read(KEYS, published),
        pool="cls",
        positions="learned",
        distillation=published.get("model_type") == "deit",
        pre_norm=False,
        second_head=architecture != "DeiTForImageClassification",
    )


def published_config(model: dict[str, Any]) -> dict[str, Any]:
    """The config.json of a model with these values; UserError if transformers has no such model."""
    table.check_heads(model)
    if model["pool"] != "cls" or model["positions"] != "learned":
        raise UserError(
            "export: transformers' ViT has pool 'cls' and learned positions, not "
            f"'{model['pool']}' and '{model['positions']}'"
        )
    if model["pre_norm"] or model["outputs"] is None:
        raise UserError(
            "export: the layout of 'vit' has no model.pre_norm, and needs model.outputs"
        )
    deit = model["distillation"]
    name = "DeiTForImageClassification" if deit else "ViTForImageClassification"
    name += "WithTeacher" * (deit and model["second_head"])
    filled = {**model, "mlp_width": model["mlp_width"] or 4 * model["width"]}
    return dict(
        model_type="deit" if deit else "vit",
        architectures=[name],
        **table.write(KEYS, {**filled, "biases": tuple(model["biases"])}),
        **table.labels_of(model["outputs"]),
    )


def entries(model: dict[str, Any]) -> list[Entry]:
    """Every published tensor of a model with these values and the leaf it becomes."""
    sides = dict(p=model["patch"], q=model["patch"])
    projection = "embeddings.patch_embeddings.projection"
    found = [
        Entry("embeddings.cls_token", ("params/cls",), "1 1 d -> d"),
        Entry("embeddings.position_embeddings", ("params/positions",), "1 t d -> t d"),
        *linear(projection, "patches", "d c p q -> (p q c) d", **sides),
        *norm("layernorm", "norm"),
    ]
    for i in range(model["layers"]):
        found += block(f"encoder.layer.{i}", f"block_{i}", model)
    if model["distillation"]:
        found.append(Entry("embeddings.distillation_token", ("params/distillation",), "1 1 d -> d"))
    if not (model["distillation"] and model["second_head"]):
        return found + linear("classifier", "head")
    heads = (("cls_classifier", "head"), ("distillation_classifier", "distillation_head"))
    return [*found, *(entry for names in heads for entry in linear(*names))]


def block(name: str, path: str, model: dict[str, Any]) -> list[Entry]:
    """The tensors of one block."""
    names = [f"{name}.attention.attention.{part}" for part in ("query", "key", "value")]
    names.append(f"{name}.attention.output.dense")
    width = model["width"] // model["heads"]
    return [
        *projections(names, f"{path}/attention", width, model["biases"]),
        *norm(f"{name}.layernorm_before", f"{path}/attention_norm"),
        *norm(f"{name}.layernorm_after", f"{path}/mlp_norm"),
        *linear(f"{name}.intermediate.dense", f"{path}/mlp/up"),
        *linear(f"{name}.output.dense", f"{path}/mlp/down"),
    ]
