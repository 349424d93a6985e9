"""ResNet under torchvision's names, as its state dicts hold it, both ways; there is no config.json."""

from __future__ import annotations

from typing import Any

from bigjax.pretrained.entry import Entry, linear
from bigjax.pretrained.resnet import TYPE, model_values, published_config
from bigjax.pretrained.vision import batch_norm, conv

__all__ = ["TYPE", "entries", "model_values", "published_config"]


def entries(model: dict[str, Any]) -> list[Entry]:
    """Every published tensor of a model with these values and the leaf it becomes."""
    found = [*conv("conv1", "stem"), *batch_norm("bn1", "stem_norm")]
    first = 0 if model["block"] == "bottleneck" else 1
    for stage, blocks in enumerate(model["layers"]):
        for i in range(blocks):
            there, here = f"layer{stage + 1}.{i}", f"stage_{stage}_block_{i}"
            for number in range(first, 3):
                theirs = number - first + 1
                found += conv(f"{there}.conv{theirs}", f"{here}/conv_{number}")
                found += batch_norm(f"{there}.bn{theirs}", f"{here}/norm_{number}")
            if i == 0 and (stage or model["block"] == "bottleneck"):
                found += conv(f"{there}.downsample.0", f"{here}/shortcut")
                found += batch_norm(f"{there}.downsample.1", f"{here}/shortcut_norm")
    return found + linear("fc", "head")
