"""MobileNetV2 under torchvision's names, both ways. Its config.json is the model's own values."""

from __future__ import annotations

from typing import Any

from bigjax.models.mobilenet import STAGES
from bigjax.pretrained.entry import Entry, linear
from bigjax.pretrained.vision import batch_norm, conv

TYPE = "mobilenet_v2"
KEYS = ("outputs", "width")


def model_values(published: dict[str, Any]) -> dict[str, Any]:
    """The keyword arguments of `bigjax.models.mobilenet.MobileNetV2` from an export's config.json."""
    return {key: published[key] for key in KEYS if key in published}


def published_config(model: dict[str, Any]) -> dict[str, Any]:
    """The config.json of a model with these values: transformers' MobileNetV2 pads otherwise."""
    return dict(model_type="mobilenet_v2", **{key: model[key] for key in KEYS})


def entries(model: dict[str, Any]) -> list[Entry]:
    """Every published tensor of a model with these values and the leaf it becomes."""
    found = [*conv("features.0.0", "stem"), *batch_norm("features.0.1", "stem_norm")]
    number = 0
    for expand, _, blocks, _ in STAGES:
        for _ in range(blocks):
            found += block(f"features.{number + 1}.conv", f"block_{number}", expand)
            number += 1
    last = f"features.{number + 1}"
    return [
        *found,
        *conv(f"{last}.0", "last"),
        *batch_norm(f"{last}.1", "last_norm"),
        *linear("classifier.1", "head"),
    ]


def block(name: str, path: str, expand: int) -> list[Entry]:
    """The tensors of one block: (widening and its norm,) depthwise and its norm, narrowing, norm."""
    found, place = [], 0
    for part in ("expand", "depthwise") if expand != 1 else ("depthwise",):
        found += conv(f"{name}.{place}.0", f"{path}/{part}")
        found += batch_norm(f"{name}.{place}.1", f"{path}/{part}_norm")
        place += 1
    return [
        *found,
        *conv(f"{name}.{place}", f"{path}/project"),
        *batch_norm(f"{name}.{place + 1}", f"{path}/project_norm"),
    ]
