"""Transforms of examples that come with bigjax: images and columns. Pure; `core/transforms.py` applies them.

A transform is a function (example, key) -> example. Per-example transforms see one example without a
batch axis; those with `batch_level = True` see the whole batch. A transform with `fit(source)` is
replaced by what that returns for the train split.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from bigjax.core.errors import UserError
from bigjax.core.transforms import Example, example_keys
from bigjax.data.moments import Moments
from bigjax.data.sources import Source


@dataclasses.dataclass(frozen=True)
class Normalize:
    """x -> (x / scale - mean) / std, in float32; mean and std one number or one per channel (last)."""

    mean: float | Sequence[float] = 0.0
    std: float | Sequence[float] = 1.0
    scale: float = 1.0
    key: str = "image"

    def __post_init__(self):
        if self.scale <= 0 or np.any(np.asarray(self.std) <= 0):
            raise UserError(f"normalize: scale and std must be > 0, got {self.scale}, {self.std}")

    def __call__(self, example: Example, key: jax.Array) -> Example:
        x = example[self.key].astype(jnp.float32) / self.scale
        mean, std = np.asarray(self.mean, np.float64), np.asarray(self.std, np.float64)
        x = (x - jnp.asarray(mean, jnp.float32)) / jnp.asarray(std, jnp.float32)
        # Of a mean far larger than the deviation, what float32 cut off counts. It is subtracted after
        # the division, because XLA makes one of two subtractions of constants in a row.
        rest = (mean - mean.astype(np.float32)) / std
        rest = np.where(np.abs(rest) > 1e-4, rest, 0.0)
        x = x - jnp.asarray(rest, jnp.float32) if rest.any() else x
        return {**example, self.key: x}

    def inverse(self, x: np.ndarray) -> np.ndarray:
        """The values that this transform makes `x` of."""
        return (x * np.asarray(self.std) + np.asarray(self.mean)) * self.scale


@dataclasses.dataclass(frozen=True)
class Standardize:
    """Each column to mean 0 and deviation 1 over the training split; constant columns to 0."""

    key: str = "features"

    def fit(self, source: Source) -> Normalize:
        """Reads the whole split once; statistics (population deviation) in float64."""
        moments = Moments()
        for start in range(0, len(source), 8192):
            moments.add(source.read(np.arange(start, min(start + 8192, len(source))))[self.key])
        std = np.where(moments.std > 0, moments.std, 1.0)
        return Normalize(tuple(moments.mean.tolist()), tuple(std.tolist()), key=self.key)


@dataclasses.dataclass(frozen=True)
class Flatten:
    """Any shape -> one axis."""

    key: str = "image"

    def __call__(self, example: Example, key: jax.Array) -> Example:
        return {**example, self.key: example[self.key].reshape(-1)}


@dataclasses.dataclass(frozen=True)
class OneHot:
    """An integer label -> float32 probabilities (num_classes,)."""

    num_classes: int
    key: str = "label"

    def __post_init__(self):
        at_least("one_hot: num_classes", self.num_classes, 1)

    def __call__(self, example: Example, key: jax.Array) -> Example:
        return {**example, self.key: jax.nn.one_hot(example[self.key], self.num_classes)}


@dataclasses.dataclass(frozen=True)
class RandomCrop:
    """Pads the image (H, W, C) with zeros and crops size x size at a random place.

    `size` defaults to the height and width of the image.
    """

    padding: int
    size: int | None = None
    key: str = "image"

    def __post_init__(self):
        at_least("random_crop: padding", self.padding, 0)
        if self.size is not None:
            at_least("random_crop: size", self.size, 1)

    def __call__(self, example: Example, key: jax.Array) -> Example:
        x = example[self.key]
        height, width, channels = x.shape
        crop = (self.size or height, self.size or width, channels)
        x = jnp.pad(x, ((self.padding, self.padding), (self.padding, self.padding), (0, 0)))
        if crop[0] > x.shape[0] or crop[1] > x.shape[1]:
            raise UserError(f"random_crop: size {self.size} exceeds the padded image {x.shape[:2]}")
        room = jnp.array([x.shape[0] - crop[0], x.shape[1] - crop[1]])
        top, left = jax.random.randint(key, (2,), 0, room + 1)
        return {**example, self.key: jax.lax.dynamic_slice(x, (top, left, 0), crop)}


@dataclasses.dataclass(frozen=True)
class Shift:
    """Moves the image (H, W, C) by up to `pixels` each way; zeros come in at the border."""

    pixels: int
    key: str = "image"

    def __post_init__(self):
        at_least("shift: pixels", self.pixels, 0)

    def __call__(self, example: Example, key: jax.Array) -> Example:
        return RandomCrop(padding=self.pixels, key=self.key)(example, key)


@dataclasses.dataclass(frozen=True)
class Flip:
    """Mirrors the image (H, W, C) left to right with probability `p`."""

    p: float = 0.5
    key: str = "image"

    def __post_init__(self):
        if not 0 <= self.p <= 1:
            raise UserError(f"flip: p must be in [0, 1], got {self.p}")

    def __call__(self, example: Example, key: jax.Array) -> Example:
        x = example[self.key]
        flipped = jnp.where(jax.random.bernoulli(key, self.p), x[:, ::-1], x)
        return {**example, self.key: flipped}


@dataclasses.dataclass(frozen=True)
class Mixing:
    """What `Mixup` and `augment.CutMix` share: pairs of neighbours in the batch, labels as probabilities."""

    alpha: float
    num_classes: int
    key: str = "image"
    label: str = "label"
    batch_level: ClassVar[bool] = True

    def __post_init__(self):
        name = type(self).__name__.lower()
        if self.alpha <= 0:
            raise UserError(f"{name}: alpha must be > 0, got {self.alpha}")
        at_least(f"{name}: num_classes", self.num_classes, 1)

    def mixed(self, batch: Example, x: jax.Array, ratio: jax.Array) -> Example:
        """The batch with inputs `x`, and of each label the share `ratio` (B,), the neighbour's the rest."""
        label = batch[self.label]
        if label.ndim == 1:
            label = jax.nn.one_hot(label, self.num_classes)
        return {**batch, self.key: x, self.label: of_both(label, ratio)}


def of_both(x: jax.Array, ratio: jax.Array) -> jax.Array:
    """r x_i + (1 - r) x_{i+1}, with one r (B,) for each example."""
    r = ratio.reshape(-1, *[1] * (x.ndim - 1))
    return r * x + (1 - r) * jnp.roll(x, -1, axis=0)


@dataclasses.dataclass(frozen=True)
class Mixup(Mixing):
    """Mixes each example with its neighbour in the batch (Zhang et al. 2018, eq. 1).

    x_i <- r x_i + (1 - r) x_{i+1}, labels likewise as probabilities, with r ~ Beta(alpha, alpha)
    drawn for each example from its own key. A masked example is never mixed in.
    """

    def __call__(self, batch: Example, key: jax.Array) -> Example:
        keys = example_keys(batch, key)
        ratio = jax.vmap(lambda k: jax.random.beta(k, self.alpha, self.alpha))(keys)
        ratio = jnp.where(jnp.roll(batch["mask"], -1) > 0, ratio, 1.0)
        return self.mixed(batch, of_both(batch[self.key].astype(jnp.float32), ratio), ratio)


def at_least(what: str, value: int, minimum: int) -> None:
    if value < minimum:
        raise UserError(f"{what} must be >= {minimum}, got {value}")
