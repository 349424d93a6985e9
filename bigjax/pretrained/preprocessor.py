"""The run's image transforms as transformers' preprocessor_config.json."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from bigjax.core.errors import UserError

CLASSES = {
    "deit": "DeiTImageProcessor",
    "efficientnet": "EfficientNetImageProcessor",
    "clip": "CLIPImageProcessor",
    "siglip": "SiglipImageProcessor",
}
BILINEAR = 2  # Pillow's number


def preprocessor_config(transforms: Sequence[Any], side: int, model_type: str) -> dict[str, Any]:
    """What makes a model's input of a picture, uint8.

    Args:
      transforms: `config.data.preprocess`, in order: "resize", "center_crop" and "normalize" can be said.
      side: of the pictures that the model reads, in pixels.
      model_type: of config.json.

    Raises:
      UserError: another transform, which transformers' processors do not have.
    """
    found = dict(
        image_processor_type=CLASSES.get(model_type, "ViTImageProcessor"),
        do_resize=True,
        size=dict(height=side, width=side),
        resample=BILINEAR,
        do_rescale=True,
        rescale_factor=1.0,
        do_normalize=False,
    )
    for transform in transforms:
        kind = type(transform).__name__
        if kind == "Resize":
            found["size"] = dict(height=transform.size, width=transform.size)
        elif kind == "CenterCrop":
            found["do_center_crop"] = True
            found["crop_size"] = dict(height=transform.size, width=transform.size)
        elif kind == "Normalize" and not found["do_normalize"]:
            mean, std = (np.broadcast_to(x, 3).tolist() for x in (transform.mean, transform.std))
            found |= dict(rescale_factor=1 / transform.scale, do_normalize=True)
            found |= dict(image_mean=mean, image_std=std)
        else:
            raise UserError(f"export: preprocessor_config.json cannot say '{kind.lower()}'")
    return found
