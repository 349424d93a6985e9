"""Pictures that a run leaves, in `WORKDIR/samples/NAME/STEP.png`. What lies there is in the report.

That is the whole hook: an evaluator that makes samples saves them there, and report.html shows the
newest of each name, as TensorBoard does.

    pictures.save(seen.folder, seen.step, seen.name, pictures.grid(images))
"""

from __future__ import annotations

import math
from pathlib import Path

import jax
import numpy as np
from PIL import Image

FOLDER = "samples"
GAP = 2  # pixels between the pictures of a grid


def grid(images: np.ndarray, columns: int | None = None) -> np.ndarray:
    """Returns pictures side by side as one.

    Args:
      images: (N, H, W) or (N, H, W, C), C 1 or 3; uint8, or floats from 0 to 1 (others are cut off).
      columns: in a row; by default as many as rows.

    Returns:
      uint8 (rows * (H + GAP) - GAP, columns * (W + GAP) - GAP, 1 or 3), white between them.

    Raises:
      ValueError: another shape.
    """
    images = np.asarray(images)
    if images.ndim == 3:
        images = images[..., None]
    if images.ndim != 4 or images.shape[-1] not in (1, 3) or not len(images):
        raise ValueError(f"pictures of shape {images.shape}: (N, H, W), or C 1 or 3 after it")
    if images.dtype != np.uint8:
        images = np.round(np.clip(np.nan_to_num(images), 0.0, 1.0) * 255).astype(np.uint8)
    count, height, width, channels = images.shape
    columns = columns or math.ceil(math.sqrt(count))
    rows = math.ceil(count / columns)
    size = (rows * (height + GAP) - GAP, columns * (width + GAP) - GAP, channels)
    whole = np.full(size, 255, np.uint8)
    for i, image in enumerate(images):
        top, left = i // columns * (height + GAP), i % columns * (width + GAP)
        whole[top : top + height, left : left + width] = image
    return whole


def save(workdir: Path, step: int, name: str, pixels: np.ndarray) -> None:
    """Writes one picture, uint8 (H, W, 1 or 3); of several processes of a run, the first does."""
    if jax.process_index() == 0:
        path = workdir / FOLDER / name / f"{step}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels).save(path)


def saved(workdir: Path) -> dict[str, dict[int, Path]]:
    """Returns name -> step -> file, in order."""
    found: dict[str, dict[int, Path]] = {}
    paths = [p for p in (workdir / FOLDER).glob("*/*.png") if p.stem.isdigit()]
    for path in sorted(paths, key=lambda path: (path.parent.name, int(path.stem))):
        found.setdefault(path.parent.name, {})[int(path.stem)] = path
    return found
