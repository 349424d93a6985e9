"""Attention against a float64 forward pass written out one query at a time, and what it promises."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.pallas import tpu as pltpu

from bigjax.core.errors import UserError
from bigjax.models.attention import SHORTEST, attend, positions
from bigjax.models.rotary import frequencies, rotate

RNG = np.random.default_rng(0)
B, T, N, H = 2, 7, 4, 8
SEGMENTS = np.array([[1, 1, 1, 2, 2, 0, 0], [0, 0, 1, 1, 2, 3, 3]], np.int32)


def draw(*shape):
    return RNG.standard_normal(shape).astype(np.float32)


Q, K, V = draw(B, T, N, H), draw(B, T, 2, H), draw(B, T, 2, H)


def by_hand(q, k, v, sees, bias=None, scale=None):
    """sees(b, t, s) -> whether query t of row b sees key s."""
    q, k, v = (np.asarray(x, np.float64) for x in (q, k, v))
    out = np.zeros(q.shape)
    group = q.shape[2] // k.shape[2]
    for b, t, n in np.ndindex(*q.shape[:3]):
        keys = [s for s in range(k.shape[1]) if sees(b, t, s)]
        if keys:
            scores = k[b, keys, n // group] @ q[b, t, n] * (scale or q.shape[-1] ** -0.5)
            if bias is not None:
                scores = scores + np.broadcast_to(bias, (q.shape[0], N, T, T))[b, n, t, keys]
            weights = np.exp(scores - scores.max())
            out[b, t, n] = weights / weights.sum() @ v[b, keys, n // group]
    return out


def check(options, sees, keys=(K, V), **extra):
    got = attend(Q, *keys, **options, **extra)
    np.testing.assert_allclose(got, by_hand(Q, *keys, sees, **extra), rtol=2e-5, atol=2e-6)


@pytest.mark.parametrize("kv_heads", [1, 2, 4])
def test_each_key_head_serves_its_group_of_query_heads(kv_heads):
    check({}, lambda b, t, s: True, (draw(B, T, kv_heads, H), draw(B, T, kv_heads, H)))


def test_causal_queries_see_no_later_key():
    check(dict(causal=True), lambda b, t, s: s <= t)


@pytest.mark.parametrize("causal", [False, True])
def test_packed_documents_do_not_see_each_other_and_nobody_sees_padding(causal):
    check(
        dict(causal=causal, query_segments=SEGMENTS, key_segments=SEGMENTS),
        lambda b, t, s: SEGMENTS[b, t] == SEGMENTS[b, s] > 0 and (s <= t or not causal),
    )


@pytest.mark.parametrize("causal", [False, True])
def test_key_segments_alone_hide_padding(causal):
    options = dict(key_segments=SEGMENTS, causal=causal)
    check(options, lambda b, t, s: SEGMENTS[b, s] > 0 and (s <= t or not causal))


def test_bias_and_scale():
    check({}, lambda b, t, s: True, bias=draw(1, N, T, T), scale=1.0)


def test_offset_is_the_slot_of_the_first_query():
    got = attend(Q[:, 4:6], K, V, causal=True, offset=jnp.int32(4))
    want = by_hand(Q, K, V, lambda b, t, s: s <= t)[:, 4:6]
    np.testing.assert_allclose(got, want, rtol=2e-5, atol=2e-6)


def test_a_query_that_sees_nothing_gives_zero_and_finite_gradients():
    nothing = np.zeros((B, T), np.int32)

    def total(q, k, v, segments):
        return jnp.sum(attend(q, k, v, query_segments=segments, key_segments=segments) ** 2)

    assert total(Q, K, V, nothing) == 0
    padded = attend(Q, K, V, causal=True, query_segments=SEGMENTS, key_segments=SEGMENTS)
    assert not np.any(np.asarray(padded)[SEGMENTS == 0])
    for segments in (nothing, SEGMENTS):
        grads = jax.grad(total, argnums=(0, 1, 2))(Q, K, V, segments)
        assert all(np.all(np.isfinite(g)) for g in grads)
        assert all(np.any(g) == np.any(segments) for g in grads)


@pytest.mark.parametrize("dtype, tolerance", [("float16", 2e-3), ("bfloat16", 2e-2)])
def test_16_bit_numbers_run_on_the_cpu_and_keep_their_dtype(dtype, tolerance):
    q, k, v = (jnp.asarray(x, dtype) for x in (Q, K, V))
    got = jax.jit(lambda q, k, v: attend(q, k, v, causal=True))(q, k, v)
    assert got.dtype == dtype
    np.testing.assert_allclose(
        np.asarray(got, np.float32), by_hand(q, k, v, lambda b, t, s: s <= t), atol=tolerance
    )


def test_the_softmax_is_float32_under_16_bit_numbers():
    """Scores of 300 and more, whose exponentials and differences 16 bits cannot hold."""
    q = jnp.full((1, 1, 1, 8), 20.0, jnp.bfloat16)
    k = jnp.asarray([[[[6.0] * 8], [[6.03125] * 8]]], jnp.bfloat16)
    v = jnp.asarray([[[[0.0] * 8], [[1.0] * 8]]], jnp.bfloat16)
    difference = 20 * 8 * 0.03125 / 8**0.5
    assert float(attend(q, k, v)[0, 0, 0, 0]) == pytest.approx(
        1 / (1 + np.exp(-difference)), abs=4e-3
    )


def test_positions_restart_in_each_segment():
    assert positions(jnp.asarray(SEGMENTS)).tolist() == [
        [0, 1, 2, 0, 1, 0, 1],
        [0, 1, 0, 1, 0, 0, 1],
    ]


def test_rotation_equals_complex_multiplication_and_keeps_the_dtype():
    at = np.array([[0, 1, 2, 3, 4, 5, 900]] * B)
    pairs = np.asarray(Q[..., : H // 2] + 1j * Q[..., H // 2 :], np.complex128)
    angles = at[..., None] / 500.0 ** (2 * np.arange(H // 2) / H)
    turned = pairs * np.exp(1j * angles)[:, :, None]
    want = np.concatenate([turned.real, turned.imag], axis=-1)
    turns = frequencies(H, 500.0, None)
    np.testing.assert_allclose(rotate(Q, at, turns), want, atol=3e-4)
    np.testing.assert_allclose(rotate(Q, at, turns)[:, :6], want[:, :6], atol=2e-6)
    assert rotate(jnp.asarray(Q, jnp.bfloat16), at, turns).dtype == jnp.bfloat16


def test_rotated_scores_depend_on_distance_alone():
    q, k = draw(1, 1, 1, H), draw(1, 1, 1, H)

    def score(t, s):
        at = lambda x, i: rotate(x, jnp.full((1, 1), i), frequencies(H, 10000.0, None))  # noqa: E731
        return float(jnp.sum(at(q, t) * at(k, s)))

    assert score(9, 4) == pytest.approx(score(25, 20), rel=1e-4)


@pytest.mark.slow
def test_the_kernel_for_tpus_gives_the_same_numbers(monkeypatch):
    """Interpreted, as this is no TPU: packed rows with padding, grouped queries, gradients."""
    segments = np.repeat([[1, 2, 0]], [60, 40, 28], axis=1).astype(np.int32)
    q, k, v = draw(1, 128, 2, 64), draw(1, 128, 1, 64), draw(1, 128, 1, 64)

    def total(q, k, v, **options):
        mixed = attend(
            q, k, v, causal=True, query_segments=segments, key_segments=segments, **options
        )
        return jnp.sum(jnp.sin(mixed)), mixed

    both = jax.value_and_grad(total, argnums=(0, 1, 2), has_aux=True)
    expected = both(q, k, v)
    monkeypatch.setattr(jax, "default_backend", lambda: "tpu")
    with pltpu.force_tpu_interpret_mode():
        found = both(q, k, v, implementation="tpu_flash")
    for ours, theirs in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=2e-4)


@pytest.mark.parametrize(
    "name, says",
    [
        ("cuddn", r"unknown 'cuddn'.*mean 'cudnn'"),
        ("cudnn", r"'cudnn' runs on a gpu, and this is a cpu"),
        ("tpu_flash", r"'tpu_flash' runs on a tpu, and this is a cpu"),
    ],
)
def test_an_implementation_that_cannot_be_had_is_refused(name, says):
    with pytest.raises(UserError, match=says):
        attend(Q, K, V, implementation=name)


@pytest.mark.parametrize(
    ("scaling", "said"),
    [
        (dict(rope_type="yarns", factor=2.0), r"unknown 'yarns' \(did you mean 'yarn'\?\)"),
        (dict(rope_type="yarn", factor=2.0), "'yarn' has factor, original_max"),
        (dict(rope_type="linear"), "'linear' has factor, not nothing"),
        (dict(rope_type="llama3", factor=8.0), "'llama3' has factor, low_freq_factor"),
    ],
)
def test_a_scaling_that_is_not_known_is_refused(scaling, said):
    with pytest.raises(UserError, match=said):
        frequencies(8, 10000.0, scaling)


def plainly(q, k, v, segments, bias, causal, softcap):
    """Equation 1 in float64, each weight divided."""
    same = segments[:, :, None] == segments[:, None, :]
    sees = same & (np.tri(q.shape[1], dtype=bool) if causal else True)
    k, v = (jnp.repeat(x, q.shape[2] // x.shape[2], axis=2) for x in (k, v))
    scores = jnp.einsum("btnh,bsnh->bnts", q, k) * q.shape[-1] ** -0.5
    if softcap is not None:
        scores = softcap * jnp.tanh(scores / softcap)
    weights = jax.nn.softmax(jnp.where(sees[:, None], scores + bias, -jnp.inf))
    return jnp.einsum("bnts,bsnh->btnh", weights, v)


@pytest.mark.parametrize("devices", [8, 1])  # one has a gradient of its own
@pytest.mark.parametrize(
    ("causal", "kv_heads", "softcap"),
    [(False, 2, None), (True, 2, None), (True, N, None), (False, N, 0.7), (True, 1, 0.7)],
)
def test_queries_in_parts_have_the_values_and_gradients_of_float64_and_of_xla(
    causal, kv_heads, softcap, devices, monkeypatch
):
    monkeypatch.setattr(jax, "device_count", lambda: devices)
    T = 3 * SHORTEST  # in three parts, where attention is causal
    q, k, v, bias, d_out = draw(B, T, N, H), draw(B, T, kv_heads, H), draw(B, T, kv_heads, H), draw(N, T, T), draw(B, T, N, H)  # fmt: skip
    segments = np.sort(RNG.integers(1, 4, (B, T)), axis=1).astype(np.int32)
    same = dict(query_segments=segments, key_segments=segments)

    def of(function):
        def with_gradients(*inputs):
            out, pull_back = jax.vjp(function, *inputs)
            return out, *pull_back(jnp.asarray(d_out, out.dtype))

        return jax.jit(with_gradients)

    def compare(ours, theirs, tolerance):
        for got, want in zip(ours, theirs, strict=True):
            np.testing.assert_allclose(got, want, rtol=0, atol=tolerance * np.abs(want).max())

    def attention(q, k, v, bias):
        return attend(q, k, v, bias=bias[None], causal=causal, softcap=softcap, **same)

    assert ("custom_vjp" in str(jax.make_jaxpr(attention)(q, k, v, bias))) == (devices == 1)
    ours = of(attention)(q, k, v, bias)
    with jax.enable_x64(True):
        wide = [jnp.asarray(x, jnp.float64) for x in (q, k, v, bias)]
        exact = of(lambda q, k, v, bias: plainly(q, k, v, segments, bias, causal, softcap))(*wide)
    compare(ours, exact, 1e-6)
    if softcap is None:  # which XLA's has not
        mask = (segments[:, :, None] == segments[:, None, :])[:, None]
        xla = of(lambda q, k, v, bias: jax.nn.dot_product_attention(
            q, k, v, bias=bias[None], mask=mask, is_causal=causal, implementation="xla"
        ))(q, k, v, bias)  # fmt: skip
        compare(ours, xla, 2e-6)


def test_a_query_that_sees_nothing_has_no_gradient_on_one_cpu(monkeypatch):
    monkeypatch.setattr(jax, "device_count", lambda: 1)

    def total(q, k, v):
        return jnp.sum(attend(q, k, v, query_segments=SEGMENTS, key_segments=SEGMENTS) ** 2)

    for gradient in map(np.asarray, jax.grad(total, argnums=(0, 1, 2))(Q, K, V)):
        assert np.all(np.isfinite(gradient)) and np.any(gradient)
        assert not np.any(gradient[SEGMENTS == 0])
