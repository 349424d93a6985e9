"""VGG under torchvision's names, both ways. Its config.json is the model's own values."""

from __future__ import annotations

from typing import Any

from bigjax.pretrained.entry import Entry, linear
from bigjax.pretrained.vision import batch_norm, conv

TYPE = "vgg"
KEYS = ("outputs", "layers", "width", "pooled", "dense", "batch_norm")


def model_values(published: dict[str, Any]) -> dict[str, Any]:
    """The keyword arguments of `bigjax.models.vgg.VGG` from a config.json that an export wrote."""
    values = {key: published[key] for key in KEYS if key in published}
    return {key: tuple(v) if isinstance(v, list) else v for key, v in values.items()}


def published_config(model: dict[str, Any]) -> dict[str, Any]:
    """The config.json of a model with these values; no library defines one for VGG."""
    return dict(model_type="vgg", **{key: model[key] for key in KEYS})


def entries(model: dict[str, Any]) -> list[Entry]:
    """Every published tensor of a model with these values and the leaf it becomes.

    `features` counts every layer: convolution, (norm,) activation, and a pool after each stage.
    """
    found, place, number = [], 0, 0
    for convolutions in model["layers"]:
        for _ in range(convolutions):
            found += conv(f"features.{place}", f"conv_{number}", bias=True)
            if model["batch_norm"]:
                found += batch_norm(f"features.{place + 1}", f"norm_{number}")
            place += 3 if model["batch_norm"] else 2
            number += 1
        place += 1
    # `classifier` counts linear, activation, dropout; the features come flattened channel by channel.
    layers = [*(f"dense_{i}" for i in range(len(model["dense"]))), "head"]
    side = model["pooled"]
    found += linear("classifier.0", layers[0], "o (c h w) -> (h w c) o", h=side, w=side)
    for i, layer in enumerate(layers[1:], start=1):
        found += linear(f"classifier.{3 * i}", layer)
    return found
