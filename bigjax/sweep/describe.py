"""What a sweep is: the experiment, the points, the seeds, and what is asked of the results."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from bigjax.config.resolve import Config
from bigjax.core.errors import UserError, did_you_mean
from bigjax.sweep.grid import Point

TEST = re.compile(r"(?<![a-z])test(?![a-z])", re.IGNORECASE)


@dataclass(frozen=True)
class Search:
    """Points that are drawn, not listed (see `bigjax.sweep.search`).

    Attributes:
      space: key -> ("log", low, high), ("uniform", low, high), ("int", low, high) or a list of
        choices.
      trials: points to draw in all.
      sampler: "random", or "tpe" (tree-structured Parzen estimator: Bergstra et al. 2011).
      seed: decides what is drawn.
    """

    space: Mapping[str, Any]
    trials: int
    sampler: Literal["random", "tpe"] = "tpe"
    seed: int = 0

    def __post_init__(self) -> None:
        if self.trials < 1:
            raise UserError(f"search: {self.trials} trials; at least 1")
        if self.sampler not in ("random", "tpe"):
            raise UserError(f"search: no sampler '{self.sampler}'; there are random, tpe")
        for key, kind in self.space.items():
            if isinstance(kind, tuple) and kind[:1] in (("log",), ("uniform",), ("int",)):
                if len(kind) != 3 or not kind[1] < kind[2] or (kind[0] == "log" and kind[1] <= 0):
                    raise UserError(f"search: {key}: {kind!r} is no range (KIND, low, high)")
            elif not isinstance(kind, list) or not kind:
                raise UserError(
                    f"search: {key}: {kind!r} is neither ('log' | 'uniform' | 'int', low, high) "
                    "nor a list of choices"
                )


@dataclass(frozen=True)
class Sweep:
    """Trials are points x seeds; each is an ordinary run of the experiment.

    Attributes:
      experiment: module with `get_config`, e.g. "experiments.digits_distill".
      points: see `bigjax.sweep.grid`. Where the experiment is a pipeline, a point's key "stage" says
        which stage it is a point of (default: `stage`, then the last stage), its other keys are that
        stage's, and "stages.NAME.KEY" is a key of a stage that it needs. What trials need in common,
        such as a teacher, runs once.
      seeds: how many (config.seed, config.seed + 1, ...), or which.
      metric: what choices are made by, "eval/SPLIT/NAME".
      mode: whether more or less of it is better.
      test_metric: shown once, for what was chosen.
      overrides: keys that all trials share; for a pipeline, of every stage.
      stage: of a pipeline.
      by: keys whose values name a method; within each method the best point is chosen. Without it
        every point stands for itself and the best of all is chosen.
      baseline: values that pick the point (or method) that the others are compared with.
      interval: of the mean, 95 %: Student's t, or the bootstrap (BCa, Efron 1987).
      select_on_test: says that choosing by a test metric is meant.
      search: draws points instead of listing them.
    """

    experiment: str
    points: Sequence[Point] = field(default=({},))
    seeds: int | Sequence[int] = 1
    metric: str = "eval/validation/accuracy"
    mode: Literal["max", "min"] = "max"
    test_metric: str | None = None
    overrides: Point = field(default_factory=dict)
    stage: str | None = None
    by: Sequence[str] = ()
    baseline: Point | None = None
    interval: Literal["t", "bootstrap"] = "t"
    select_on_test: bool = False
    search: Search | None = None

    def __post_init__(self) -> None:
        if self.mode not in ("max", "min"):
            raise UserError(f"mode: '{self.mode}' is neither max nor min")
        if self.interval not in ("t", "bootstrap"):
            raise UserError(f"interval: '{self.interval}' is neither t nor bootstrap")
        if isinstance(self.seeds, int) and self.seeds < 1:
            raise UserError(f"seeds: {self.seeds}; at least 1")
        if not isinstance(self.seeds, int) and len(set(self.seeds)) != len(self.seeds):
            raise UserError(f"seeds: {list(self.seeds)} names one twice")
        for point in (*self.points, self.overrides, dict(self.search.space) if self.search else {}):
            if "seed" in point:
                raise UserError("seed: say `seeds`, not a point's 'seed'")
        if not self.points:
            raise UserError("the sweep has no points")


def check_metrics(sweep: Sweep, config: Config) -> None:
    """Refuses a metric that no run will have, and a choice made on test data without saying so.

    A split counts as test data if its name, or the data it names, has the word "test" in it.

    Raises:
      UserError: see above.
    """
    for name in filter(None, (sweep.metric, sweep.test_metric)):
        parts = name.split("/")
        if len(parts) != 3 or parts[0] != "eval":
            raise UserError(f"metric '{name}': write eval/SPLIT/NAME")
        splits = config.get("evaluate.splits")
        if parts[1] not in splits:
            raise UserError(
                f"metric '{name}': config.evaluate.splits has no '{parts[1]}'"
                f"{did_you_mean(parts[1], splits)}; it has {', '.join(splits) or 'nothing'}"
            )
    split = sweep.metric.split("/")[1]
    data = str(config.get("data.splits")[split])
    if (TEST.search(split) or TEST.search(data)) and not sweep.select_on_test:
        raise UserError(
            f"metric '{sweep.metric}' chooses on test data ({split} = '{data}'): the chosen one's test "
            "result would be too good. Choose on a validation split, e.g. "
            "config.data.splits.validation='train[80%:]', or say select_on_test"
        )
