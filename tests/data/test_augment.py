"""Transforms of pictures against Pillow, NumPy and hand computation."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from bigjax.core.errors import UserError
from bigjax.core.transforms import apply_transforms
from bigjax.data import augment as a
from bigjax.data.transforms import Flip, Normalize

KEY = jax.random.key(0)
RNG = np.random.default_rng(0)
IMAGE = RNG.integers(0, 256, (20, 30, 3)).astype(np.uint8)


def pillow(image, size, box=None):
    """Bilinear, per channel in floating point, so that nothing is rounded."""
    channels = [
        Image.fromarray(image[..., c].astype(np.float32), "F").resize(
            (size, size), Image.Resampling.BILINEAR, box=box
        )
        for c in range(image.shape[-1])
    ]
    return np.stack(channels, axis=-1)


def batch_of(count, shape=(12, 10, 3)):
    images = np.stack([np.random.default_rng(i).integers(1, 256, shape) for i in range(count)])
    return {
        "image": jnp.asarray(images, jnp.uint8),
        "label": jnp.arange(count, dtype=jnp.int32) % 4,
        "mask": jnp.ones(count, jnp.float32),
        "sample": jnp.arange(count, dtype=jnp.int32),
        "epoch": jnp.zeros(count, jnp.int32),
    }


@pytest.mark.parametrize("size", [7, 25, 64])
def test_resize_is_pillows_bilinear(size):
    out = a.Resize(size)({"image": IMAGE}, KEY)["image"]
    np.testing.assert_allclose(out, pillow(IMAGE, size), atol=2e-3)


def test_center_crop_is_the_middle():
    out = a.CenterCrop(10)({"image": IMAGE}, KEY)["image"]
    np.testing.assert_array_equal(out, IMAGE[5:15, 10:20])
    with pytest.raises(UserError, match="center_crop: size 21 exceeds"):
        a.CenterCrop(21)({"image": IMAGE}, KEY)


def test_a_random_resized_crop_is_pillows_resize_of_its_window():
    crop = a.RandomResizedCrop(9, scale=(0.2, 0.8))
    out = jax.jit(jax.vmap(lambda k: crop({"image": IMAGE}, k)["image"]))(jax.random.split(KEY, 8))
    for key, image in zip(jax.random.split(KEY, 8), out, strict=True):
        corner, sides = (np.float64(x) for x in a._window(key, IMAGE.shape, (0.2, 0.8), crop.ratio))
        (top, left), (height, width) = corner, sides
        box = (left, top, min(left + width, 30), min(top + height, 20))
        np.testing.assert_allclose(image, pillow(IMAGE, 9, box), atol=2e-2)


def test_windows_have_the_areas_and_shapes_asked_for():
    keys = jax.random.split(KEY, 2000)
    drawn = jax.vmap(lambda k: a._window(k, (100, 100), (0.1, 0.3), (0.5, 2.0)))
    corner, sides = map(np.asarray, jax.jit(drawn)(keys))
    area, shape = np.prod(sides, axis=1) / 1e4, np.asarray(sides[:, 1] / sides[:, 0])
    assert 0.0999 < area.min() < 0.11 and 0.29 < area.max() < 0.3001
    assert 0.499 < shape.min() < 0.51 and 1.95 < shape.max() < 2.001
    assert abs(np.mean(shape < 1) - 0.5) < 0.04  # even in the logarithm
    assert corner.min() >= 0 and (corner + sides).max() <= 100.001
    assert ((corner < 1).any(axis=0) & (corner + sides > 99).any(axis=0)).all()


def test_random_erasing_sets_one_window_of_some_pictures():
    batch = batch_of(200)
    erase = a.RandomErasing(p=0.5, scale=(0.1, 0.4), value=0.0)
    erased = jax.jit(lambda batch: apply_transforms((erase,), batch, KEY)["image"])
    out = np.asarray(erased(batch))
    assert out.dtype == np.uint8
    gone = (out == 0).all(axis=-1)
    assert 0.4 < gone.any(axis=(1, 2)).mean() < 0.6
    for image, before, mask in zip(out, np.asarray(batch["image"]), gone, strict=True):
        np.testing.assert_array_equal(image, np.where(mask[..., None], 0, before))
        rows, columns = mask.any(axis=1), mask.any(axis=0)
        np.testing.assert_array_equal(mask, rows[:, None] & columns)  # a rectangle
    areas = gone.mean(axis=(1, 2))[gone.any(axis=(1, 2))]
    assert abs(areas.mean() - 0.25) < 0.03


def test_cutmix_pastes_a_window_and_mixes_the_label_by_its_area():
    batch = batch_of(32)
    batch["mask"] = batch["mask"].at[31].set(0)
    mix = a.CutMix(alpha=1.0, num_classes=4)
    out = jax.jit(lambda b: apply_transforms((mix,), b, KEY))(batch)
    x, labels = np.asarray(batch["image"]), np.eye(4)[np.asarray(batch["label"])]
    areas = []
    for i, image in enumerate(np.asarray(out["image"])):
        neighbour = (i + 1) % 32
        pasted = (image != x[i]).any(axis=-1)
        np.testing.assert_array_equal(image[pasted], x[neighbour][pasted])
        rows, columns = pasted.any(axis=1), pasted.any(axis=0)
        area = rows.sum() * columns.sum() / 120
        expected = (1 - area) * labels[i] + area * labels[neighbour]
        np.testing.assert_allclose(out["label"][i], expected, atol=1e-6)
        areas.append(area)
    assert areas[30] == 0  # its neighbour is padding
    # E[1 - r] is 1/2; the border cuts off some of the window.
    assert 0.2 < np.mean(areas) < 0.5 and np.max(areas) > 0.4


# RandAugment's operations.


@jax.jit
def operate(x, which, strength):
    return a.operate(x, which, strength, fill=0.5)


def operation(name, image, strength):
    x = jnp.asarray(image, jnp.float32) / 255
    return np.asarray(operate(x, a.OPERATIONS.index(name), jnp.float32(strength))) * 255


def test_geometric_operations_equal_pillows():
    image = np.asarray(
        Image.fromarray(RNG.integers(0, 256, (5, 5)).astype(np.uint8)).resize((40, 40))
    )[..., None].astype(np.float32)

    def affine(*numbers):
        picture = Image.fromarray(image[..., 0], "F")
        return np.asarray(
            picture.transform((40, 40), Image.Transform.AFFINE, numbers, Image.Resampling.BILINEAR)
        )

    inner = (slice(14, 26), slice(14, 26), 0)  # away from what comes in
    middle = 20  # Pillow counts from the corner of pixel 0
    for strength in (-0.7, 0.4):
        s, c = np.sin(strength * np.pi / 6), np.cos(strength * np.pi / 6)
        shear = 0.3 * strength
        cases = {
            "rotate": (
                c,
                -s,
                middle - c * middle + s * middle,
                s,
                c,
                middle - s * middle - c * middle,
            ),
            "shear_x": (1, shear, -shear * middle, 0, 1, 0),
            "shear_y": (1, 0, 0, shear, 1, -shear * middle),
            "translate_x": (1, 0, 0.45 * strength * 40, 0, 1, 0),
            "translate_y": (1, 0, 0, 0, 1, 0.45 * strength * 40),
        }
        for name, numbers in cases.items():
            got = operation(name, image, strength)
            expected = affine(*numbers)[..., None]
            if name == "rotate":  # the sense of a turn is drawn with its sign
                s = -s
                back = (
                    c,
                    -s,
                    middle - c * middle + s * middle,
                    s,
                    c,
                    middle - s * middle - c * middle,
                )
                both = [np.abs(got - affine(*n)[..., None])[inner].max() for n in (numbers, back)]
                assert min(both) < 0.5, both
            else:
                np.testing.assert_allclose(got[inner], expected[inner], atol=0.5, err_msg=name)


def test_what_comes_in_from_outside_is_the_fill():
    moved = operation("translate_x", np.zeros((10, 10, 3), np.uint8), 1.0)
    np.testing.assert_allclose(moved[:, 6:], 127.5)
    np.testing.assert_allclose(moved[:, :5], 0)


def test_operations_on_values_equal_hand_computation():
    x = IMAGE.astype(np.float64)
    mean = x.mean(axis=(0, 1))
    low, high = x.min(axis=(0, 1)), x.max(axis=(0, 1))
    expected = {
        "identity": x,
        "brightness": np.clip(x * (1 + 0.9 * 0.5), 0, 255),
        "contrast": np.clip(mean + (1 + 0.9 * 0.5) * (x - mean), 0, 255),
        "solarize": np.where(x / 255 < 0.5, x, 255 - x),
        "posterize": x // 4 * 4,
        "auto_contrast": (x - low) / (high - low) * 255,
    }
    for name, value in expected.items():
        np.testing.assert_allclose(operation(name, IMAGE, 0.5), value, atol=1e-2, err_msg=name)


def test_saturation_scales_that_of_hsv_and_leaves_grey_alone():
    from colorsys import hsv_to_rgb, rgb_to_hsv

    got = operation("saturation", IMAGE, -0.5)
    for pixel, out in zip(IMAGE.reshape(-1, 3)[:50], got.reshape(-1, 3)[:50], strict=True):
        hue, saturation, value = rgb_to_hsv(*(pixel / 255))
        np.testing.assert_allclose(out / 255, hsv_to_rgb(hue, saturation * 0.55, value), atol=1e-4)
    grey = IMAGE[..., :1]
    np.testing.assert_allclose(operation("saturation", grey, 1.0), grey, atol=1e-4)


def test_rand_augment_draws_every_operation_and_keeps_dtype_and_range():
    batch = batch_of(200)
    augment = jax.jit(lambda b: apply_transforms((a.RandAugment(layers=1),), b, KEY)["image"])
    out = augment(batch)
    assert out.dtype == jnp.uint8 and out.shape == batch["image"].shape
    same = np.asarray((out == batch["image"]).all(axis=(1, 2, 3)))
    assert 0.03 < same.mean() < 0.16  # identity, one in twelve
    filled = np.asarray((out == 128).all(axis=-1).mean(axis=(1, 2)) > 0.05)
    assert 0.25 < filled.mean() < 0.58  # what moves pixels, five in twelve


def test_an_example_is_transformed_alike_in_any_batch():
    chain = (
        a.RandomResizedCrop(8),
        Flip(),
        a.RandAugment(layers=1),
        a.RandomErasing(p=1.0),
        Normalize(scale=255.0),
    )
    apply = jax.jit(lambda batch: apply_transforms(chain, batch, KEY)["image"])
    whole = apply(batch_of(6))
    rows = np.array([4, 1, 0, 2, 5, 3])
    some = apply({key: value[rows] for key, value in batch_of(6).items()})
    np.testing.assert_allclose(some, whole[rows], atol=1e-6)
    other_epoch = apply({**batch_of(6), "epoch": jnp.ones(6, jnp.int32)})
    assert not np.allclose(other_epoch, whole)


@pytest.mark.parametrize(
    "make",
    [
        lambda: a.Resize(0),
        lambda: a.CenterCrop(0),
        lambda: a.RandomResizedCrop(8, scale=(0.5, 0.2)),
        lambda: a.RandomResizedCrop(8, scale=(0.0, 1.0)),
        lambda: a.RandomErasing(p=2.0),
        lambda: a.RandomErasing(ratio=(0.0, 1.0)),
        lambda: a.CutMix(alpha=0.0, num_classes=4),
        lambda: a.RandAugment(magnitude=11),
        lambda: a.RandAugment(layers=0),
    ],
)
def test_values_out_of_range_are_refused(make):
    with pytest.raises(UserError):
        make()
