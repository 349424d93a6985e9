"""What a sweep is: its points and the plain functions that combine them, its seeds, what is asked of it.

A point is a dict from config key to value, e.g. {"optimizer.learning_rate": 1e-3}.
"""

from __future__ import annotations

import ast
import builtins
import itertools
import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from bigjax.config.values import literal
from bigjax.core.errors import UserError

Point = dict[str, Any]


def over(key: str, values: Iterable[Any]) -> list[Point]:
    """One point a value: over("a", [1, 2]) is [{"a": 1}, {"a": 2}]."""
    return [{key: value} for value in values]


def product(*lists: Sequence[Point]) -> list[Point]:
    """Every combination of one point from each list; the last list turns fastest."""
    return [_merged(points) for points in itertools.product(*lists)]


def zip(*lists: Sequence[Point]) -> list[Point]:
    """The first points together, the second points together, ...

    Raises:
      UserError: the lists are not of one length.
    """
    lengths = [len(points) for points in lists]
    if len(set(lengths)) > 1:
        raise UserError(
            f"zip: the lists have {', '.join(map(str, lengths))} points, not as many each"
        )
    return [_merged(points) for points in builtins.zip(*lists, strict=True)]


def chain(*lists: Sequence[Point]) -> list[Point]:
    """All points of the first list, then all of the second, ..."""
    return [dict(point) for points in lists for point in points]


def subsample(points: Sequence[Point], count: int, seed: int = 0) -> list[Point]:
    """`count` of the points, chosen at random by `seed` alone, in the order they came in.

    Raises:
      UserError: there are not as many.
    """
    if not 0 <= count <= len(points):
        raise UserError(f"subsample: {count} of {len(points)} points")
    chosen = sorted(random.Random(seed).sample(range(len(points)), count))
    return [dict(points[i]) for i in chosen]


def parse_values(text: str) -> list[Any]:
    """The values of a shell list: "1e-3,3e-4", "(30,30),(60,)", "adam,sgd", "None,1.0"."""
    try:
        return list(ast.literal_eval(f"[{text}]"))
    except (ValueError, SyntaxError):
        return [literal(word.strip()) for word in text.split(",")]


def parse_points(text: str) -> list[Point]:
    """The points of a shell list "KEY=V1,V2,..."; KEY may start with "config.".

    Raises:
      UserError: there is no "=", no key or no value.
    """
    key, equals, values = text.partition("=")
    if not (key and equals and values):
        raise UserError(f"'{text}': write KEY=VALUE,VALUE,...")
    return over(key.removeprefix("config."), parse_values(values))


def _merged(points: Iterable[Point]) -> Point:
    merged: Point = {}
    for point in points:
        for key in point:
            if key in merged:
                raise UserError(f"a point cannot have two values of '{key}'")
        merged.update(point)
    return merged


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

    Where the experiment is a pipeline, a point's key "stage" says which stage it is a point of, its
    other keys are that stage's, and "stages.NAME.KEY" is a key of a stage that it needs. What trials
    need in common, such as a teacher, runs once. The command line's flags are these attributes.

    Attributes:
      experiment: module with `get_config`, e.g. "experiments.digits_distill".
      points: what sets trials apart; lists of them are made and combined by the functions above.
      seeds: how many (config.seed, config.seed + 1, ...), or which: 5, or 0,3,7.
      metric: what choices are made by, eval/SPLIT/NAME; default: the task's own, on a validation
        split, for which 10 % of train are held out where the experiment has none.
      mode: whether more or less of it is better, max or min; known for bigjax's own metrics.
      test_metric: shown once, for what was chosen; default: the same on the test split.
      overrides: keys that all trials share; for a pipeline, of every stage.
      stage: of a pipeline; default: the last.
      by: keys whose values name a method; within each method the best point is chosen. Without it
        every point stands for itself and the best of all is chosen.
      baseline: KEY=VALUE: the point (or method) that the others are compared with.
      interval: 95 % one of the mean: t (Student), or bootstrap (BCa, Efron 1987).
      select_on_test: says that choosing by a test metric is meant.
      search: draws points instead of listing them.
      note: said under the table.
      config: the experiment's config, where `experiment` is a mere name and no module.
    """

    experiment: str
    points: Sequence[Point] = field(default=({},))
    seeds: int | Sequence[int] = 1
    metric: str | None = None
    mode: Literal["max", "min"] | None = None
    test_metric: str | None = None
    overrides: Point = field(default_factory=dict)
    stage: str | None = None
    by: Sequence[str] = ()
    baseline: Point | None = None
    interval: Literal["t", "bootstrap"] = "t"
    select_on_test: bool = False
    search: Search | None = None
    note: str = ""
    config: Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        if self.mode not in ("max", "min", None):
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


@dataclass(frozen=True)
class How:
    """How trials are run: nothing here changes a number.

    Attributes:
      vectorize: most small trials that train together in one program; 64 where no number is said.
      retry_failed: run again what failed.
      prune: stop weak trials early, by the median of the others or by successive halving.
    """

    vectorize: int | bool | None = None
    retry_failed: bool = False
    prune: Literal["median", "halving"] | None = None

    def __post_init__(self) -> None:
        if self.vectorize is True:
            object.__setattr__(self, "vectorize", 64)
        if self.vectorize is not None and self.vectorize < 1:
            raise UserError(f"--vectorize={self.vectorize}: at least 1")
        if self.vectorize and self.prune:
            raise UserError("--vectorize runs trials in step: it cannot prune them")
