"""Transforms: right numbers, and the same for an example whatever batch it is in."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bigjax.core.errors import UserError
from bigjax.core.transforms import apply_transforms
from bigjax.data import transforms as t
from bigjax.data.sources import Arrays

KEY = jax.random.key(0)


def batch_of(samples, epoch=0, shape=(6, 5, 2)):
    samples = np.asarray(samples)
    images = np.stack([np.random.default_rng(s).integers(1, 256, shape) for s in samples])
    return {
        "image": jnp.asarray(images, jnp.uint8),
        "label": jnp.asarray(samples % 3, jnp.int32),
        "mask": jnp.ones(len(samples), jnp.float32),
        "sample": jnp.asarray(samples, jnp.int32),
        "epoch": jnp.full(len(samples), epoch, jnp.int32),
    }


RANDOM = (t.Shift(pixels=2), t.Flip(), t.RandomCrop(padding=1, size=4))


@pytest.mark.parametrize("jit", [False, True])
def test_an_example_is_transformed_alike_in_any_batch(jit):
    def apply(batch):
        return apply_transforms(RANDOM, batch, KEY)

    apply = jax.jit(apply) if jit else apply
    whole = apply(batch_of(range(12)))
    parts = ([3], [11, 3, 0], list(range(12))[::-1])
    for part in parts if jit else parts[2:]:  # a batch of another size compiles anew, op by op
        some = apply(batch_of(part))
        assert np.array_equal(some["image"], whole["image"][np.array(part)])


def test_a_new_epoch_a_new_key_or_another_place_in_the_chain_draws_anew():
    def images(epoch=0, key=KEY, transforms=RANDOM):
        return apply_transforms(transforms, batch_of(range(16), epoch), key)["image"]

    assert np.array_equal(images(), images())
    assert not np.array_equal(images(), images(epoch=1))
    assert not np.array_equal(images(), images(key=jax.random.key(1)))
    twice = images(transforms=(t.Flip(), t.Flip()))
    assert not np.array_equal(twice, batch_of(range(16))["image"])  # else the two flips cancel


def test_normalize_turns_bytes_into_float32():
    batch = batch_of(range(4))
    image = np.asarray(batch["image"], np.float64)
    out = apply_transforms((t.Normalize(mean=(0.5, 0.2), std=(0.1, 2), scale=255),), batch, KEY)
    assert out["image"].dtype == jnp.float32
    expected = (image / 255 - [0.5, 0.2]) / [0.1, 2]
    assert np.allclose(out["image"], expected, rtol=1e-5, atol=1e-6)


def test_standardize_takes_its_numbers_from_the_training_split():
    x = np.random.default_rng(0).normal(5e3, [1.0, 40.0, 1e-3], (20_000, 3))
    x = np.concatenate([x, np.full((20_000, 1), 7.0)], 1).astype(np.float32)
    fitted = t.Standardize().fit(Arrays({"features": x}))
    assert isinstance(fitted, t.Normalize)
    assert np.allclose(fitted.mean, x.astype(np.float64).mean(0), rtol=1e-12)
    assert np.allclose(fitted.std[:2], x[:, :2].astype(np.float64).std(0), rtol=1e-6)
    out = fitted({"features": jnp.asarray(x[0])}, KEY)["features"]
    assert out[3] == 0 and np.all(np.isfinite(out))


@pytest.mark.parametrize("spread", [347.0, 3e4, 0.0])
def test_standardize_follows_scikit_learn_far_from_zero(spread):
    """Unix seconds: the deviation is a 5-millionth of the mean; a constant column is one of rounding."""
    from sklearn.preprocessing import StandardScaler

    x = np.random.default_rng(0).normal(1.7e9, spread, (20_000, 1)).astype(np.float32)
    expected = StandardScaler().fit(x.astype(np.float64))
    fitted = t.Standardize().fit(Arrays({"features": x}))
    np.testing.assert_allclose(fitted.std, expected.scale_, rtol=1e-9)
    ours = jax.jit(jax.vmap(lambda row: fitted({"features": row}, KEY)["features"]))(x)
    np.testing.assert_allclose(ours, expected.transform(x.astype(np.float64)), atol=2e-6)
    assert np.asarray(ours).std() == pytest.approx(1.0 if spread else 0.0, abs=1e-4)


def test_flatten_and_one_hot():
    out = apply_transforms((t.Flatten(), t.OneHot(num_classes=3)), batch_of(range(4)), KEY)
    assert out["image"].shape == (4, 60)
    assert out["label"].tolist() == np.eye(3)[[0, 1, 2, 0]].tolist()


def test_a_crop_is_a_window_of_the_padded_image_and_every_place_occurs():
    batch = batch_of([4] * 400)
    batch["sample"] = jnp.arange(400)
    image = np.pad(batch["image"][0], ((1, 1), (1, 1), (0, 0)))
    out = np.asarray(apply_transforms((t.RandomCrop(padding=1, size=4),), batch, KEY)["image"])
    windows = {
        image[top : top + 4, left : left + 4].tobytes() for top in range(5) for left in range(4)
    }
    assert out.shape == (400, 4, 4, 2)
    assert {crop.tobytes() for crop in out} == windows


def test_shift_moves_and_fills_with_zeros():
    batch = batch_of(range(200))
    out = np.asarray(apply_transforms((t.Shift(pixels=1),), batch, KEY)["image"])
    assert out.shape == batch["image"].shape
    blank_top = np.all(out[:, 0] == 0, axis=(1, 2)).mean()
    assert 0.2 < blank_top < 0.46  # one third; the images hold no zeros


def test_flip_mirrors_about_half_of_the_images():
    batch = batch_of(range(300))
    image = np.asarray(batch["image"])
    out = np.asarray(apply_transforms((t.Flip(),), batch, KEY)["image"])
    flipped = np.all(out == image[:, :, ::-1], axis=(1, 2, 3))
    assert np.all(flipped | np.all(out == image, axis=(1, 2, 3)))
    assert 0.4 < flipped.mean() < 0.6
    always = apply_transforms((t.Flip(p=1.0),), batch, KEY)["image"]
    assert np.array_equal(always, image[:, :, ::-1])


def test_mixup_mixes_images_and_labels_by_the_same_ratio():
    batch = batch_of(range(8))
    batch["mask"] = batch["mask"].at[7].set(0)
    mix = t.Mixup(alpha=1.0, num_classes=3)
    out = jax.jit(lambda b: apply_transforms((mix,), b, KEY))(batch)
    x, labels = np.asarray(batch["image"], np.float64), np.eye(3)[np.asarray(batch["label"])]
    ratios = []
    for i in range(8):
        j = (i + 1) % 8
        ratio = np.mean((out["image"][i] - x[j])[x[i] != x[j]] / (x[i] - x[j])[x[i] != x[j]])
        ratios.append(float(ratio))
        assert np.allclose(out["label"][i], ratio * labels[i] + (1 - ratio) * labels[j], atol=1e-4)
    assert len({round(ratio, 3) for ratio in ratios}) > 4
    assert abs(ratios[6] - 1) < 1e-4  # its neighbour is padding


@pytest.mark.parametrize(
    "make",
    [
        lambda: t.Normalize(scale=0.0),
        lambda: t.Normalize(std=(1.0, 0.0)),
        lambda: t.Shift(pixels=-1),
        lambda: t.Flip(p=1.5),
        lambda: t.RandomCrop(padding=1, size=0),
        lambda: t.OneHot(num_classes=0),
        lambda: t.Mixup(alpha=0.0, num_classes=3),
        lambda: apply_transforms((t.RandomCrop(padding=0, size=9),), batch_of([1]), KEY),
    ],
)
def test_values_out_of_range_are_refused(make):
    with pytest.raises(UserError):
        make()
