"""ViT: patches, pooling and positions by hand; its parity with transformers is tested elsewhere."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bigjax.core.errors import UserError
from bigjax.core.precision import ModelInPrecision
from bigjax.core.rules import paths
from bigjax.core.settings import Precision
from bigjax.models.vit import ViT, patches, sines_and_cosines

X = np.random.default_rng(0).standard_normal((2, 8, 8, 3)).astype(np.float32)
SMALL = dict(outputs=3, image=8, patch=4, layers=1, width=8, heads=2)


def init(model, x=X):
    return nn.unbox(jax.jit(lambda: model.init(jax.random.key(0), x, train=False))())


def test_patches_are_the_windows_of_the_image():
    out = patches(jnp.asarray(X), 4)
    assert out.shape == (2, 2, 2, 48)
    for row, column in np.ndindex(2, 2):
        window = X[:, 4 * row : 4 * row + 4, 4 * column : 4 * column + 4]
        np.testing.assert_array_equal(out[:, row, column], window.reshape(2, 48))


def test_sines_and_cosines_tell_row_and_column():
    table = sines_and_cosines(3, 4, 16).reshape(3, 4, 4, 4)
    frequency = 10000.0 ** -np.array([0, 1 / 3, 2 / 3, 1])
    for row, column in np.ndindex(3, 4):
        expected = [
            np.sin(column * frequency),
            np.cos(column * frequency),
            np.sin(row * frequency),
            np.cos(row * frequency),
        ]
        np.testing.assert_allclose(table[row, column], expected, atol=1e-6)
    with pytest.raises(UserError, match="multiple of 4, not 6"):
        sines_and_cosines(2, 2, 6)


@pytest.mark.parametrize("pool", ["cls", "mean", "map"])
def test_every_pooling_sees_the_whole_image(pool):
    model = ViT(**SMALL, pool=pool, positions="sincos")
    variables = init(model)
    assert ("cls" in variables["params"]) == (pool == "cls")
    assert "positions" not in variables["params"]
    # Else the first layers see only the head's small weights.
    variables = jax.tree.map(lambda p: p * 5 if p.ndim > 1 else p, variables)
    gradient = jax.jit(jax.grad(lambda x: model.apply(variables, x, train=False)[:, 0].sum()))(
        jnp.asarray(X)
    )
    assert (np.abs(patches(gradient, 4)).max(axis=-1) > 0).all()


def test_dropout_acts_in_training_only():
    model = ViT(**SMALL, dropout=0.5)
    variables = init(model)

    @functools.partial(jax.jit, static_argnums=1)
    def logits(key, train):
        return model.apply(variables, X, train=train, rngs={"dropout": key})

    one, two = jax.random.split(jax.random.key(1))
    np.testing.assert_array_equal(logits(one, False), logits(two, False))
    assert not np.allclose(logits(one, True), logits(two, True))


@pytest.mark.slow
def test_remat_and_scan_change_no_gradient():
    plain, levers = (
        ViT(**{**SMALL, "layers": 2}, remat=r, scan_layers=s)
        for r, s in (("none", False), ("full", True))
    )
    params = init(plain)["params"]
    blocks = [params.pop(f"block_{i}") for i in range(2)]
    stacked = {**params, "blocks": jax.tree.map(lambda *x: jnp.stack(x), *blocks)}

    def gradient(model, params):
        loss = lambda p: jnp.sum(model.apply({"params": p}, X, train=False) ** 2)  # noqa: E731
        return jax.jit(jax.grad(loss))(params)

    got = gradient(levers, stacked)
    expected = gradient(plain, {**params, "block_0": blocks[0], "block_1": blocks[1]})
    for path, leaf in paths(got).items():
        parts = [expected_leaf(expected, path.replace("blocks", f"block_{i}")) for i in range(2)]
        whole = np.stack(parts) if "blocks" in path else parts[0]
        np.testing.assert_allclose(leaf, whole, rtol=1e-4, atol=1e-6, err_msg=path)


def expected_leaf(tree, path):
    return paths(tree)[path]


def test_low_precision_compute_keeps_logits_in_float32():
    model = ViT(**SMALL, pool="map")
    applied = ModelInPrecision(model, Precision("bfloat16"))
    logits = jax.eval_shape(lambda: applied.apply(init(model), X, train=False))
    assert logits.shape == (2, 3) and logits.dtype == jnp.float32


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(image=12), "model.image: 12 pixels; the images of the data are 8x8"),
        (dict(patch=3), "images of 8x8 do not divide into patches of 3"),
        (dict(heads=3), "3 heads do not share width 8"),
        (dict(pool="max"), "model.pool: unknown 'max'"),
        (dict(positions="none"), "model.positions: unknown 'none'"),
        (dict(pool="mean", distillation=True), "goes with model.pool 'cls'"),
    ],
)
def test_what_does_not_fit_is_the_users_error(changes, message):
    with pytest.raises(UserError, match=message):
        jax.eval_shape(lambda: init(ViT(**{**SMALL, **changes})))
