"""Attention, where tokens stand in their documents, and the key-value cache.

Every Transformer family calls `attend`. Shapes are in the names: B batch, T queries, S keys, N query
heads, K key and value heads, H width of a head. Knows nothing of parameters.
"""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp

from bigjax.core import layout
from bigjax.core.errors import UserError
from bigjax.core.layout import platform
from bigjax.models.common import choose
from bigjax.models.rows import on_one_cpu

IMPLEMENTATIONS = ("auto", "xla", "cudnn", "tpu_flash")
HIDDEN = -1e30  # a score that leaves no weight
SHORTEST = 128  # queries of a part that are worth products of their own
NARROW = 32  # numbers of a row that are compared one by one


def attend(
    q_BTNH: jax.Array,
    k_BSKH: jax.Array,
    v_BSKH: jax.Array,
    *,
    causal: bool = False,
    query_segments: jax.Array | None = None,
    key_segments: jax.Array | None = None,
    mask: jax.Array | None = None,
    bias: jax.Array | None = None,
    offset: jax.Array | None = None,
    scale: float | None = None,
    softcap: float | None = None,
    implementation: str = "auto",
) -> jax.Array:
    """softmax(scale q k' + bias) v (Vaswani et al. 2017, eq. 1), the softmax in float32.

    Args:
      q_BTNH, k_BSKH, v_BSKH: of one floating-point dtype. N is a multiple of K, and each key head
        serves N / K neighbouring query heads (Ainslie et al. 2023, grouped queries).
      causal: query t sees key s only if s <= t + offset.
      query_segments, key_segments: int (B, T) and (B, S), 0 = padding. A query sees the keys of its own
        segment only. With key_segments alone it sees every key that is not padding.
      mask: bool, broadcastable to (B, T, S): a query sees no key where it is False.
      bias: added to the scores, float, broadcastable to (B, N, T, S).
      offset: the key slot at which query 0 stands, int (), for queries behind a cache; None: 0.
      scale: default 1 / sqrt(H).
      softcap: scores s become softcap tanh(s / softcap) before the bias (Gemma Team 2024, "Gemma 2",
        section 2); always takes xla.
      implementation: "xla"; "cudnn" (NVIDIA GPUs, 16-bit numbers); "tpu_flash" (JAX's Pallas kernel
        for TPUs; lengths that 128 divides; on several devices with sharding.mode "shard_map", as the
        compiler cannot split it); "auto": cudnn where it applies, else xla. Queries behind a cache
        always take xla.

    Returns:
      (B, T, N, H) in the dtype of the queries; 0 for a query that sees no key.
    """
    dtype = q_BTNH.dtype
    on_gpu = platform() == "gpu"
    if offset is not None or softcap is not None:
        implementation = "xla"
    implementation = _chosen(implementation, q_BTNH, k_BSKH, bias)
    if implementation == "tpu_flash" and mask is not None:
        raise UserError("model.attention: 'tpu_flash' has no windows; 'auto' and 'xla' do")
    if dtype == jnp.float16 and not on_gpu:  # only GPUs multiply float16 into float32 sums
        q_BTNH, k_BSKH, v_BSKH = (x.astype(jnp.float32) for x in (q_BTNH, k_BSKH, v_BSKH))
    mask_BTS = _both(_segment_mask(query_segments, key_segments), mask)
    if causal and offset is not None:
        T, S = q_BTNH.shape[1], k_BSKH.shape[1]
        mask_BTS = _both(mask_BTS, (jnp.arange(S) <= jnp.arange(T)[:, None] + offset)[None])
        causal = False
    if implementation == "tpu_flash":
        segments = None if mask_BTS is None else (query_segments, key_segments)
        out_BTNH = _tpu_flash(q_BTNH, k_BSKH, v_BSKH, causal, segments, bias, scale)
    elif softcap is not None or platform() == "cpu":
        sees_BTS = _both(mask_BTS, _no_later(q_BTNH, k_BSKH) if causal else None)
        out_BTNH = _written_out(q_BTNH, k_BSKH, v_BSKH, sees_BTS, causal, bias, scale, softcap)
    else:
        out_BTNH = jax.nn.dot_product_attention(
            q_BTNH,
            k_BSKH,
            v_BSKH,
            bias=bias,
            mask=None if mask_BTS is None else mask_BTS[:, None],
            scale=scale,
            is_causal=causal,
            implementation=implementation,
        )
    out_BTNH = out_BTNH.astype(dtype)
    if mask_BTS is None:
        return out_BTNH
    if causal:
        mask_BTS = mask_BTS & _no_later(q_BTNH, k_BSKH)
    sees_BT = jnp.any(mask_BTS, axis=-1)
    return jnp.where(sees_BT[:, :, None, None], out_BTNH, 0)


def _chosen(name: str, q_BTNH: jax.Array, k_BSKH: jax.Array, bias: jax.Array | None) -> str:
    """The implementation that a name means here; UserError if it cannot be had."""
    choose("model.attention", name, IMPLEMENTATIONS)
    backend, (T, S, H) = platform(), (q_BTNH.shape[1], *k_BSKH.shape[1::2])
    if name == "auto":
        narrow = q_BTNH.dtype in (jnp.bfloat16, jnp.float16)
        fits = H % 8 == 0 and H <= 128 and T % 2 == 0 and S % 2 == 0
        # A bias that is learned gains little from the fused kernel.
        return "cudnn" if backend == "gpu" and narrow and fits and bias is None else "xla"
    needs = {"cudnn": "gpu", "tpu_flash": "tpu"}.get(name, backend)
    if backend != needs:
        raise UserError(f"model.attention: '{name}' runs on a {needs}, and this is a {backend}")
    if name == "tpu_flash" and (T % 128 or S % 128):
        raise UserError(
            f"model.attention: 'tpu_flash' needs lengths that 128 divides, not {T}, {S}"
        )
    return name


def _tpu_flash(
    q_BTNH: jax.Array,
    k_BSKH: jax.Array,
    v_BSKH: jax.Array,
    causal: bool,
    segments: tuple[jax.Array | None, jax.Array] | None,
    bias: jax.Array | None,
    scale: float | None,
) -> jax.Array:
    """Dao et al. 2022, "FlashAttention", as JAX's Pallas kernel for TPUs."""
    from jax.experimental.pallas.ops.tpu import flash_attention as pallas

    B, T, N, H = q_BTNH.shape
    if segments is not None:
        query_BT, key_BS = segments
        if query_BT is None:
            query_BT, key_BS = jnp.ones((B, T), jnp.int32), (key_BS > 0).astype(jnp.int32)
        # Padding has a segment of its own among the keys, which no query is in.
        segments = pallas.SegmentIds(query_BT, jnp.where(key_BS > 0, key_BS, -1))
    repeated = (jnp.repeat(x, N // x.shape[2], axis=2) for x in (k_BSKH, v_BSKH))
    out_BNTH = pallas.flash_attention(
        *(jnp.swapaxes(x, 1, 2) for x in (q_BTNH, *repeated)),
        ab=None if bias is None else jnp.broadcast_to(bias, (B, N, T, k_BSKH.shape[1])),
        segment_ids=segments,
        causal=causal,
        sm_scale=H**-0.5 if scale is None else scale,
    )
    return jnp.swapaxes(out_BNTH, 1, 2)


def _written_out(
    q_BTNH: jax.Array,
    k_BSKH: jax.Array,
    v_BSKH: jax.Array,
    mask_BTS: jax.Array | None,
    causal: bool,
    bias: jax.Array | None,
    scale: float | None,
    softcap: float | None,
) -> jax.Array:
    """Equation 1 written out: with capped scores, which no fused kernel has, and for CPUs.

    What the weights add up to divides the result and not each weight, as in Dao et al. 2022: a pass less
    over (B, N, T, S) forward, two less backward. Causal queries are taken in parts, each of which meets the
    keys up to its own end alone.
    """
    (B, T, N, H), (S, K) = q_BTNH.shape, k_BSKH.shape[1:3]
    # Heads first: what the products of matrices want, forward and backward; G only where there are groups.
    heads = (K,) if K == N else (K, N // K)
    q_BKGTH = jnp.moveaxis(q_BTNH.reshape(B, T, *heads, H), 1, -2)
    k_BKSH, v_BKSH = (jnp.swapaxes(x, 1, 2) for x in (k_BSKH, v_BSKH))
    if bias is not None:
        bias = jnp.broadcast_to(bias, (B, N, T, S)).reshape(B, *heads, T, S)
    mask = None
    if mask_BTS is not None:
        ones = [1] * len(heads)
        mask = jnp.broadcast_to(mask_BTS, (len(mask_BTS), T, S)).reshape(-1, *ones, T, S)
    count = max(1, min(4, T // SHORTEST))
    if not causal or T != S or T % count or layout.parts("length") > 1:
        count = 1
    parts = tuple((T * i // count, T * (i + 1) // count) for i in range(count))
    settings = parts, H**-0.5 if scale is None else scale, softcap
    mixed = _mixed_on_one_cpu if on_one_cpu() else _mixed
    out_BKGTH = mixed(q_BKGTH, k_BKSH, v_BKSH, mask, bias, settings)
    return jnp.moveaxis(out_BKGTH, -2, 1).reshape(B, T, N, H)


def _mixed(q_BKGTH, k_BKSH, v_BKSH, mask, bias_BKGTS, settings) -> jax.Array:
    """float32 (B, K, (G,) T, H); settings: (start, end) of each part of the queries, scale, softcap."""
    return _mix_forward(q_BKGTH, k_BKSH, v_BKSH, mask, bias_BKGTS, settings)[0]


def _mix_forward(q_BKGTH, k_BKSH, v_BKSH, mask, bias_BKGTS, settings):
    parts, scale, softcap = settings
    outs, saved = [], []
    for start, end in parts:
        keys = end if len(parts) > 1 else k_BKSH.shape[2]
        s_BKGTS = scale * _scores(q_BKGTH[..., start:end, :], k_BKSH[:, :, :keys])
        capped_BKGTS = None
        if softcap is not None:
            capped_BKGTS = jnp.tanh(s_BKGTS / softcap)
            s_BKGTS = softcap * capped_BKGTS
        if bias_BKGTS is not None:
            s_BKGTS = s_BKGTS + bias_BKGTS[..., start:end, :keys]
        if mask is not None:
            s_BKGTS = jnp.where(mask[..., start:end, :keys], s_BKGTS, HIDDEN)
        p_BKGTS = jnp.exp(s_BKGTS - jax.lax.stop_gradient(_most(s_BKGTS)))
        share_BKGT1 = 1 / jnp.sum(p_BKGTS, axis=-1, keepdims=True)
        out_BKGTH = _weighted(p_BKGTS.astype(v_BKSH.dtype), v_BKSH[:, :, :keys])
        outs.append(out_BKGTH * share_BKGT1)
        saved.append((p_BKGTS, share_BKGT1, capped_BKGTS))
    out_BKGTH = jnp.concatenate(outs, axis=-2)
    return out_BKGTH, (q_BKGTH, k_BKSH, v_BKSH, bias_BKGTS, out_BKGTH, saved)


def _mix_backward(settings, saved, dout_BKGTH):
    """Dao et al. 2022, appendix B.2: what the weights of a query have in common is known from (T, H) alone.

    A query that sees nothing has weights, but its dout is 0: `attend` has put 0 in its place.
    """
    q_BKGTH, k_BKSH, v_BKSH, bias_BKGTS, out_BKGTH, of_parts = saved
    parts, scale, softcap = settings
    S = k_BKSH.shape[2]
    common_BKGT1 = jnp.sum(dout_BKGTH * out_BKGTH, axis=-1, keepdims=True)
    dq, dk, dv, dbias = [], [], [], []
    for (start, end), (p_BKGTS, share_BKGT1, capped_BKGTS) in zip(parts, of_parts, strict=True):
        keys = p_BKGTS.shape[-1]
        own_BKGTH = dout_BKGTH[..., start:end, :] * share_BKGT1
        dp_BKGTS = _scores(own_BKGTH, v_BKSH[:, :, :keys])
        ds_BKGTS = p_BKGTS * (dp_BKGTS - common_BKGT1[..., start:end, :] * share_BKGT1)
        if bias_BKGTS is not None:
            dbias.append(_to_length(ds_BKGTS, S))
        if softcap is not None:
            ds_BKGTS = ds_BKGTS * (1 - capped_BKGTS**2)
        ds_BKGTS = scale * ds_BKGTS
        dq.append(_weighted(ds_BKGTS, k_BKSH[:, :, :keys]))
        dk.append(_to_length(_turned(q_BKGTH[..., start:end, :], ds_BKGTS), S))
        dv.append(_to_length(_turned(own_BKGTH, p_BKGTS), S))
    turned = jax.lax.optimization_barrier((sum(dk), sum(dv)))  # or XLA undoes it
    dk_BKSH, dv_BKSH = (jnp.swapaxes(x, 2, 3) for x in turned)
    changes = [jnp.concatenate(dq, axis=-2), dk_BKSH, dv_BKSH]
    dq, dk, dv = (x.astype(y.dtype) for x, y in zip(changes, saved[:3], strict=True))
    dbias = jnp.concatenate(dbias, axis=-2).astype(bias_BKGTS.dtype) if dbias else None
    return dq, dk, dv, None, dbias


# With a gradient of its own: fewer passes over the scores than JAX's takes.
_mixed_on_one_cpu = jax.custom_vjp(_mixed, nondiff_argnums=(5,))
_mixed_on_one_cpu.defvjp(_mix_forward, _mix_backward)


def _scores(x_BKGTH: jax.Array, y_BKSH: jax.Array) -> jax.Array:
    return _product("BK...TH,BKSH->BK...TS", x_BKGTH, y_BKSH)


def _weighted(p_BKGTS: jax.Array, y_BKSH: jax.Array) -> jax.Array:
    return _product("BK...TS,BKSH->BK...TH", p_BKGTS, y_BKSH)


def _turned(x_BKGTH: jax.Array, p_BKGTS: jax.Array) -> jax.Array:
    """x' p, of x' copied first. Not p' x, for which XLA would write what is as large as the scores turned."""
    x_BKRH, p_BKRS = (y.reshape(*y.shape[:2], -1, y.shape[-1]) for y in (x_BKGTH, p_BKGTS))
    x_BKHR = jax.lax.optimization_barrier(jnp.swapaxes(x_BKRH, 2, 3))
    return _product("BKHR,BKRS->BKHS", x_BKHR, p_BKRS)


def _product(equation: str, a: jax.Array, b: jax.Array) -> jax.Array:
    return jnp.einsum(equation, a, b, preferred_element_type=jnp.float32)


def _to_length(x: jax.Array, length: int) -> jax.Array:
    """x with zeros behind it along its last axis."""
    return jnp.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, length - x.shape[-1])])


def _most(s_BKGTS: jax.Array) -> jax.Array:
    """The largest of each row (..., 1); on one CPU of its halves first, which are compared side by side."""
    while on_one_cpu() and (S := s_BKGTS.shape[-1]) % 2 == 0 and S > NARROW:
        s_BKGTS = jnp.maximum(s_BKGTS[..., : S // 2], s_BKGTS[..., S // 2 :])
    return jnp.max(s_BKGTS, axis=-1, keepdims=True)


def _no_later(q_BTNH: jax.Array, k_BSKH: jax.Array) -> jax.Array:
    """The causal mask, bool (1, T, S)."""
    return jnp.tri(q_BTNH.shape[1], k_BSKH.shape[1], dtype=bool)[None]


def _both(mask: jax.Array | None, other: jax.Array | None) -> jax.Array | None:
    """What both masks let through; None lets everything through."""
    if mask is None or other is None:
        return other if mask is None else mask
    return mask & other


def _segment_mask(query: jax.Array | None, key: jax.Array | None) -> jax.Array | None:
    """Which keys each query may see, bool (B, T or 1, S); None: all."""
    if key is None:
        return None
    real_B1S = (key > 0)[:, None, :]
    return real_B1S if query is None else (query[:, :, None] == key[:, None, :]) & real_B1S


def positions(segments_BT: jax.Array) -> jax.Array:
    """How far each token stands from the start of its segment, int32 (B, T)."""
    index_T = jnp.arange(segments_BT.shape[1], dtype=jnp.int32)
    before_BT = jnp.pad(segments_BT[:, :-1], ((0, 0), (1, 0)), constant_values=-1)
    starts_BT = jnp.where(segments_BT != before_BT, index_T, 0)
    return index_T - jax.lax.cummax(starts_BT, axis=1)


def cached_segments(
    module: nn.Module, segments_BT: jax.Array, slots: int
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Enters T more tokens into a decoder's cache; call once in the model, before its blocks.

    The collection "cache" holds, for each row, `slots` places that are filled from the left, by all
    rows at the same time. Padding takes a slot but is never seen, so that prompts of different length
    may be padded on either side.

    Args:
      module: the model; the variables "segments" (B, S) and "slot" () are its own.
      segments_BT: 1 = a token, 0 = padding.
      slots: S, how many tokens the cache holds in all.

    Returns:
      positions (B, T): how many tokens stand before each one in its row;
      key segments (B, S): 1 = a token, 0 = padding or nothing yet, these T included;
      slot (): where the first of these T tokens lies: the `offset` of `attend`.
    """
    B = segments_BT.shape[0]
    seen = module.variable("cache", "segments", jnp.zeros, (B, slots), jnp.int32)
    slot = module.variable("cache", "slot", jnp.zeros, (), jnp.int32)
    real_BT = (segments_BT > 0).astype(jnp.int32)
    before_B1 = jnp.sum(seen.value, axis=1, keepdims=True)
    positions_BT = jnp.maximum(before_B1 + jnp.cumsum(real_BT, axis=1) - 1, 0)
    first = slot.value
    seen.value = jax.lax.dynamic_update_slice(seen.value, real_BT, (0, first))
    slot.value = first + segments_BT.shape[1]
    return positions_BT, seen.value, first


def cached_keys(
    module: nn.Module, k_BTKH: jax.Array, v_BTKH: jax.Array, slot: jax.Array, slots: int
) -> tuple[jax.Array, jax.Array]:
    """Enters the keys and values of T tokens at `slot`; returns all of them, (B, S, K, H) each.

    Call in the attention module, whose variables "keys" and "values" of the collection "cache" they are.
    """

    def enter(name: str, x_BTKH: jax.Array) -> jax.Array:
        B, _, K, H = x_BTKH.shape
        memory = module.variable("cache", name, jnp.zeros, (B, slots, K, H), x_BTKH.dtype)
        new = x_BTKH.astype(memory.value.dtype)
        memory.value = jax.lax.dynamic_update_slice(memory.value, new, (0, slot, 0, 0))
        return memory.value

    return enter("keys", k_BTKH), enter("values", v_BTKH)
