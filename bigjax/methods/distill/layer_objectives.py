"""Objectives that compare layers of two Transformers: hidden states, attention, relations. See `layers`.

Layers are pairs (student's block, teacher's block), counted from 0. Each pair gives one number a row, a mean
over the row's real tokens; a row weighs as many units as the task's loss counts in it, so that a masked
language model and a classifier of texts are told alike.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from bigjax.core.errors import UserError
from bigjax.core.losses import Pair, masked_sum
from bigjax.methods.distill import layers
from bigjax.methods.distill.objectives import Objective, Seen

Shape = tuple[int, ...]
RELATIONS = {"qk": ("query", "key"), "qq": ("query", "query"), "kk": ("key", "key"), "vv": ("value", "value")}  # fmt: skip


@dataclasses.dataclass(frozen=True, kw_only=True)
class OfLayers(Objective):
    """layers: pairs (student's block, teacher's block). What they give is added up.

    module: the path of what is compared, "{}" for the number of the block.
    segments: key of the batch, (B, T), above 0 where a token is real; None: all are.
    """

    layers: Sequence[Sequence[int]]
    module: str = "block_{}"
    segments: str | None = "segments"

    def __post_init__(self) -> None:
        if not self.layers or any(len(pair) != 2 for pair in self.layers):
            raise UserError(
                f"layers: {tuple(self.layers)} must be pairs (block of the student, block of the teacher)"
            )

    @property
    def parts(self) -> tuple[str, ...]:
        """What of each module is compared, below its path; "" is its output."""
        return ("",)

    @property
    def features(self) -> tuple[tuple[str, str], ...]:
        return tuple(
            (self.module.format(theirs) + part, self.module.format(ours) + part)
            for ours, theirs in self.layers
            for part in self.parts
        )

    def pair(self, seen: Seen) -> Pair:
        units = seen.units.astype(jnp.float32)
        units_B = jnp.sum(units, axis=tuple(range(1, units.ndim)))
        tokens = seen.features[0][0].shape[:2]
        if self.segments is None:
            segments_BT = jnp.ones(tokens, jnp.int32)
        elif self.segments in seen.batch:
            segments_BT = seen.batch[self.segments]
        else:
            raise UserError(f"config.method: segments: the batch has no '{self.segments}'")
        if segments_BT.shape != tokens or len(units_B) != tokens[0]:
            raise UserError(
                f"config.method: features of {tokens} rows and tokens; the batch has "
                f"{segments_BT.shape}, {len(units_B)} of them counted"
            )
        segments_BT = segments_BT * (units_B > 0)[:, None].astype(segments_BT.dtype)
        width = len(self.parts)
        total_B = jnp.zeros_like(units_B)
        for first in range(0, len(seen.features), width):
            theirs, ours = zip(*seen.features[first : first + width], strict=True)
            total_B += self.compare(theirs, ours, segments_BT, seen.own)
        return masked_sum(total_B, units_B)

    def compare(self, teacher: Any, student: Any, segments_BT: jax.Array, own: Any) -> jax.Array:
        """Of one pair of blocks, what their parts give: float32 (B,)."""
        raise NotImplementedError


@dataclasses.dataclass(frozen=True, kw_only=True)
class HiddenStates(OfLayers):
    """What blocks give (or other modules of (B, T, D), by `module`).

    distance: "l2", `layers.hidden_states`, or "cosine", `layers.hidden_angles`.
    projection: a linear map of the student's to the teacher's width, one for all layers, trained.
    """

    projection: bool = True
    distance: Literal["l2", "cosine"] = "l2"

    def check_shapes(self, teacher: Shape, student: Shape) -> None:
        if teacher[:-1] != student[:-1] or len(teacher) != 3:
            raise UserError(
                f"{teacher} of the teacher and {student} are no hidden states of one text"
            )
        if not self.projection and teacher != student:
            raise UserError(
                f"widths {teacher[-1]} and {student[-1]} differ: they need projection=True"
            )

    def parameters(self, rng: jax.Array, teacher: Shape, student: Shape) -> dict[str, jax.Array]:
        if not self.projection:
            return {}
        return {"kernel": nn.initializers.lecun_normal()(rng, (student[-1], teacher[-1]))}

    def compare(self, teacher: Any, student: Any, segments_BT: jax.Array, own: Any) -> jax.Array:
        (t,), (s,) = teacher, student
        distance = {"l2": layers.hidden_states, "cosine": layers.hidden_angles}[self.distance]
        return distance(t, s @ own["kernel"] if self.projection else s, segments_BT)


@dataclasses.dataclass(frozen=True, kw_only=True)
class OfAttention(OfLayers):
    """module: of attention, with "query", "key", "value" inside that give (B, T, N, H), as an encoder has
    them: each token looks at all of its text, and nothing is rotated before the products.
    """

    module: str = "block_{}/attention"

    def check_shapes(self, teacher: Shape, student: Shape) -> None:
        if teacher[:2] != student[:2] or {len(teacher), len(student)} != {4}:
            raise UserError(f"{teacher} of the teacher and {student} are no heads over one text")


@dataclasses.dataclass(frozen=True, kw_only=True)
class AttentionScores(OfAttention):
    """`layers.attention_scores`."""

    @property
    def parts(self) -> tuple[str, ...]:
        return ("/query", "/key")

    def check_shapes(self, teacher: Shape, student: Shape) -> None:
        super().check_shapes(teacher, student)
        if teacher[2] != student[2]:
            raise UserError(
                f"the teacher has {teacher[2]} heads, the student {student[2]}: use relations"
            )

    def compare(self, teacher: Any, student: Any, segments_BT: jax.Array, own: Any) -> jax.Array:
        return layers.attention_scores(teacher, student, layers.pairs_of(segments_BT))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Relations(OfAttention):
    """`layers.relations`; of: "qk" and "vv" are MiniLM's, "qq", "kk" and "vv" those of its version 2.

    heads: of relations; both models' numbers of a token are cut into as many.
    """

    heads: int
    of: Sequence[Literal["qk", "qq", "kk", "vv"]] = ("qk", "vv")

    @property
    def parts(self) -> tuple[str, ...]:
        return ("/query", "/key", "/value")

    def check_shapes(self, teacher: Shape, student: Shape) -> None:
        super().check_shapes(teacher, student)
        for N, H in (teacher[2:], student[2:]):
            if (N * H) % self.heads:
                raise UserError(f"heads: {N * H} numbers do not divide into {self.heads}")

    def compare(self, teacher: Any, student: Any, segments_BT: jax.Array, own: Any) -> jax.Array:
        seen_BTS, total_B = layers.pairs_of(segments_BT), jnp.zeros(len(segments_BT))
        t, s = (dict(zip(("query", "key", "value"), x, strict=True)) for x in (teacher, student))
        for name in self.of:
            x, y = RELATIONS[name]
            total_B += layers.relations((t[x], t[y]), (s[x], s[y]), seen_BTS, self.heads)
        return total_B
