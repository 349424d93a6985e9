"""Evaluators: what is measured beside the task's own metrics, with data and a rhythm of its own.

`config.evaluators = dict(NAME=dict(type=..., every=..., data=...))`; what it gives is logged as
"eval/NAME/METRIC". A new one is a dataclass that inherits from `Evaluator`, and one line in names.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import jax

from bigjax.build.assemble import Setup
from bigjax.core.errors import UserError, did_you_mean
from bigjax.core.state import TrainState


@dataclasses.dataclass(frozen=True)
class Seen:
    """What an evaluator is shown.

    setup: the run: its sources, its program with model, task and method.
    state, frozen: of now; `variables` are the Linen variables that the run is judged by.
    step: updates done.
    folder: the run's; pictures for the report: see `bigjax.run.pictures`.
    name: the evaluator's, in `config.evaluators`.
    """

    setup: Setup
    state: TrainState
    frozen: Any
    step: int
    folder: Path
    name: str

    @property
    def variables(self) -> Any:
        return self.setup.program.evaluation_variables(self.state, self.frozen)

    @property
    def rng(self) -> jax.Array:
        """A key that depends on the run's seed and the step alone."""
        return jax.random.fold_in(jax.random.key(self.setup.seed), self.step)


@dataclasses.dataclass(frozen=True)
class Evaluator:
    """The base class.

    every: when (see `bigjax.config.when`).
    data: one of `config.data.splits`, where it needs examples.
    """

    every: int | float | str = "end"
    data: str | None = None

    def check(self, setup: Setup, folder: Path) -> None:
        """Refuses, before the first step, what cannot be measured; folder: the run's.

        Raises:
          UserError: says what does not go together, and what would.
        """
        alone = type(self).evaluate_all is Evaluator.evaluate_all
        if setup.program.trials is not None and alone:
            raise UserError(
                f"--vectorize: the evaluator {type(self).__name__} sees one run alone; "
                "run these trials one by one"
            )

    def evaluate(self, seen: Seen) -> dict[str, Any]:
        """Metric -> number (or nested list), of one run."""
        raise NotImplementedError

    def evaluate_all(self, seen: Seen) -> list[dict[str, Any]]:
        """The metrics of each run that is trained; most evaluators see one run alone."""
        return [self.evaluate(seen)]


@dataclasses.dataclass(frozen=True)
class BesideTeacher(Evaluator):
    """The base of those that hold the run's model against one that its method reads, on a split.

    teacher: the field of the method that names it: "teacher", or "teachers.NAME".
    """

    teacher: str = "teacher"

    def __post_init__(self) -> None:
        if self.data is None:
            raise UserError("data: name the split, one of config.data.splits")

    def check(self, setup: Setup, folder: Path) -> None:
        super().check(setup, folder)
        if self.teacher not in setup.models:
            known = ", ".join(setup.models) or "none"
            raise UserError(
                f"teacher: the method reads no '{self.teacher}'"
                f"{did_you_mean(self.teacher, setup.models)}; it reads {known}"
            )


def check_evaluators(setup: Setup, folder: Path) -> None:
    """Asks every evaluator of a run whether it can measure it."""
    for name, evaluator in setup.evaluators.items():
        try:
            evaluator.check(setup, folder)
        except UserError as error:
            raise UserError(f"config.evaluators.{name}: {error}") from None
