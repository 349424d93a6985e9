"""Images and pairs of texts over a length that is split: the numbers of one device, or a refusal."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bigjax.core import settings
from bigjax.core.errors import UserError
from bigjax.mesh.placement import vocabulary
from bigjax.mesh.sharding import activations, make_mesh
from bigjax.models.dit import DiT
from bigjax.models.t5 import T5
from bigjax.models.vit import ViT

RNG = np.random.default_rng(0)
B, SIZES = 2, dict(layers=2, width=8, heads=2)
IMAGES = RNG.standard_normal((B, 8, 8, 3)).astype(np.float32)
TEXTS = [RNG.integers(0, 9, (B, n)).astype(np.int32) for n in (8, 4)]
# Padding, and two texts in a row.
SEGMENTS = [np.array([[1] * n, [1] * (n // 4) + [2] * (n // 2) + [0] * (n // 4)]) for n in (8, 4)]
READ = (TEXTS[0], SEGMENTS[0], TEXTS[1], SEGMENTS[1])
PICTURE, NOISE = (IMAGES,), (IMAGES, np.array([0.2, 0.7], np.float32), np.array([1, -1]))

CASES = {  # model, inputs, mesh, sharding.sequence
    "vit, 17 tokens": (ViT(4, 8, 2, **SIZES), PICTURE, dict(sequence=4), "ring"),
    "vit, 16 tokens": (
        ViT(4, 8, 2, **SIZES, pool="map", scan_layers=True),
        PICTURE,
        dict(fsdp=2, sequence=2),
        "gather",
    ),
    "dit": (DiT(8, 2, 5, **SIZES, scan_layers=True), NOISE, dict(sequence=2, tensor=2), "ring"),
    "t5": (T5(9, **SIZES, scan_layers=True), READ, dict(fsdp=2, sequence=2), "gather"),
    "t5, sinusoidal": (T5(9, **SIZES, positions="sinusoidal"), READ, dict(sequence=4), "gather"),
}
ALWAYS = ("vit, 17 tokens",)


def laid(model, sizes, sequence):
    devices = jax.devices()[: int(np.prod([*sizes.values()]))]
    mesh = make_mesh(settings.Mesh(**{"data": 1, **sizes}), devices)
    options = settings.Sharding(sequence=sequence)
    return activations(mesh, vocabulary(model, options), options)


@pytest.mark.parametrize(
    "case",
    [case if case in ALWAYS else pytest.param(case, marks=pytest.mark.slow) for case in CASES],
)
def test_a_split_length_gives_the_numbers_and_gradients_of_one_device(case):
    model, inputs, sizes, sequence = CASES[case]
    shapes = jax.eval_shape(functools.partial(model.init, train=False), jax.random.key(0), *inputs)
    # Not as they are at first: DiT's gates would be 0.
    params = jax.tree.map(
        lambda x: (0.3 * RNG.standard_normal(x.shape)).astype(np.float32), nn.unbox(shapes)
    )

    def loss(params):
        out = model.apply(params, *inputs, train=True)
        return jnp.sum(jnp.sin(jnp.arange(out.size)).reshape(out.shape) * out), out

    step = jax.value_and_grad(loss, has_aux=True)
    with jax.default_matmul_precision("highest"):
        (_, expected), wanted = jax.jit(step)(params)
        (_, out), grads = jax.jit(laid(model, sizes, sequence)(step))(params)
    np.testing.assert_allclose(out, expected, rtol=1e-4, atol=1e-5)
    whole = np.sqrt(sum(np.sum(np.square(g)) for g in jax.tree.leaves(wanted)))
    for found, gradient in zip(jax.tree.leaves(grads), jax.tree.leaves(wanted), strict=True):
        error = np.linalg.norm(found - gradient)
        assert error <= 1e-5 * np.linalg.norm(gradient) + 1e-6 * whole


REFUSED = {
    "t5": (*CASES["t5"][:2], dict(sequence=2), "T5 takes 'gather'"),
    "dropout": (ViT(4, 8, 2, **SIZES, dropout=0.1), PICTURE, dict(sequence=2), "17 tokens are filled up to 18"),
    "dit": (DiT(8, 4, 5, **SIZES), NOISE, dict(sequence=8), "rows of 4 do not divide into 8 chunks"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_a_ring_cannot_do_is_refused_by_name(case):
    model, inputs, sizes, said = REFUSED[case]
    with laid(model, sizes, "ring"), pytest.raises(UserError, match=said):
        key = dict(params=jax.random.key(0), dropout=jax.random.key(0))
        jax.eval_shape(functools.partial(model.init, train=True), key, *inputs)
