"""The objectives that `config.method.objectives` names, each with its weight. Pure.

`dict(NAME=dict(type=..., weight=..., ...))`: a name of the user's, by which it is overridden, swept and
logged ("train/objectives/NAME"). The mathematics is in `losses`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, ClassVar, Literal, NamedTuple

import jax
import jax.numpy as jnp

from bigjax.core.errors import UserError
from bigjax.core.losses import Pair, hide_masked, kl_divergence
from bigjax.core.marks import Traced
from bigjax.core.method import Batch, Facts
from bigjax.methods.distill import features, losses
from bigjax.tasks.base import Task

ONLY_TEACHER = "teacher"
EMA = "ema"  # the teacher that is the student's own moving average


class Seen(NamedTuple):
    """What an objective compares, of teacher and student on the same examples.

    teacher, student: their outputs. features: pairs (teacher's, student's), as the objective names them.
    own: the objective's own trained leaves. memory: what it keeps between steps, or None.
    """

    task: Any
    batch: Batch
    teacher: Any
    student: Any
    features: Sequence[tuple[jax.Array, jax.Array]] = ()
    own: Any = None
    memory: Any = None

    @property
    def units(self) -> jax.Array:
        """The mask (*U,) of the units that the task's loss counts."""
        return self.task.units(self.student, self.batch)

    def distributions(self) -> tuple[jax.Array, jax.Array, jax.Array]:
        """(teacher's logits, student's, mask): see `Task.distributions`."""
        (t, _), (s, mask) = (
            self.task.distributions(x, self.batch) for x in (self.teacher, self.student)
        )
        if t.shape != s.shape:
            raise UserError(f"config.method: the teacher gives {t.shape}, the student {s.shape}")
        return t, s, mask


@dataclasses.dataclass(frozen=True)
class Objective:
    """The base class.

    weight: of its mean over the units; schedule: what the weight is multiplied by, over the run.
    teacher: a name in `method.teachers`; default the one of `method.teacher`; "ema" is the student's own
        moving average, which `train.ema_decay` keeps.
    student_output: path of a module of the student whose output is compared in place of the model's, such as
        the "distillation_head" of a ViT.
    COMPARES_EXAMPLES: whether what it says of an example depends on the others of its batch.
    NEEDS_ALL: whether it has no meaning with some of the teacher's outputs only.
    LISTENS: whether it asks a teacher at all.
    """

    COMPARES_EXAMPLES: ClassVar[bool] = False
    NEEDS_ALL: ClassVar[bool] = False
    LISTENS: ClassVar[bool] = True

    weight: Traced = 1.0
    schedule: Any = None
    teacher: str = ONLY_TEACHER
    student_output: str | None = None

    def check(self, facts: Facts) -> None:
        """Refuses, by name, what it cannot be told of.

        Raises:
          UserError: says what does not go together.
        """
        if self.schedule is not None:
            self.schedule.check(facts.total_steps)
        if self.COMPARES_EXAMPLES and facts.train.accumulate > 1:
            raise UserError("compares the examples of a batch: config.train.accumulate must be 1")
        if self.COMPARES_EXAMPLES and facts.sharding.mode == "shard_map":
            raise UserError("compares the examples of a batch: config.sharding.mode must be jit")

    def at(self, step: jax.Array, total_steps: int, temperature: jax.Array) -> Objective:
        """The objective of a step; temperature: the method's, for those that say none."""
        if self.schedule is None:
            return self
        return dataclasses.replace(self, weight=self.weight * self.schedule(step, total_steps))

    @property
    def scale(self) -> Any:
        """What the gradient is multiplied by beside the weight."""
        return 1.0

    @property
    def features(self) -> tuple[tuple[str, str], ...]:
        """Pairs of paths of the modules in teacher and student whose outputs it compares, if it does."""
        return ()

    def check_shapes(self, teacher: Any, student: Any) -> None:
        """Refuses a pair of features of shapes that cannot be compared.

        Raises:
          UserError: says which they are.
        """

    def parameters(self, rng: jax.Array, teacher: Any, student: Any) -> dict[str, jax.Array]:
        """Trained leaves of its own, for features of these shapes: those of the first pair."""
        return {}

    def memory(self) -> Any:
        """What it keeps between steps, before the first: a tree of arrays, or None."""
        return None

    def turned(self, memory: Any) -> Any:
        """The memory at the start of a step, from that after the one before."""
        return memory

    def remembered(self, seen: Seen) -> Any:
        """The memory after these examples: sums over them, as microbatches come one by one."""
        return seen.memory

    def pair(self, seen: Seen) -> Pair:
        """(sum over the units of the task's loss, their weight), without weight and scale."""
        raise NotImplementedError


@dataclasses.dataclass(frozen=True)
class Labels(Objective):
    """The task's own loss, where objectives are mixed with it as a paper says; see method.alpha."""

    LISTENS: ClassVar[bool] = False

    def pair(self, seen: Seen) -> Pair:
        return seen.task.loss(seen.student, seen.batch)[0]


@dataclasses.dataclass(frozen=True)
class OfDistributions(Objective):
    """Compares softmax outputs: classes, tokens, labels one by one, similarities."""

    def check(self, facts: Facts) -> None:
        super().check(facts)
        if type(facts.task).distributions is Task.distributions:
            raise UserError(
                f"the outputs of the task {type(facts.task).__name__} are no distributions; "
                "use 'soft', the task's own divergence"
            )


@dataclasses.dataclass(frozen=True)
class Softened(Objective):
    """Compares softmax(logits / T), times T^2, so that gradients keep their size (Hinton et al. 2015, 2).

    temperature: T; default the method's. temperature_schedule: what it is multiplied by, over the run.
    """

    temperature: Traced | None = None
    temperature_schedule: Any = None

    def check(self, facts: Facts) -> None:
        super().check(facts)
        if self.temperature is not None and self.temperature <= 0:
            raise UserError(f"temperature: {self.temperature!r} must be more than 0")
        if self.temperature_schedule is not None:
            self.temperature_schedule.check(facts.total_steps)

    def at(self, step: jax.Array, total_steps: int, temperature: jax.Array) -> Objective:
        now = super().at(step, total_steps, temperature)
        temperature = temperature if self.temperature is None else self.temperature
        if self.temperature_schedule is not None:
            temperature = temperature * self.temperature_schedule(step, total_steps)
        return dataclasses.replace(now, temperature=temperature)

    @property
    def scale(self) -> Any:
        return self.temperature**2


@dataclasses.dataclass(frozen=True)
class Soft(Softened):
    """The task's own divergence, for classes KL(teacher || student) (Hinton et al. 2015, section 2)."""

    def check(self, facts: Facts) -> None:
        super().check(facts)
        facts.task.check_divergence()

    def pair(self, seen: Seen) -> Pair:
        return seen.task.divergence(seen.teacher, seen.student, seen.batch, self.temperature)


@dataclasses.dataclass(frozen=True)
class ReverseKL(Softened, OfDistributions):
    """KL(student || teacher): seeks modes (Gu et al. 2024, "MiniLLM", eq. 1)."""

    NEEDS_ALL: ClassVar[bool] = True

    def pair(self, seen: Seen) -> Pair:
        teacher, student, mask = seen.distributions()
        return kl_divergence(student, teacher, mask, self.temperature)


@dataclasses.dataclass(frozen=True)
class JSD(Softened, OfDistributions):
    """Generalised Jensen-Shannon divergence, `losses.jensen_shannon`."""

    beta: Traced = 0.5

    def check(self, facts: Facts) -> None:
        super().check(facts)
        if not 0 < self.beta < 1:
            raise UserError(f"beta: {self.beta} must lie between 0 and 1, both excluded")

    def pair(self, seen: Seen) -> Pair:
        return losses.jensen_shannon(*seen.distributions(), self.temperature, self.beta)


@dataclasses.dataclass(frozen=True)
class Logits(OfDistributions):
    """Squared distance of the logits, `losses.logit_matching`."""

    NEEDS_ALL: ClassVar[bool] = True

    def pair(self, seen: Seen) -> Pair:
        return losses.logit_matching(*seen.distributions())


@dataclasses.dataclass(frozen=True)
class Outputs(Objective):
    """The student's outputs are to be the teacher's, number by number: embeddings of sentences.

    Reimers & Gurevych 2020, "Making monolingual sentence embeddings multilingual using knowledge
    distillation", eq. 1: their squared distance.

    distance: "l2", `features.squared`; "cosine", `features.cosine`.
    """

    NEEDS_ALL: ClassVar[bool] = True

    distance: Literal["l2", "cosine"] = "l2"

    def pair(self, seen: Seen) -> Pair:
        if (t := jnp.shape(seen.teacher)) != (s := jnp.shape(seen.student)):
            raise UserError(f"config.method: the teacher gives {t}, the student {s}")
        units = seen.units
        teacher, student = (
            features.of_units(x, units, "outputs") for x in (seen.teacher, seen.student)
        )
        return features.DISTANCES[self.distance](teacher, student, units, units)


@dataclasses.dataclass(frozen=True)
class DKD(Softened, OfDistributions):
    """`losses.decoupled`; alpha and beta as in the paper's experiments on CIFAR-100."""

    alpha: Traced = 1.0
    beta: Traced = 8.0

    def pair(self, seen: Seen) -> Pair:
        teacher, student, mask = seen.distributions()
        labels = seen.task.targets(seen.student, seen.batch)
        return losses.decoupled(
            teacher, student, labels, mask, self.temperature, self.alpha, self.beta
        )


@dataclasses.dataclass(frozen=True)
class DIST(Softened, OfDistributions):
    """`losses.correlation`; beta weighs the relations between classes, gamma those within one."""

    COMPARES_EXAMPLES: ClassVar[bool] = True

    beta: Traced = 1.0
    gamma: Traced = 1.0

    def pair(self, seen: Seen) -> Pair:
        return losses.correlation(*seen.distributions(), self.temperature, self.beta, self.gamma)


@dataclasses.dataclass(frozen=True)
class Hard(OfDistributions):
    """Cross-entropy against the teacher's likeliest class, `losses.hard_labels`."""

    def pair(self, seen: Seen) -> Pair:
        return losses.hard_labels(*seen.distributions())


@dataclasses.dataclass(frozen=True, kw_only=True)
class Dino(OfDistributions):
    """-sum p log q with p = softmax((t - c) / teacher_temperature), q = softmax(s / student_temperature).

    Caron et al. 2021, "Emerging properties in self-supervised vision transformers" (DINO), eq. 1 with the
    centring of eq. 4: c = momentum c + (1 - momentum) times the mean of the teacher's outputs over a batch,
    of the batches before this one. Centring alone tends to uniform outputs, sharpening to one-hot ones:
    together they keep a teacher that is the student's own average ("ema") from collapsing.

    outputs: K, how many the model has.
    """

    outputs: int
    student_temperature: Traced = 0.1
    teacher_temperature: Traced = 0.04
    momentum: Traced = 0.9

    def check(self, facts: Facts) -> None:
        super().check(facts)
        if facts.sharding.mode == "shard_map":
            raise UserError("centres over a batch: config.sharding.mode must be jit")
        found = features.shapes(facts.calls["model"]).get("", (None,))[-1]
        if found != self.outputs:
            raise UserError(f"outputs: {self.outputs}, but the model has {found}")

    def memory(self) -> Any:
        zeros = jnp.zeros(self.outputs)
        return {"centre": zeros, "sum": zeros, "weight": jnp.zeros(())}

    def turned(self, memory: Any) -> Any:
        mean = memory["sum"] / jnp.maximum(memory["weight"], 1.0)
        moved = self.momentum * memory["centre"] + (1 - self.momentum) * mean
        centre = jnp.where(memory["weight"] > 0, moved, memory["centre"])
        return {**jax.tree.map(jnp.zeros_like, memory), "centre": centre}

    def remembered(self, seen: Seen) -> Any:
        teacher, _, mask = seen.distributions()
        rows = hide_masked(teacher, mask).reshape(-1, self.outputs)
        counted = jnp.sum(mask.astype(jnp.float32)) * (len(rows) / mask.size)
        memory = seen.memory
        return {
            **memory,
            "sum": memory["sum"] + jnp.sum(rows, axis=0),
            "weight": memory["weight"] + counted,
        }

    def pair(self, seen: Seen) -> Pair:
        teacher, student, mask = seen.distributions()
        return losses.centred(
            teacher,
            student,
            mask,
            seen.memory["centre"],
            self.teacher_temperature,
            self.student_temperature,
        )
