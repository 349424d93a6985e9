"""Attention over a length that is split over devices: keys and values go round in a ring.

Liu et al. 2023, "Ring attention with blockwise Transformers": every device keeps its queries; keys and
values pass from neighbour to neighbour, and the softmax is put together block by block with a running
maximum and sum (Milakov and Gimelshein 2018; Dao et al. 2022, "FlashAttention", algorithm 1), so that no
device ever holds more than its part of the length. The backward pass goes round once more.

Under a causal mask the first devices of a plain split would have little to do. There the length is
laid out in zig-zag (Zhu 2024; Llama team 2024, section 3.3.2): of 2n chunks device i has chunks i and
2n - 1 - i, and every device works on two pairs of chunks at each turn. `zigzag` and `unzigzag` change
between the orders, at the two ends of a stack of blocks.

Shapes are in the names: B batch, C length of a chunk, N query heads, K key and value heads, G = N / K,
H width of a head; a leading S counts a device's chunks. Knows no mesh: axes have names.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from bigjax.core import layout
from bigjax.core.errors import UserError

LOWEST = float(jnp.finfo(jnp.float32).min)


@dataclasses.dataclass(frozen=True)
class Ring:
    """What does not change on the way round.

    axes, size: the mesh axes of the ring, and its devices n.
    causal: query t sees key s only if s <= t. Then each device has two chunks, in zig-zag, else one.
    scale, softcap: see `bigjax.models.attention.attend`.
    """

    axes: tuple[str, ...]
    size: int
    causal: bool
    scale: float
    softcap: float | None

    @property
    def chunks(self) -> int:
        """Of each device."""
        return 2 if self.causal else 1

    def numbers(self, device: jax.Array) -> jax.Array:
        """Which chunks of the whole length the device has, (S,)."""
        both = jnp.stack([device, 2 * self.size - 1 - device])
        return both[: self.chunks]

    def shift(self, tree: Any) -> Any:
        """Each device's arrays on the next device."""
        pairs = [(i, (i + 1) % self.size) for i in range(self.size)]
        return jax.tree.map(lambda x: jax.lax.ppermute(x, self.axes, pairs), tree)


class Keys(NamedTuple):
    """What goes round: chunks of keys, values, and segments or None."""

    k: jax.Array
    v: jax.Array
    segments: jax.Array | None


class Softmax(NamedTuple):
    """A softmax under way, for each chunk of queries: sums of exp(score - most), times values or not."""

    out: jax.Array  # (S, B, K, G, C, H)
    most: jax.Array  # (S, B, K, G, C)
    total: jax.Array


def ring_attend(
    q_BTNH: jax.Array,
    k_BTKH: jax.Array,
    v_BTKH: jax.Array,
    *,
    causal: bool,
    query_segments: jax.Array | None = None,
    key_segments: jax.Array | None = None,
    window: jax.Array | None = None,
    scale: float | None = None,
    softcap: float | None = None,
) -> jax.Array:
    """As `bigjax.models.attention.attend`, over a "length" that is split; if causal, in zig-zag order.

    Args:
      window: a query sees the keys less than so many places behind it, or, if not causal, away from it;
        int () or None.

    Returns:
      (B, T, N, H) in the dtype of the queries.
    """
    laid, grouped = layout.layout(), q_BTNH.shape[2] != k_BTKH.shape[2]
    key_heads = "kv_heads" if grouped else "heads"
    if laid.parts(key_heads) != laid.parts("heads"):
        raise UserError(
            "config.sharding.sequence: 'ring' needs query heads and key heads split alike "
            "(config.sharding.logical, heads and kv_heads); or take 'gather'"
        )
    ring = Ring(
        axes=laid.axes("length"),
        size=laid.parts("length"),
        causal=causal,
        scale=q_BTNH.shape[-1] ** -0.5 if scale is None else scale,
        softcap=softcap,
    )
    keys, tokens = ("batch", "length", key_heads, None), ("batch", "length")
    takes = (("batch", "length", "heads", None), keys, keys, tokens, tokens, ())
    local = laid.per_part(functools.partial(_local, ring), takes, takes[0])
    return local(q_BTNH, k_BTKH, v_BTKH, query_segments, key_segments, window)


def _local(ring: Ring, q_BTNH, k_BTKH, v_BTKH, query_segments, key_segments, window):
    """One device's part: its arrays in chunks, its queries in groups of heads, and back."""
    dtype, (B, T, N, H) = q_BTNH.dtype, q_BTNH.shape
    if dtype == jnp.float16 and layout.platform() != "gpu":  # see `attend`
        q_BTNH, k_BTKH, v_BTKH = (x.astype(jnp.float32) for x in (q_BTNH, k_BTKH, v_BTKH))
    K, C = k_BTKH.shape[2], T // ring.chunks

    def chunked(x: jax.Array | None) -> jax.Array | None:
        if x is None:
            return None
        return jnp.moveaxis(x.reshape(B, ring.chunks, C, *x.shape[2:]), 1, 0)

    q_SBCKGH = chunked(q_BTNH.reshape(B, T, K, N // K, H))
    keys = Keys(chunked(k_BTKH), chunked(v_BTKH), chunked(key_segments))
    out_SBCKGH = _attend(ring, q_SBCKGH, keys, chunked(query_segments), window)
    return jnp.moveaxis(out_SBCKGH, 0, 1).reshape(B, T, N, H).astype(dtype)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attend(ring: Ring, q: jax.Array, keys: Keys, segments: Any, window: Any) -> jax.Array:
    return _forward(ring, q, keys, segments, window)[0]


def _forward(ring: Ring, q: jax.Array, keys: Keys, segments: Any, window: Any):
    """(out (S, B, C, K, G, H) float32, what the backward pass needs)."""
    S, B, C, K, G, H = q.shape
    zeros = jnp.zeros((S, B, K, G, C), jnp.float32)
    running = Softmax(jnp.zeros((S, B, K, G, C, H), jnp.float32), zeros + LOWEST, zeros)
    me = jax.lax.axis_index(ring.axes)

    def turn(running: Softmax, keys: Keys, number: Any) -> Softmax:
        for a, b in _pairs(ring, me, number):
            seen = _seen(ring, segments, keys.segments, window, me, number, a, b, C)
            part = Softmax(*(_at(x, a) for x in running))
            part = _add(ring, part, _at(q, a), _at(keys.k, b), _at(keys.v, b), seen)
            running = Softmax(*(x.at[a].set(new) for x, new in zip(running, part, strict=True)))
        return running

    # The next keys are under way while these are read.
    coming = ring.shift(keys)
    running = turn(running, keys, 0)

    def middle(carry: Any, number: jax.Array):
        running, keys = carry
        return (turn(running, keys, number), ring.shift(keys)), None

    numbers = jnp.arange(1, ring.size - 1)
    (running, last), _ = jax.lax.scan(middle, (running, coming), numbers)
    running = turn(running, last, ring.size - 1)
    sees_none = running.total == 0  # a query of padding
    total = jnp.where(sees_none, 1.0, running.total)
    out = jnp.moveaxis(running.out / total[..., None], 4, 2)
    log_total = jnp.where(sees_none, 0.0, running.most + jnp.log(total))
    return out, (q, keys, segments, window, out, log_total)


def _backward(ring: Ring, kept: Any, d_out: jax.Array):
    """The gradients by queries, keys and values; those of keys and values travel with them, and home.

    Dao et al. 2022, algorithm 4: with P the softmax and D = sum(out d_out), d_scores = P (d_P - D).
    """
    q, keys, segments, window, out, log_total = kept
    C, me = q.shape[2], jax.lax.axis_index(ring.axes)
    d_out = d_out.astype(jnp.float32)
    along = jnp.moveaxis(jnp.sum(out * d_out, axis=-1), 2, 4)  # D, (S, B, K, G, C)
    d_out = d_out.astype(keys.v.dtype)

    def turn(grads: Any, keys: Keys, number: Any) -> Any:
        d_q, d_k, d_v = grads
        for a, b in _pairs(ring, me, number):
            seen = _seen(ring, segments, keys.segments, window, me, number, a, b, C)
            scores, pull = jax.vjp(functools.partial(_scores, ring), _at(q, a), _at(keys.k, b))
            p = jnp.where(seen, jnp.exp(scores - _at(log_total, a)[..., None]), 0.0)
            d_o, v = _at(d_out, a), _at(keys.v, b)
            d_v = d_v.at[b].add(_product("BKGCE,BCKGH->BEKH", p.astype(v.dtype), d_o))
            d_p = _product("BCKGH,BEKH->BKGCE", d_o, v)
            new_q, new_k = pull(p * (d_p - _at(along, a)[..., None]))
            d_q, d_k = d_q.at[a].add(new_q), d_k.at[b].add(new_k)
        return d_q, d_k, d_v

    def middle(carry: Any, number: jax.Array):
        (d_q, *d_keys), keys = carry
        keys, d_keys = ring.shift((keys, d_keys))
        return (turn((d_q, *d_keys), keys, number), keys), None

    zeros = [jnp.zeros(x.shape, jnp.float32) for x in (q, keys.k, keys.v)]
    carry = (turn(tuple(zeros), keys, 0), keys)
    ((d_q, *d_keys), _), _ = jax.lax.scan(middle, carry, jnp.arange(1, ring.size))
    d_k, d_v = ring.shift(d_keys)
    d_keys = Keys(d_k.astype(keys.k.dtype), d_v.astype(keys.v.dtype), None)
    return d_q.astype(q.dtype), d_keys, None, None


_attend.defvjp(_forward, _backward)


def _pairs(ring: Ring, me: jax.Array, number: Any) -> list[tuple[Any, Any]]:
    """Which chunks of queries read which of the keys at this turn; every device has as many pairs.

    Keys came from device me - number. In zig-zag, chunk 2n - 1 - i sees the first chunk of every
    device; besides, queries see the first chunks of devices before (pair 0, 0), or second chunks of
    devices behind (pair 1, 1).
    """
    if not ring.causal:
        return [(0, 0)]
    if isinstance(number, int) and number == 0:
        return [(0, 0), (1, 0), (1, 1)]
    behind = jnp.where(number <= me, 0, 1)  # without a wrap, the keys' device is before this one
    return [(1, 0), (behind, behind)]


def _seen(ring, query_segments, key_segments, window, me, number, a, b, length) -> jax.Array:
    """Which keys of chunk b each query of chunk a may see, bool, broadcastable to (B, K, G, C, E)."""
    index = jnp.arange(length)
    queries = ring.numbers(me)[a] * length + index
    keys = ring.numbers((me - number) % ring.size)[b] * length + index
    behind = queries[:, None] - keys[None, :]
    seen = jnp.ones((1, length, length), bool)
    if ring.causal:
        seen = (behind >= 0)[None]
    if window is not None:
        seen = seen & ((behind if ring.causal else jnp.abs(behind)) < window)[None]
    if key_segments is not None:
        own = _at(key_segments, b)[:, None, :]
        seen = seen & (own > 0)
        if query_segments is not None:
            seen = seen & (own == _at(query_segments, a)[:, :, None])
    return seen[:, None, None]


def _scores(ring: Ring, q_BCKGH: jax.Array, k_BEKH: jax.Array) -> jax.Array:
    """Scaled and capped products, float32 (B, K, G, C, E)."""
    scores = _product("BCKGH,BEKH->BKGCE", q_BCKGH, k_BEKH) * ring.scale
    return scores if ring.softcap is None else ring.softcap * jnp.tanh(scores / ring.softcap)


def _add(ring: Ring, part: Softmax, q, k, v, seen: jax.Array) -> Softmax:
    """The softmax with one more chunk of keys in it."""
    scores = jnp.where(seen, _scores(ring, q, k), LOWEST)
    most = jnp.maximum(part.most, jnp.max(scores, axis=-1))
    p = jnp.where(seen, jnp.exp(scores - most[..., None]), 0.0)
    shrunk = jnp.exp(part.most - most)
    out = part.out * shrunk[..., None] + _product("BKGCE,BEKH->BKGCH", p.astype(v.dtype), v)
    return Softmax(out, most, part.total * shrunk + jnp.sum(p, axis=-1))


def _product(equation: str, *operands: jax.Array) -> jax.Array:
    return jnp.einsum(equation, *operands, preferred_element_type=jnp.float32)


def _at(x: jax.Array, number: Any) -> jax.Array:
    return jax.lax.dynamic_index_in_dim(x, number, keepdims=False)


def check_length(length: int, causal: bool) -> None:
    """Raises UserError where a length does not divide into the ring's chunks."""
    size = layout.parts("length")
    unit = size * (2 if causal else 1)
    if length % unit:
        below, above = length // unit * unit, -(-length // unit) * unit
        would = f"{below} or {above}" if below else f"{above}"
        raise UserError(
            f"config.mesh.sequence: rows of {length} do not divide into {unit} chunks"
            + (", two of each device" if causal else "")
            + f"; rows of {would} would"
        )


def zigzag(x: jax.Array) -> jax.Array:
    """(B, T, ...), its length split: from the plain order into zig-zag."""
    return _reordered(x, _to_zigzag)


def unzigzag(x: jax.Array) -> jax.Array:
    """(B, T, ...), its length split: from zig-zag into the plain order."""
    return _reordered(x, _from_zigzag)


def _reordered(x: jax.Array, local: Any) -> jax.Array:
    laid = layout.layout()
    names = ("batch", "length", *(None,) * (x.ndim - 2))
    move = functools.partial(local, laid.axes("length"), laid.parts("length"))
    return laid.per_part(move, (names,), names)(x)


def _to_zigzag(axes: tuple[str, ...], size: int, x: jax.Array) -> jax.Array:
    """Device i's chunks 2i and 2i + 1 go to where zig-zag has them, each in one permutation."""
    sent = [
        jax.lax.ppermute(chunk, axes, [(i, _home(2 * i + s, size)) for i in range(size)])
        for s, chunk in enumerate(jnp.split(x, 2, axis=1))
    ]
    # Even devices have an even first chunk, which was sent as such, and an odd second one.
    return _swapped_on_odd(axes, sent)


def _from_zigzag(axes: tuple[str, ...], size: int, x: jax.Array) -> jax.Array:
    chunks = jnp.split(_swapped_on_odd(axes, jnp.split(x, 2, axis=1)), 2, axis=1)
    return jnp.concatenate(
        [
            jax.lax.ppermute(chunk, axes, [(_home(2 * i + s, size), i) for i in range(size)])
            for s, chunk in enumerate(chunks)
        ],
        axis=1,
    )


def _home(chunk: int, size: int) -> int:
    """The device that has this chunk in zig-zag."""
    return min(chunk, 2 * size - 1 - chunk)


def _swapped_on_odd(axes: tuple[str, ...], halves: list[jax.Array]) -> jax.Array:
    first, second = halves
    is_odd = jax.lax.axis_index(axes) % 2 == 1
    return jnp.concatenate(
        [jnp.where(is_odd, second, first), jnp.where(is_odd, first, second)], axis=1
    )
