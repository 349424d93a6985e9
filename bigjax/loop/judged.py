"""The evaluator of text that a student writes, as its teacher judges it."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bigjax.build.assemble import Setup
from bigjax.core.errors import UserError
from bigjax.loop.evaluate import eval_batches
from bigjax.loop.evaluators import BesideTeacher, Seen
from bigjax.mesh import distributed
from bigjax.models.generate import Sampling
from bigjax.tasks.language_model import LanguageModel

WRITTEN = "written"  # key of the batch: which tokens the student wrote


@dataclasses.dataclass(frozen=True)
class Judged(BesideTeacher):
    """The student writes on from the first tokens of each row; both models say how likely that is.

    Metrics, in nats per written token: "teacher_log_likelihood", log p of the teacher; "student_log_likelihood",
    log q of the student, of one that draws at temperature 1 minus its entropy; "reverse_kl", log q - log p,
    whose mean is then KL(student || teacher) on the student's own text (Agarwal et al. 2024, section 3.1).
    "real_log_likelihood": the teacher's, of the same positions of the data's text.

    prompt: tokens of each row that are given.
    temperature: of the draws; 0: greedy. They depend on the run's seed and the step alone.
    """

    prompt: int = 8
    temperature: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        Sampling(temperature=self.temperature)

    def check(self, setup: Setup, folder: Path) -> None:
        super().check(setup, folder)
        if not isinstance(setup.program.task, LanguageModel):
            raise UserError(
                f"the task {type(setup.program.task).__name__} writes on from no text; use language_model"
            )
        setup.program.task.check_rewritten(setup.sources[self.data].features, self.prompt, ())

    def evaluate(self, seen: Seen) -> dict[str, Any]:
        setup, program = seen.setup, seen.setup.program
        reference, frozen = setup.read_model(self.teacher)
        task = dataclasses.replace(program.task, token_mask=WRITTEN)

        @jax.jit
        def sums(own: Any, frozen: Any, batch: Any, key: jax.Array) -> Any:
            def log_likelihood(model: Any, variables: Any, batch: Any) -> Any:
                return task.loss(model.apply(variables, *task.inputs(batch), train=False), batch)[0]

            def sampling(length: int) -> Sampling:
                return Sampling(length, self.temperature)

            tokens = task.inputs(batch)[0]
            after = jnp.broadcast_to(jnp.arange(tokens.shape[1]) >= self.prompt, tokens.shape)
            batch = {**batch, WRITTEN: after}
            text = task.rewritten(program.model.apply, own, batch, sampling, self.prompt, key)
            return {
                "teacher": log_likelihood(reference.model, frozen, text),
                "student": log_likelihood(program.model, own, text),
                "real": log_likelihood(reference.model, frozen, batch),
            }

        own, total = seen.variables, None
        source = setup.sources[self.data]
        for i, batch in enumerate(eval_batches(program, source, setup.eval_batch_size)):
            key = jax.random.fold_in(seen.rng, i)
            found = jax.tree.map(distributed.whole, sums(own, frozen, batch, key))
            total = found if total is None else jax.tree.map(np.add, total, found)
        mean = {name: -float(loss / count) for name, (loss, count) in total.items()}
        found = {f"{name}_log_likelihood": value for name, value in mean.items()}
        return {**found, "reverse_kl": mean["student"] - mean["teacher"]}
