"""ResNet in Hugging Face's layout: config.json and the names of the tensors, both ways."""

from __future__ import annotations

from typing import Any

from bigjax.core.errors import UserError
from bigjax.models.resnet import EXPANSION
from bigjax.pretrained import table
from bigjax.pretrained.entry import Entry, linear
from bigjax.pretrained.table import Key
from bigjax.pretrained.vision import batch_norm, conv

TYPE = "resnet"
KEYS = (
    Key("layer_type", "block", words={block: block for block in EXPANSION}),
    Key("embedding_size", "width"),
    Key("depths", "layers"),
)


def model_values(published: dict[str, Any]) -> dict[str, Any]:
    """The keyword arguments of `bigjax.models.resnet.ResNet` from a published config.json.

    Raises:
      UserError: it describes something that this family is not.
    """
    values = table.read(KEYS, published)
    table.check(_fixed(values), published)
    return dict(values, outputs=table.outputs_of(published, default=1000), stem="imagenet")


def published_config(model: dict[str, Any]) -> dict[str, Any]:
    """The config.json of a model with these values; UserError if transformers has no such model."""
    if model.get("inner_widths") is not None:
        raise UserError("export: transformers' ResNet has no model.inner_widths")
    if model["stem"] != "imagenet":
        raise UserError(f"export: transformers' ResNet has no stem '{model['stem']}'")
    return dict(
        model_type="resnet",
        architectures=["ResNetForImageClassification"],
        **table.write(KEYS, model),
        **_fixed(model),
        **table.labels_of(model["outputs"]),
    )


def _fixed(model: dict[str, Any]) -> dict[str, Any]:
    """What config.json must say of a model of these values."""
    first = model["width"] * EXPANSION[model["block"]]
    return dict(
        hidden_act="relu",
        downsample_in_first_stage=False,
        downsample_in_bottleneck=False,
        hidden_sizes=[first * 2**i for i in range(len(model["layers"]))],
    )


def entries(model: dict[str, Any]) -> list[Entry]:
    """Every published tensor of a model with these values and the leaf it becomes."""
    found = unit("resnet.embedder.embedder", "stem", "stem_norm")
    first = 0 if model["block"] == "bottleneck" else 1
    for stage, blocks in enumerate(model["layers"]):
        for i in range(blocks):
            there = f"resnet.encoder.stages.{stage}.layers.{i}"
            here = f"stage_{stage}_block_{i}"
            for number in range(first, 3):
                name = f"{there}.layer.{number - first}"
                found += unit(name, f"{here}/conv_{number}", f"{here}/norm_{number}")
            if i == 0 and (stage or model["block"] == "bottleneck"):
                found += unit(f"{there}.shortcut", f"{here}/shortcut", f"{here}/shortcut_norm")
    return found + linear("classifier.1", "head")


def unit(name: str, conv_path: str, norm_path: str) -> list[Entry]:
    """A convolution and its norm."""
    return [
        *conv(f"{name}.convolution", conv_path),
        *batch_norm(f"{name}.normalization", norm_path),
    ]
