"""EfficientNet in Hugging Face's layout: config.json and the names of the tensors, both ways."""

from __future__ import annotations

from typing import Any

from bigjax.core.errors import UserError
from bigjax.models.convolution import divisible
from bigjax.models.efficientnet import STAGES, blocks_of
from bigjax.pretrained import table
from bigjax.pretrained.entry import Entry, linear
from bigjax.pretrained.table import Key
from bigjax.pretrained.vision import batch_norm, conv

TYPE = "efficientnet"
PREFIXES = ("efficientnet.",)
KEYS = (
    Key("width_coefficient", "width", 2.0),
    Key("depth_coefficient", "depth", 3.1),
    Key("squeeze_expansion_ratio", "squeeze", 0.25),
    Key("image_size", "image", 600),
    Key("dropout_rate", "dropout", 0.5),
    Key("batch_norm_eps", "norm_epsilon", 1e-3),
)


def model_values(published: dict[str, Any]) -> dict[str, Any]:
    """The keyword arguments of `bigjax.models.efficientnet.EfficientNet` from a published config.json.

    Raises:
      UserError: it describes something that this family is not.
    """
    values = table.read(KEYS, published)
    usual = dict(hidden_dim=2560, depthwise_padding=[])
    table.check(_fixed(values), usual | dict(published))
    return dict(values, outputs=table.outputs_of(published, default=1000))


def published_config(model: dict[str, Any]) -> dict[str, Any]:
    """The config.json of a model with these values."""
    return dict(
        architectures=["EfficientNetForImageClassification"],
        **table.write(KEYS, model),
        **_fixed(model),
        drop_connect_rate=0.0,
        **table.labels_of(model["outputs"]),
    )


def _fixed(model: dict[str, Any]) -> dict[str, Any]:
    """What config.json must say of a model of these values; UserError where transformers has no such model.

    transformers pads before a stride of 2 as TensorFlow does for an even side, and is told the blocks
    where the side is odd.
    """
    blocks = blocks_of(model["width"], model["depth"], model["squeeze"])
    side, inputs, odd = -(-model["image"] // 2), divisible(32 * model["width"]), []
    for number, block in enumerate(blocks):
        first = number == 0 or blocks[number - 1]["channels"] != block["channels"]
        if block["stride"] == 2 and side % 2:
            odd.append(number)
        if first and block["stride"] == 1 and block["channels"] == inputs:
            raise UserError(f"the layout of 'efficientnet' has no model.width {model['width']!r}")
        side, inputs = -(-side // block["stride"]), block["channels"]
    if model["image"] % 2:
        raise UserError(f"the layout of 'efficientnet' has no odd model.image, {model['image']}")
    expands, channels, counts, strides, kernels = (list(x) for x in zip(*STAGES, strict=True))
    return dict(
        model_type="efficientnet",
        num_channels=3,
        depth_divisor=8,
        kernel_sizes=kernels,
        in_channels=[32, *channels[:-1]],
        out_channels=channels,
        strides=strides,
        num_block_repeats=counts,
        expand_ratios=expands,
        depthwise_padding=odd,
        hidden_act="swish",
        hidden_dim=divisible(1280 * model["width"]),
        pooling_type="mean",
    )


def entries(model: dict[str, Any]) -> list[Entry]:
    """Every published tensor of a model with these values and the leaf it becomes."""
    found = [
        *conv("embeddings.convolution", "stem"),
        *batch_norm("embeddings.batchnorm", "stem_norm"),
    ]
    names = dict(
        expand=("expansion.expand_conv", "expansion.expand_bn"),
        depthwise=("depthwise_conv.depthwise_conv", "depthwise_conv.depthwise_norm"),
        project=("projection.project_conv", "projection.project_bn"),
    )
    for i, block in enumerate(blocks_of(model["width"], model["depth"], model["squeeze"])):
        there, here = f"encoder.blocks.{i}", f"block_{i}"
        for ours, theirs in names.items():
            if ours != "expand" or block["expand"] != 1:
                found += conv(f"{there}.{theirs[0]}", f"{here}/{ours}")
                found += batch_norm(f"{there}.{theirs[1]}", f"{here}/{ours}_norm")
        found += conv(f"{there}.squeeze_excite.reduce", f"{here}/squeeze", bias=True)
        found += conv(f"{there}.squeeze_excite.expand", f"{here}/excite", bias=True)
    return [
        *found,
        *conv("encoder.top_conv", "last"),
        *batch_norm("encoder.top_bn", "last_norm"),
        *linear("classifier", "head"),
    ]
