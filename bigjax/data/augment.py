"""Transforms of pictures: size, random crops, erasing, CutMix and RandAugment, all on the device.

Pure functions of (example, key), as in `transforms.py`. A picture is (H, W, C); those here that touch
its values want them in [0, 255], so they come before `normalize`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from bigjax.core.errors import UserError, needed
from bigjax.core.transforms import Example, example_keys
from bigjax.data.transforms import Mixing, at_least


@dataclasses.dataclass(frozen=True)
class Resize:
    """To size x size, in float32: bilinear, and averaging where the picture shrinks, as Pillow does."""

    size: int
    key: str = "image"

    def __post_init__(self):
        at_least("resize: size", self.size, 1)

    def __call__(self, example: Example, key: jax.Array) -> Example:
        x = example[self.key].astype(jnp.float32)
        return {**example, self.key: _resample(x, self.size, (0.0, 0.0), x.shape[:2])}


@dataclasses.dataclass(frozen=True)
class CenterCrop:
    """The size x size window in the middle; of an odd rest the larger half is below and to the right."""

    size: int
    key: str = "image"

    def __post_init__(self):
        at_least("center_crop: size", self.size, 1)

    def __call__(self, example: Example, key: jax.Array) -> Example:
        x = example[self.key]
        if self.size > min(x.shape[:2]):
            raise UserError(f"center_crop: size {self.size} exceeds the image {x.shape[:2]}")
        top, left = ((side - self.size) // 2 for side in x.shape[:2])
        return {**example, self.key: x[top : top + self.size, left : left + self.size]}


@dataclasses.dataclass(frozen=True)
class RandomResizedCrop:
    """A window of random area and shape, resized to size x size (Szegedy et al. 2015, section 6).

    scale: smallest and largest area, of the picture's. ratio: smallest and largest width / height,
    drawn evenly in the logarithm. A window wider or higher than the picture is cut to it.
    """

    size: int
    scale: Sequence[float] = (0.08, 1.0)
    ratio: Sequence[float] = (3 / 4, 4 / 3)
    key: str = "image"

    def __post_init__(self):
        at_least("random_resized_crop: size", self.size, 1)
        _check_window("random_resized_crop", self.scale, self.ratio)

    def __call__(self, example: Example, key: jax.Array) -> Example:
        x = example[self.key].astype(jnp.float32)
        corner, sides = _window(key, x.shape, self.scale, self.ratio)
        return {**example, self.key: _resample(x, self.size, corner, sides)}


@dataclasses.dataclass(frozen=True)
class RandomErasing:
    """With probability `p`, sets a random window to `value` (Zhong et al. 2020, algorithm 1).

    scale, ratio: as in `RandomResizedCrop`.
    """

    p: float = 0.25
    scale: Sequence[float] = (0.02, 0.33)
    ratio: Sequence[float] = (0.3, 3.3)
    value: float = 0.0
    key: str = "image"

    def __post_init__(self):
        if not 0 <= self.p <= 1:
            raise UserError(f"random_erasing: p must be in [0, 1], got {self.p}")
        _check_window("random_erasing", self.scale, self.ratio)

    def __call__(self, example: Example, key: jax.Array) -> Example:
        x = example[self.key]
        whether_key, window_key = jax.random.split(key)
        corner, sides = _window(window_key, x.shape, self.scale, self.ratio)
        erased = _inside(x.shape, corner, corner + sides)
        erased &= jax.random.bernoulli(whether_key, self.p)
        return {**example, self.key: jnp.where(erased[..., None], self.value, x).astype(x.dtype)}


@dataclasses.dataclass(frozen=True)
class CutMix(Mixing):
    """Pastes a window of the neighbour in the batch into each picture (Yun et al. 2019, section 3.1).

    The window's area is 1 - r of the picture's, r ~ Beta(alpha, alpha) drawn for each example from its
    own key, its middle anywhere; labels are mixed as probabilities by the area that is left of the
    picture. A masked example is never pasted.
    """

    def __call__(self, batch: Example, key: jax.Array) -> Example:
        x = batch[self.key]
        pasted = jax.vmap(lambda k: self._window(k, x.shape[1:]))(example_keys(batch, key))
        pasted &= (jnp.roll(batch["mask"], -1) > 0)[:, None, None]
        kept = 1 - jnp.mean(pasted, axis=(1, 2), dtype=jnp.float32)
        return self.mixed(batch, jnp.where(pasted[..., None], jnp.roll(x, -1, axis=0), x), kept)

    def _window(self, key: jax.Array, shape: Sequence[int]) -> jax.Array:
        """Which pixels of one picture are pasted over, bool (H, W)."""
        ratio_key, middle_key = jax.random.split(key)
        size = jnp.array(shape[:2])
        ratio = jax.random.beta(ratio_key, self.alpha, self.alpha)
        half = size * jnp.sqrt(1 - ratio) / 2
        middle = jax.random.uniform(middle_key, (2,)) * size
        return _inside(shape, middle - half, middle + half)


@dataclasses.dataclass(frozen=True)
class RandAugment:
    """`layers` random operations one after the other, all of one strength (Cubuk et al. 2020).

    The operations that move pixels or change light and colour are those of dm-pix, DeepMind's library.
    Of the paper's fourteen, equalize and sharpness are left out. Strengths at magnitude 10 are
    AutoAugment's (Cubuk et al. 2019, table 6); operations with two directions draw one.

    layers, magnitude: N and M of the paper, M from 0 (nothing moves) to 10.
    fill: what comes in from outside the picture.
    """

    layers: int = 2
    magnitude: float = 10.0
    fill: float = 128.0
    key: str = "image"

    def __post_init__(self):
        at_least("rand_augment: layers", self.layers, 1)
        if not 0 <= self.magnitude <= 10:
            raise UserError(f"rand_augment: magnitude is from 0 to 10, got {self.magnitude}")
        _dm_pix()

    def __call__(self, example: Example, key: jax.Array) -> Example:
        x = example[self.key]
        image = x.astype(jnp.float32) / 255
        for layer in range(self.layers):
            which_key, sign_key = jax.random.split(jax.random.fold_in(key, layer))
            strength = self.magnitude / 10 * jax.random.rademacher(sign_key, (), jnp.float32)
            which = jax.random.randint(which_key, (), 0, len(OPERATIONS))
            image = operate(image, which, strength, self.fill / 255)
        image = image * 255
        if jnp.issubdtype(x.dtype, jnp.integer):
            image = jnp.round(image)
        return {**example, self.key: image.astype(x.dtype)}


def operate(image: jax.Array, which: Any, strength: Any, fill: float) -> jax.Array:
    """Operation number `which` of `OPERATIONS` on a float image (H, W, C) in [0, 1].

    Under `vmap` all the branches of a choice are computed, so what moves pixels is one resampling
    with the matrix of the operation: that of `identity` for all that move none.
    """
    moves = [jnp.asarray(of(strength, image.shape), jnp.float32) for of in MOVES.values()]
    image = _moved(image, jnp.stack(moves)[jnp.minimum(which, len(moves) - 1)], fill)
    at = jnp.maximum(which - len(moves) + 1, 0)
    return jnp.clip(jax.lax.switch(at, tuple(VALUES.values()), image, strength), 0, 1)


def _moved(image: jax.Array, matrix: jax.Array, fill: float) -> jax.Array:
    """Reads each pixel elsewhere: `matrix` (2, 3) takes its row and column, seen from the middle."""
    linear = jnp.zeros((3, 3)).at[2, 2].set(1.0).at[:2, :2].set(matrix[:, :2])
    middle = (jnp.array(image.shape) - 1) / 2
    offset = middle - linear @ middle + jnp.append(matrix[:, 2], 0.0)
    return _dm_pix().affine_transform(image, linear, offset=offset, mode="constant", cval=fill)


def _rotation(strength: jax.Array, shape: Sequence[int]) -> Sequence:
    angle = strength * jnp.pi / 6
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    return [[cos, sin, 0], [-sin, cos, 0]]


def _posterize(image: jax.Array, strength: jax.Array) -> jax.Array:
    """Keeps the 8 - 4 |strength| highest bits."""
    step = 2 ** jnp.round(4 * jnp.abs(strength))
    return jnp.floor(jnp.round(image * 255) / step) * step / 255


def _auto_contrast(image: jax.Array, strength: jax.Array) -> jax.Array:
    """Each channel stretched to [0, 1]."""
    low = image.min(axis=(0, 1), keepdims=True)
    span = image.max(axis=(0, 1), keepdims=True) - low
    return jnp.where(span > 0, (image - low) / jnp.where(span > 0, span, 1), image)


def _saturation(image: jax.Array, strength: jax.Array) -> jax.Array:
    if image.shape[-1] != 3:
        return image
    return _dm_pix().adjust_saturation(image, 1 + 0.9 * strength)


# Strengths are in [-1, 1]. (strength, shape) -> where a pixel is read, as `_moved` takes it:
MOVES: dict[str, Callable[..., Sequence]] = {
    "rotate": _rotation,
    "shear_x": lambda s, shape: [[1, 0, 0], [0.3 * s, 1, 0]],
    "shear_y": lambda s, shape: [[1, 0.3 * s, 0], [0, 1, 0]],
    "translate_x": lambda s, shape: [[1, 0, 0], [0, 1, 0.45 * s * shape[1]]],
    "translate_y": lambda s, shape: [[1, 0, 0.45 * s * shape[0]], [0, 1, 0]],
    "identity": lambda s, shape: [[1, 0, 0], [0, 1, 0]],
}
# (image in [0, 1], strength) -> image, not clipped:
VALUES: dict[str, Callable[..., jax.Array]] = {
    "identity": lambda x, s: x,
    "brightness": lambda x, s: x * (1 + 0.9 * s),
    "contrast": lambda x, s: _dm_pix().adjust_contrast(x, 1 + 0.9 * s),
    "saturation": _saturation,
    "solarize": lambda x, s: _dm_pix().solarize(x, 1 - jnp.abs(s)),
    "posterize": _posterize,
    "auto_contrast": _auto_contrast,
}
OPERATIONS = (*MOVES, *tuple(VALUES)[1:])


def _dm_pix() -> Any:
    return needed("dm_pix", "rand_augment needs", "dm-pix")


def _resample(x: jax.Array, size: int, corner: Any, sides: Any) -> jax.Array:
    """The window of x (H, W, C) from `corner` (row, column) with `sides`, as (size, size, C)."""
    scale = size / jnp.asarray(sides, jnp.float32)
    move = -jnp.asarray(corner, jnp.float32) * scale
    return jax.image.scale_and_translate(
        x, (size, size, x.shape[2]), (0, 1), scale, move, method="linear", antialias=True
    )


def _window(
    key: jax.Array, shape: Sequence[int], scale: Sequence[float], ratio: Sequence[float]
) -> tuple[jax.Array, jax.Array]:
    """(corner, sides) of a random window, each float (2,): rows, columns."""
    area_key, ratio_key, corner_key = jax.random.split(key, 3)
    size = jnp.array(shape[:2], jnp.float32)
    area = jax.random.uniform(area_key, minval=scale[0], maxval=scale[1]) * size.prod()
    low, high = jnp.log(jnp.array(ratio, jnp.float32))
    shape_of_it = jnp.exp(jax.random.uniform(ratio_key, minval=low, maxval=high))
    sides = jnp.sqrt(area * jnp.array([1 / shape_of_it, shape_of_it]))
    sides = jnp.clip(sides, 1, size)
    return jax.random.uniform(corner_key, (2,)) * (size - sides), sides


def _inside(shape: Sequence[int], start: jax.Array, stop: jax.Array) -> jax.Array:
    """Which pixels have their middle between `start` and `stop` (row, column): bool (H, W)."""
    rows, columns = (jnp.arange(side) + 0.5 for side in shape[:2])
    rows = (start[0] <= rows) & (rows < stop[0])
    return rows[:, None] & (start[1] <= columns) & (columns < stop[1])


def _check_window(what: str, scale: Sequence[float], ratio: Sequence[float]) -> None:
    if len(scale) != 2 or not 0 < scale[0] <= scale[1] <= 1:
        raise UserError(f"{what}: scale is (smallest, largest) in (0, 1], got {tuple(scale)}")
    if len(ratio) != 2 or not 0 < ratio[0] <= ratio[1]:
        raise UserError(f"{what}: ratio is (smallest, largest) > 0, got {tuple(ratio)}")
