"""Ring attention: against softmax(q k') v in float64, its bytes against the formula, its order by hand."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bigjax.core import layout, settings
from bigjax.core.errors import UserError
from bigjax.mesh.placement import Vocabulary
from bigjax.mesh.sharding import activations, make_mesh
from bigjax.models import ring
from bigjax.plan.collectives import of_program
from tests.collectives import by_kind

B, T, N, K, H = 2, 16, 4, 2, 4
RNG = np.random.default_rng(0)
Q, KEYS, VALUES, WEIGHTS = (RNG.normal(size=(B, T, n, H)) for n in (N, K, K, N))
# Documents that end inside chunks, padding behind them, and a row that is one document.
SEGMENTS = np.array([[1] * 3 + [2] * 6 + [3] * 4 + [0] * 3, [1] * T], np.int32)
HEADS = Vocabulary(logical=(("heads", "tensor"), ("kv_heads", "tensor")))


def on(**sizes):
    mesh = make_mesh(
        settings.Mesh(**{"data": 1, **sizes}), jax.devices()[: np.prod([*sizes.values()])]
    )
    return activations(mesh, HEADS, settings.Sharding())


def expected(q, k, v, causal, segments, window, softcap):
    """Row by row in float64: 0 for a query that sees no key."""
    k, v = (np.repeat(x, N // K, axis=2) for x in (k, v))
    scores = np.einsum("btnh,bsnh->bnts", q, k) / np.sqrt(H)
    scores = softcap * np.tanh(scores / softcap) if softcap else scores
    behind = np.arange(T)[:, None] - np.arange(T)
    seen = (behind >= 0) if causal else np.ones((T, T), bool)
    away = behind if causal else abs(behind)
    seen = seen & (away < window) if window else seen
    seen = np.broadcast_to(seen, (B, T, T))
    if segments is not None:
        seen = seen & (segments[:, :, None] == segments[:, None]) & (segments[:, None] > 0)
    weights = np.exp(scores) * seen[:, None]
    total = weights.sum(-1, keepdims=True)
    return np.einsum("bnts,bsnh->btnh", weights / np.where(total == 0, 1, total), v)


def ringed(q, k, v, segments, window, causal, softcap):
    """In plain order outside, as models have it."""
    order, back = (ring.zigzag, ring.unzigzag) if causal else (lambda x: x, lambda x: x)
    segments = segments if segments is None else order(segments)
    out = ring.ring_attend(
        order(q),
        order(k),
        order(v),
        causal=causal,
        query_segments=segments,
        key_segments=segments,
        window=window,
        softcap=softcap,
    )
    return back(out)


@pytest.mark.parametrize(
    ("sizes", "causal", "segments", "window", "softcap"),
    [
        (dict(sequence=4, tensor=2), True, SEGMENTS, 5, 2.0),
        pytest.param(dict(sequence=2), True, None, None, None, marks=pytest.mark.slow),
        pytest.param(dict(sequence=8), False, SEGMENTS, 4, None, marks=pytest.mark.slow),
    ],
)
def test_numbers_and_gradients_are_those_of_the_equation(sizes, causal, segments, window, softcap):
    arrays = [x.astype(np.float32) for x in (Q, KEYS, VALUES)]
    options = dict(causal=causal, softcap=softcap)

    def loss(q, k, v, segments, window):
        out = ringed(q, k, v, segments, window, **options)
        return jnp.sum(out * WEIGHTS.astype(np.float32)), out

    laid = on(**sizes)
    near = None if window is None else jnp.int32(window)  # traced, as layers hand it
    with jax.default_matmul_precision("highest"):
        step = jax.jit(laid(jax.grad(loss, argnums=(0, 1, 2), has_aux=True)))
        grads, out = jax.device_get(step(*arrays, segments, near))
    truth = functools.partial(
        expected, causal=causal, segments=segments, window=window, softcap=softcap
    )
    np.testing.assert_allclose(out, truth(Q, KEYS, VALUES), rtol=1e-5, atol=1e-6)
    wanted = [Q, KEYS, VALUES]
    for number, grad in enumerate(grads):  # along one direction, by differences in float64
        along = RNG.normal(size=grad.shape)
        ends = []
        for step in (1e-6, -1e-6):
            moved = [x + step * along if i == number else x for i, x in enumerate(wanted)]
            ends.append(np.sum(truth(*moved) * WEIGHTS))
        slope = (ends[0] - ends[1]) / 2e-6
        assert np.sum(grad * along) == pytest.approx(slope, rel=1e-4, abs=1e-4)


def test_zigzag_gives_each_device_an_early_and_a_late_chunk_and_back():
    laid = on(sequence=4)
    order = jax.jit(laid(ring.zigzag))(np.arange(8).repeat(2)[None])
    np.testing.assert_array_equal(order[0, ::2], [0, 7, 1, 6, 2, 5, 3, 4])
    both = jax.jit(laid(lambda x: ring.unzigzag(ring.zigzag(x))))(np.arange(16)[None])
    np.testing.assert_array_equal(both[0], np.arange(16))


def test_bytes_that_go_round_are_those_of_the_formula():
    """Forward n - 1 times keys and values; backward as often, and their float32 gradients n times."""
    n = 4
    laid = on(sequence=n)
    q, k, v = (jnp.asarray(x, jnp.float32) for x in (Q, KEYS, VALUES))
    attend = functools.partial(ring.ring_attend, causal=True)
    part = B * (T // n) * K * H * 4  # of keys, on a device
    forward = jax.jit(laid(attend)).lower(q, k, v).compile()
    (sent,) = by_kind(of_program(forward, n))
    assert sent == dict(kind="collective-permute", count=2 * (n - 1), bytes=2 * (n - 1) * part)
    grads = jax.grad(lambda *x: jnp.sum(attend(*x)), argnums=(0, 1, 2))
    sent = by_kind(of_program(jax.jit(laid(grads)).lower(q, k, v).compile(), n))
    (permuted,) = [row for row in sent if row["kind"] == "collective-permute"]
    assert permuted["bytes"] == (2 * (n - 1) + 2 * (n - 1) + 2 * n) * part


@pytest.mark.slow
def test_memory_of_a_device_falls_at_least_as_the_devices_rise():
    """The compiler's figures at 32k tokens, forward and backward; nothing is run."""

    def total(*x):
        return jnp.sum(ring.ring_attend(*x, causal=True))

    needed = {}
    for n in (2, 8):
        laid = on(sequence=n)
        shape = jax.ShapeDtypeStruct((1, 32768, 1, 16), jnp.float32)
        grads = jax.jit(laid(jax.grad(total, argnums=(0, 1, 2))))
        compiled = grads.lower(shape, shape, shape).compile()
        needed[n] = compiled.memory_analysis().temp_size_in_bytes
    assert needed[8] <= needed[2] / 4


def test_a_length_that_does_not_divide_and_heads_split_otherwise_are_refused():
    laid = on(sequence=4)
    with laid:
        ring.check_length(16, causal=True)
        with pytest.raises(UserError, match=r"20 do not divide into 8 chunks.*16 or 24 would"):
            ring.check_length(20, causal=True)
        ring.check_length(20, causal=False)
    mesh = make_mesh(settings.Mesh(data=1, sequence=2, tensor=2), jax.devices()[:4])
    only_queries = Vocabulary(logical=(("heads", "tensor"),))
    with (
        activations(mesh, only_queries, settings.Sharding()),
        pytest.raises(UserError, match="split alike"),
    ):
        ring.ring_attend(Q, KEYS, VALUES, causal=True)


def test_what_is_drawn_for_a_part_is_that_part_of_what_is_drawn_for_all():
    whole = layout.drawn(lambda shape: jax.random.normal(jax.random.key(0), shape), (4, 3))
    with layout.seeing(2, lambda x: x[1::2]):
        part = layout.drawn(lambda shape: jax.random.normal(jax.random.key(0), shape), (2, 3))
    np.testing.assert_array_equal(part, whole[1::2])
