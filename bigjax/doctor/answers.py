"""Compiled float32 against NumPy in float64: products, reductions, convolutions, norms, loops, draws.

A new answer is one line in ANSWERS: what JAX computes, what NumPy computes, the inputs' shapes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bigjax.doctor.finding import Finding

TOLERANCE = 3e-5  # largest error over the largest value of the answer


def window_sums(x: np.ndarray, kernel: np.ndarray, stride: int) -> np.ndarray:
    """A convolution without padding, x (B, H, W, C), kernel (h, w, C, D), in NumPy."""
    windows = np.lib.stride_tricks.sliding_window_view(x, kernel.shape[:2], axis=(1, 2))
    return np.einsum("bijchw,hwcd->bijd", windows[:, ::stride, ::stride], kernel)


def gradient_of_sum(kernel: np.ndarray, x: np.ndarray) -> np.ndarray:
    """The gradient, by the kernel, of the sum of a convolution's outputs: sums of what each tap reads."""
    H, W = (x.shape[i + 1] - kernel.shape[i] + 1 for i in range(2))
    taps = [[x[:, i : i + H, j : j + W].sum((0, 1, 2)) for j in range(3)] for i in range(3)]
    return np.broadcast_to(np.array(taps)[..., None], kernel.shape)


def convolution(stride: int) -> Callable[..., jax.Array]:
    return lambda x, kernel: jax.lax.conv_general_dilated(
        x, kernel, (stride, stride), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


def layer_norm(np: Any) -> Callable[..., Any]:
    def normalise(x):
        centred = x - np.mean(x, axis=-1, keepdims=True)
        return centred / np.sqrt(np.mean(centred**2, axis=-1, keepdims=True) + 1e-6)

    return normalise


def softmax(x: np.ndarray) -> np.ndarray:
    powers = np.exp(x - x.max(axis=-1, keepdims=True))
    return powers / powers.sum(axis=-1, keepdims=True)


def loop(x: np.ndarray, W: np.ndarray) -> np.ndarray:
    h = np.zeros(x.shape[1:])
    for x_t in x:
        h = np.tanh(h @ W / 8 + x_t)
    return h


def scanned(x: jax.Array, W: jax.Array) -> jax.Array:
    step = lambda h, x_t: (jnp.tanh(jnp.matmul(h, W, precision="highest") / 8 + x_t), None)  # noqa: E731
    return jax.lax.scan(step, jnp.zeros(x.shape[1:]), x)[0]


def matmul(a: jax.Array, b: jax.Array) -> jax.Array:
    return jnp.matmul(a, b, precision="highest")


def row_sums(X: jax.Array, W: jax.Array) -> jax.Array:
    return jax.vmap(lambda r: jnp.sum(jnp.matmul(W, r, precision="highest") ** 2))(X)


ROW_SUMS = (row_sums, lambda X, W: np.sum((X @ W.T) ** 2, axis=1), [(40_000, 3), (3, 3)])
# name -> (in JAX, in NumPy, shapes of the standard normal inputs)
ANSWERS: dict[str, tuple[Callable[..., Any], Callable[..., Any], list[tuple[int, ...]]]] = {
    "sums of 40,000 products of 3 x 3": ROW_SUMS,  # jax issue 39103
    "product 257 x 129 x 65": (matmul, np.matmul, [(257, 129), (129, 65)]),
    "product 512 x 512 x 512": (matmul, np.matmul, [(512, 512), (512, 512)]),
    "products of a batch": (matmul, np.matmul, [(8, 33, 17), (8, 17, 9)]),
    "sum over rows of 3": (lambda x: jnp.sum(x**2, -1), lambda x: np.sum(x**2, -1), [(70_001, 3)]),
    "sum over 70,001 rows": (lambda x: jnp.sum(x, 0), lambda x: np.sum(x, 0), [(70_001, 3)]),
    "sum of a million": (lambda x: jnp.sum(x**2), lambda x: np.sum(x**2), [(1_000_003,)]),
    "largest and its place": (
        lambda x: jnp.max(x, -1) + jnp.argmax(x, -1),
        lambda x: np.max(x, -1) + np.argmax(x, -1),
        [(40_000, 5)],
    ),
    "running sum": (lambda x: jnp.cumsum(x, 0), lambda x: np.cumsum(x, 0), [(1000, 7)]),
    "standard deviation": (lambda x: jnp.std(x, 1), lambda x: np.std(x, 1), [(333, 129)]),
    "log of a sum of exponentials": (
        lambda x: jax.nn.logsumexp(x, -1),
        lambda x: np.log(np.sum(np.exp(x), -1)),
        [(40_000, 3)],
    ),
    "softmax": (jax.nn.softmax, softmax, [(512, 129)]),
    "layer norm": (layer_norm(jnp), layer_norm(np), [(512, 129)]),
    "convolution 3 x 3": (
        convolution(1),
        lambda x, k: window_sums(x, k, 1),
        [(4, 17, 15, 3), (3, 3, 3, 8)],
    ),
    "convolution 5 x 5, stride 2": (
        convolution(2),
        lambda x, k: window_sums(x, k, 2),
        [(2, 32, 32, 8), (5, 5, 8, 4)],
    ),
    "gradient of a convolution": (
        jax.grad(lambda k, x: jnp.sum(convolution(1)(x, k))),
        gradient_of_sum,
        [(3, 3, 3, 8), (4, 17, 15, 3)],
    ),
    "loop over time": (scanned, loop, [(50, 8, 16), (16, 16)]),
    "sorting": (lambda x: jnp.sort(x, -1), lambda x: np.sort(x, -1), [(100, 257)]),
}

# sha256 of the draws below. Bits are integers: the same on every device, and since JAX 0.5 by default.
DRAWS = "83d1b6f41edcaaf17e69ce7e47b05c4a619e5660a1825ec0212cdce083a59b53"


def known_answers() -> Iterator[Finding]:
    """Every line of ANSWERS, compiled."""
    for name in ANSWERS:
        yield check_answer(name)


def check_answer(name: str) -> Finding:
    """One line of ANSWERS against NumPy in float64."""
    ours, theirs, shapes = ANSWERS[name]
    rng = np.random.default_rng(0)
    inputs = [rng.standard_normal(shape).astype(np.float32) for shape in shapes]
    right = np.asarray(theirs(*(x.astype(np.float64) for x in inputs)))
    error = np.abs(np.float64(jax.jit(ours)(*inputs)) - right).max() / np.abs(right).max()
    if error <= TOLERANCE:
        return Finding(name, "ok", f"error {error:.0e}")
    return Finding(
        name,
        "wrong",
        f"off by {error:.1e} of the largest value, float64 says",
        "take another jaxlib, or the remedy that the table of versions names",
    )


def random_streams() -> Iterator[Finding]:
    """Keys split, folded and drawn give the bits that they gave where bigjax was tested."""
    found = drawn_hash()
    if found == DRAWS:
        yield Finding("random streams", "ok", f"bits {found[:12]}")
    else:
        yield Finding(
            "random streams", "wrong", f"bits {found[:12]}, not {DRAWS[:12]}",
            "a run is not repeated here: look for jax_threefry_partitionable or jax_default_prng_impl",
        )  # fmt: skip


def drawn_hash() -> str:
    """sha256 of raw bits and of what is made of them without rounding."""

    def draw(key):
        first, second = jax.random.split(key)
        return (
            jax.random.bits(first, (1000,), jnp.uint32),
            jax.random.randint(second, (77,), 0, 10),
            jax.random.permutation(jax.random.fold_in(key, 7), 100),
            jax.random.bernoulli(first, 0.3, (64, 3)),
        )

    digest = hashlib.sha256()
    for leaf in jax.device_get(jax.jit(draw)(jax.random.key(3))):
        digest.update(np.ascontiguousarray(leaf).astype(np.int64).tobytes())
    return digest.hexdigest()
