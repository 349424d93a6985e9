"""ViT and DeiT in Hugging Face's layout: config.json and the names of the tensors, both ways."""

from __future__ import annotations

from typing import Any

from bigjax.core.errors import UserError
from bigjax.pretrained.entry import Entry
from bigjax.pretrained.vision import dense, labels_of, norm, outputs_of

TYPE = "vit"
# An encoder under a head has names with a prefix, a bare one without.
PREFIXES = ("vit.", "deit.")
IGNORED = (r"embeddings\.mask_token", r"pooler\..*")


def model_values(published: dict[str, Any]) -> dict[str, Any]:
    """The keyword arguments of `bigjax.models.vit.ViT` from a published config.json.

    Raises:
      UserError: it describes something that this family is not.
    """
    for key, wanted in (("hidden_act", "gelu"), ("qkv_bias", True)):
        if published.get(key, wanted) != wanted:
            raise UserError(f"config.init: {key} {published[key]!r} is not known; {wanted!r} is")
    architecture = (published.get("architectures") or ["ViTForImageClassification"])[0]
    if architecture == "DeiTForImageClassification":
        raise UserError(
            "config.init: a DeiTForImageClassification has no head on its distillation token; "
            "DeiTForImageClassificationWithTeacher has"
        )
    return dict(
        outputs=outputs_of(published),
        image=published["image_size"],
        patch=published["patch_size"],
        layers=published["num_hidden_layers"],
        width=published["hidden_size"],
        heads=published["num_attention_heads"],
        mlp_width=published["intermediate_size"],
        pool="cls",
        positions="learned",
        distillation=published.get("model_type") == "deit",
        dropout=published.get("hidden_dropout_prob", 0.0),
        norm_epsilon=published.get("layer_norm_eps", 1e-12),
    )


def published_config(model: dict[str, Any]) -> dict[str, Any]:
    """The config.json of a model with these values; UserError if transformers has no such model."""
    if model["pool"] != "cls" or model["positions"] != "learned":
        raise UserError(
            "export: transformers' ViT has pool 'cls' and learned positions, not "
            f"'{model['pool']}' and '{model['positions']}'"
        )
    deit = model["distillation"]
    name = "DeiTForImageClassificationWithTeacher" if deit else "ViTForImageClassification"
    return dict(
        model_type="deit" if deit else "vit",
        architectures=[name],
        patch_size=model["patch"],
        image_size=model["image"],
        num_hidden_layers=model["layers"],
        hidden_size=model["width"],
        num_attention_heads=model["heads"],
        intermediate_size=model["mlp_width"] or 4 * model["width"],
        hidden_act="gelu",
        hidden_dropout_prob=model["dropout"],
        layer_norm_eps=model["norm_epsilon"],
        qkv_bias=True,
        **labels_of(model["outputs"]),
    )


def entries(model: dict[str, Any]) -> list[Entry]:
    """Every published tensor of a model with these values and the leaf it becomes."""
    patch = model["patch"]
    found = [
        Entry("embeddings.cls_token", ("params/cls",), "1 1 d -> d"),
        Entry("embeddings.position_embeddings", ("params/positions",), "1 t d -> t d"),
        *dense(
            "embeddings.patch_embeddings.projection",
            "patches",
            "d c p q -> (p q c) d",
            p=patch,
            q=patch,
        ),
        *norm("layernorm", "norm"),
    ]
    for i in range(model["layers"]):
        found += block(f"encoder.layer.{i}", f"block_{i}", model["heads"])
    if not model["distillation"]:
        return found + dense("classifier", "head")
    return [
        *found,
        Entry("embeddings.distillation_token", ("params/distillation",), "1 1 d -> d"),
        *dense("cls_classifier", "head"),
        *dense("distillation_classifier", "distillation_head"),
    ]


def block(name: str, path: str, heads: int) -> list[Entry]:
    """The tensors of one block."""
    found = []
    for part in ("query", "key", "value"):
        there, here = f"{name}.attention.attention.{part}", f"params/{path}/attention/{part}"
        sizes = {"n": heads}
        found.append(Entry(f"{there}.weight", (f"{here}/kernel",), "(n h) d -> d n h", sizes))
        found.append(Entry(f"{there}.bias", (f"{here}/bias",), "(n h) -> n h", sizes))
    out = dense(
        f"{name}.attention.output.dense", f"{path}/attention/out", "d (n h) -> n h d", n=heads
    )
    return [
        *found,
        *out,
        *norm(f"{name}.layernorm_before", f"{path}/attention_norm"),
        *norm(f"{name}.layernorm_after", f"{path}/mlp_norm"),
        *dense(f"{name}.intermediate.dense", f"{path}/mlp/up"),
        *dense(f"{name}.output.dense", f"{path}/mlp/down"),
    ]
