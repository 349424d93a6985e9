"""Objectives that compare features: what modules inside the two models give. See `features`."""

from __future__ import annotations

import dataclasses
import math
from typing import Any, ClassVar, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from bigjax.core.errors import UserError
from bigjax.core.losses import Pair
from bigjax.core.marks import Traced
from bigjax.methods.distill import features
from bigjax.methods.distill.objectives import Objective, Seen

Shape = tuple[int, ...]
init = nn.initializers.lecun_normal()


@dataclasses.dataclass(frozen=True, kw_only=True)
class OfFeatures(Objective):
    """student_feature, teacher_feature: paths of modules, such as "dense_0" or "block_3"."""

    student_feature: str
    teacher_feature: str

    @property
    def features(self) -> tuple[tuple[str, str], ...]:
        return ((self.teacher_feature, self.student_feature),)

    def check_shapes(self, teacher: Shape, student: Shape) -> None:
        """Refuses features that cannot be compared; (rows, ..., channels) each."""

    def pair(self, seen: Seen) -> Pair:
        teacher, student = (
            features.of_units(x, seen.units, path)
            for x, path in zip(seen.features[0], self.features[0], strict=True)
        )
        return self.compare(teacher, student, seen)

    def compare(self, teacher: jax.Array, student: jax.Array, seen: Seen) -> Pair:
        raise NotImplementedError


def check_positions(teacher: Shape, student: Shape) -> None:
    if teacher[:-1] != student[:-1]:
        raise UserError(
            f"the features have other positions: {teacher[1:]} of the teacher, {student[1:]} of the "
            "student (positions, then channels)"
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Hint(OfFeatures):
    """The student's feature, mapped to the teacher's width, is to be the teacher's (FitNets).

    projection: a linear map (C_student, C_teacher), trained with the student and no part of it; False: the
        widths are the same and the features are compared as they are.
    distance: "l2", `features.squared`; "cosine", `features.cosine`.
    real: key of the batch, (B, T), above 0 where a position of a text counts; None: all do.
    """

    projection: bool = True
    distance: Literal["l2", "cosine"] = "l2"
    real: str | None = None

    def check_shapes(self, teacher: Shape, student: Shape) -> None:
        check_positions(teacher, student)
        if not self.projection and teacher != student:
            raise UserError(
                f"widths {teacher[-1]} and {student[-1]} differ: they need projection=True"
            )

    def parameters(self, rng: jax.Array, teacher: Shape, student: Shape) -> dict[str, jax.Array]:
        return {"kernel": init(rng, (student[-1], teacher[-1]))} if self.projection else {}

    def compare(self, teacher: jax.Array, student: jax.Array, seen: Seen) -> Pair:
        if self.projection:
            student = student @ seen.own["kernel"]
        real = seen.units if self.real is None else seen.batch[self.real]
        return features.DISTANCES[self.distance](teacher, student, seen.units, real)


@dataclasses.dataclass(frozen=True, kw_only=True)
class AttentionTransfer(OfFeatures):
    """Where the two look: `features.attention_map`."""

    def check_shapes(self, teacher: Shape, student: Shape) -> None:
        check_positions(teacher, student)

    def compare(self, teacher: jax.Array, student: jax.Array, seen: Seen) -> Pair:
        return features.attention_map(teacher, student, seen.units)


@dataclasses.dataclass(frozen=True, kw_only=True)
class OfRows(OfFeatures):
    """Compares how the examples of a batch lie to one another, each the whole feature as one vector."""

    COMPARES_EXAMPLES: ClassVar[bool] = True

    def pair(self, seen: Seen) -> Pair:
        mask = seen.batch["mask"]
        teacher, student = (
            features.of_units(x, mask, path).reshape(len(mask), -1)
            for x, path in zip(seen.features[0], self.features[0], strict=True)
        )
        weight = jnp.sum(seen.units.astype(jnp.float32))
        return weight * self.relation(teacher, student, mask, seen.own), weight

    def relation(self, teacher: jax.Array, student: jax.Array, mask: jax.Array, own: Any) -> Any:
        raise NotImplementedError


@dataclasses.dataclass(frozen=True, kw_only=True)
class Relational(OfRows):
    """Distances and angles between examples, `features.relations`."""

    distance: Traced = 1.0
    angle: Traced = 2.0

    def relation(self, teacher, student, mask, own):
        return features.relations(teacher, student, mask, self.distance, self.angle)


@dataclasses.dataclass(frozen=True, kw_only=True)
class SimilarityPreserving(OfRows):
    """Which examples are alike, `features.similarities`."""

    def relation(self, teacher, student, mask, own):
        return features.similarities(teacher, student, mask)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Contrast(OfRows):
    """`features.contrast` of both features mapped to `width` numbers, by trained linear maps."""

    width: int = 128
    sharpness: Traced = 0.07

    def parameters(self, rng: jax.Array, teacher: Shape, student: Shape) -> dict[str, jax.Array]:
        sizes = {"teacher": teacher[1:], "student": student[1:]}
        return {
            name: init(jax.random.fold_in(rng, i), (math.prod(shape), self.width))
            for i, (name, shape) in enumerate(sizes.items())
        }

    def relation(self, teacher, student, mask, own):
        mapped = (teacher @ own["teacher"], student @ own["student"])
        return features.contrast(*mapped, mask, self.sharpness)
