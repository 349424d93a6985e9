"""Text that a model writes in place of the data's: sequence-level and on-policy distillation. Pure.

    written=dict(by="student", share=0.5, prompt=8, temperature=1.0)    on-policy (GKD)
    written=dict(by="teacher")                                          sequence-level

Before a step the rows' text is written anew: by the student as it stands, so that its teacher judges what
the student itself would say (Agarwal et al. 2024, "On-policy distillation of language models", algorithm 1),
or by a teacher, so that the student learns its mode as if it were data (Kim & Rush 2016, "Sequence-level
knowledge distillation", section 3.2; greedy, or drawn, in place of their beam search). No gradient passes
through what is drawn. Any objective then compares the two on that text.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax

from bigjax.core.errors import UserError, did_you_mean
from bigjax.core.method import Batch, Facts, Scope
from bigjax.models.generate import Sampling
from bigjax.tasks.base import Task

STUDENT = "student"


@dataclasses.dataclass(frozen=True)
class Written:
    """by: "student", or the name of a teacher.

    share: of the steps whose text is written; the others see the data's (lambda in GKD).
    prompt: tokens of each row that are kept, for a task without a source text.
    temperature, top_k, top_p, stop: see `bigjax.models.generate.Sampling`.
    """

    by: str
    share: float = 1.0
    prompt: int | None = None
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    stop: Sequence[int] = ()

    def __post_init__(self) -> None:
        if not 0 < self.share <= 1:
            raise UserError(f"written.share: {self.share} must be above 0 and at most 1")
        self.sampling(1)

    def sampling(self, length: int) -> Sampling:
        """How at most `length` tokens are chosen."""
        return Sampling(length, self.temperature, self.top_k, self.top_p, tuple(self.stop))

    def check_writer(self, teachers: Mapping[str, str]) -> None:
        if self.by != STUDENT and self.by not in teachers:
            known = (STUDENT, *teachers)
            raise UserError(
                f"written.by: no '{self.by}'{did_you_mean(self.by, known)}; known: {', '.join(known)}"
            )

    def check(self, facts: Facts, cache: str | None) -> None:
        """Refuses what is not written, or not heard by its teacher.

        Raises:
          UserError: says what does not go together.
        """
        if cache is not None:
            raise UserError(
                "config.method.written: no cache holds text of this step; leave out cache"
            )
        if type(facts.task).rewritten is Task.rewritten:
            raise UserError(
                f"config.method.written: the task {type(facts.task).__name__} writes no text; use "
                "language_model or seq2seq"
            )
        try:
            facts.task.check_rewritten(facts.source.features, self.prompt, self.stop)
        except UserError as error:
            raise UserError(f"config.method.written.{error}") from None

    def batch(
        self, references: Mapping[str, str], params: Any, batch: Batch, scope: Scope
    ) -> Batch:
        """The batch, its text written anew; references: name of a teacher -> its name in the scope."""
        if scope.views:
            raise UserError(
                "config.method.written: teachers read the text that is written, so their "
                "config.data.preprocess must be this run's"
            )
        if self.by == STUDENT:
            apply, variables = scope.model.apply, {"params": params, **scope.collections}
        else:
            name = references[self.by]
            apply, variables = scope.references[name].model.apply, scope.frozen[name]
        chance_key, key = jax.random.split(jax.random.fold_in(scope.rng, 0x3717))

        def write(batch: Batch) -> Batch:
            return scope.task.rewritten(apply, variables, batch, self.sampling, self.prompt, key)

        if self.share == 1:
            return write(batch)
        chosen = jax.random.uniform(chance_key) < self.share
        return jax.lax.cond(chosen, write, lambda batch: batch, batch)
