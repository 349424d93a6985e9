"""MobileNetV2, both ways: with torch's padding under torchvision's names, with TensorFlow's in Hugging
Face's layout. Of the former config.json is the model's own values.
"""

from __future__ import annotations

from typing import Any

from bigjax.core.errors import UserError
from bigjax.models.convolution import divisible
from bigjax.models.mobilenet import STAGES
from bigjax.pretrained import table
from bigjax.pretrained.entry import Entry, linear
from bigjax.pretrained.table import Key
from bigjax.pretrained.vision import batch_norm, conv

TYPE = "mobilenet_v2"
PREFIXES = ("mobilenet_v2.",)
OWN_KEYS = ("outputs", "width")
TORCH = dict(padding="torch", norm_epsilon=1e-5)
KEYS = (
    Key("depth_multiplier", "width", 1.0),
    Key("classifier_dropout_prob", "dropout", 0.8),
    Key("layer_norm_eps", "norm_epsilon", 1e-3),
)
# What a model with TensorFlow's padding always is.
FIXED = dict(
    model_type="mobilenet_v2",
    num_channels=3,
    depth_divisible_by=8,
    min_depth=8,
    expand_ratio=6.0,
    output_stride=32,
    first_layer_is_expansion=True,
    finegrained_output=True,
    hidden_act="relu6",
    tf_padding=True,
)


def model_values(published: dict[str, Any]) -> dict[str, Any]:
    """The keyword arguments of `bigjax.models.mobilenet.MobileNetV2` from a config.json of either kind.

    Raises:
      UserError: it describes something that this family is not.
    """
    if "outputs" in published:
        return TORCH | {key: published[key] for key in OWN_KEYS if key in published}
    table.check(FIXED, published)
    values = dict(table.read(KEYS, published), padding="same")
    _check_width(values["width"])
    return dict(values, outputs=table.outputs_of(published, default=1000))


def published_config(model: dict[str, Any]) -> dict[str, Any]:
    """The config.json of a model with these values; UserError if no layout has such a model."""
    if model["padding"] == "torch":
        if model["norm_epsilon"] != TORCH["norm_epsilon"]:
            raise UserError(
                "export: MobileNetV2 under torchvision's names has a norm_epsilon of 1e-5"
            )
        return dict(model_type="mobilenet_v2", **{key: model[key] for key in OWN_KEYS})
    _check_width(model["width"])
    return dict(
        architectures=["MobileNetV2ForImageClassification"],
        **table.write(KEYS, model),
        **FIXED,
        **table.labels_of(model["outputs"]),
    )


def _check_width(width: float) -> None:
    """transformers rounds channels before it makes them divisible, and adds nothing up in the first block."""
    channels = [32, *(stage[1] for stage in STAGES)]
    ours = [divisible(c * width) for c in channels]
    if ours != [divisible(round(c * width)) for c in channels] or ours[0] == ours[1]:
        raise UserError(f"transformers' MobileNetV2 of model.width {width!r} has other channels")


def entries(model: dict[str, Any]) -> list[Entry]:
    """Every published tensor of a model with these values and the leaf it becomes."""
    if model["padding"] == "same":
        return _in_transformers()
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


def _in_transformers() -> list[Entry]:
    """The names of transformers, whose stem is our stem and first block."""
    units = {
        "conv_stem.first_conv": "stem",
        "conv_stem.conv_3x3": "block_0/depthwise",
        "conv_stem.reduce_1x1": "block_0/project",
    }
    parts = dict(expand_1x1="expand", conv_3x3="depthwise", reduce_1x1="project")
    for i in range(1, sum(blocks for _, _, blocks, _ in STAGES)):
        units |= {f"layer.{i - 1}.{theirs}": f"block_{i}/{ours}" for theirs, ours in parts.items()}
    units["conv_1x1"] = "last"
    found = linear("classifier", "head")
    for theirs, ours in units.items():
        found += conv(f"{theirs}.convolution", ours)
        found += batch_norm(f"{theirs}.normalization", f"{ours}_norm")
    return found
