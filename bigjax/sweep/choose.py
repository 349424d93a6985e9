"""What a sweep chooses by: its metric, its mode, the splits it chooses on and tests on. Pure.

A split counts as test data if its name, or the data it names, has the word "test" in it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from bigjax.config.config import Config
from bigjax.core.errors import UserError, did_you_mean
from bigjax.sweep.describe import Sweep
from bigjax.tasks import scores
from bigjax.tasks.base import Task

TEST = re.compile(r"(?<![a-z])test(?![a-z])", re.IGNORECASE)
PART = re.compile(r"([^\[\]+]+)(?:\[(\d+%?)?:(\d+%?)?\])?")  # NAME, NAME[START:STOP]
HELD_OUT = 10  # % of train, where there is no validation split
NO_SPLIT = "no validation split"
WRITE = "To choose on other data, write --config.data.splits.validation=SPLIT (or --select_on_test)"
LOOKED_AT = 2000  # rows of either split


def filled(sweep: Sweep, stages: Mapping[str, Config], chosen: str) -> Sweep:
    """The sweep with its metric, mode and test metric said, and every split that they need evaluated.

    Args:
      stages: the checked configs of its first point: of each stage, or of "" alone.
      chosen: which of them the point is of.

    Raises:
      UserError: a validation split is needed and cannot be cut off train.
    """
    config = stages[chosen]
    task = config.make("task")
    splits = config.get("data.splits")
    evaluated = tuple(dict.fromkeys((*config.get("evaluate.splits"), *splits)))  # those first
    learned = config.get("data.mixture") or {}
    evaluated = [n for n in evaluated if not n.startswith("train") and n not in learned]
    tests = [name for name in evaluated if _is_test(name, splits)]
    others = [name for name in evaluated if name not in tests]
    others.sort(key=lambda name: name != "validation")  # which goes first
    if sweep.metric:
        split, name = _parts(sweep.metric)
    else:
        split = (tests if sweep.select_on_test and tests else [*others, "validation"])[0]
        name = task.MAIN_METRIC[0]
    test_metric = sweep.test_metric
    if test_metric is None and split not in tests and tests:
        test_metric = f"eval/{tests[0]}/{name}"
    said = replace(
        sweep,
        metric=f"eval/{split}/{name}",
        mode=sweep.mode or mode_of(name, task),
        test_metric=test_metric,
    )
    held_out = split == "validation" and split not in splits
    overrides, note = _held_out(sweep, stages) if held_out else ({}, sweep.note)
    wanted = {split} | ({_parts(test_metric)[0]} if test_metric else set())
    for stage, values in stages.items():
        known, there = values.get("evaluate.splits"), set(values.get("data.splits"))
        there |= {"validation"} if held_out else set()
        if missing := sorted((wanted & there) - set(known)):
            overrides[_key(stage, "evaluate.splits")] = (*known, *missing)
    return replace(said, overrides={**sweep.overrides, **overrides}, note=note)


def _held_out(sweep: Sweep, stages: Mapping[str, Config]) -> tuple[dict[str, Any], str]:
    """(the overrides that cut a validation split off train, in every stage that lacks one; a note)."""
    points = (*sweep.points, sweep.search.space if sweep.search else {})
    if any(re.search(r"(^|\.)data\.", key) for point in points for key in point):
        raise UserError(f"the points change data, and there is {NO_SPLIT} to choose on. {WRITE}")
    overrides = {}
    for stage, values in stages.items():
        splits = values.get("data.splits")
        if "validation" not in splits:
            train, held_out = cut(splits["train"])
            overrides[_key(stage, "data.splits.train")] = train
            overrides[_key(stage, "data.splits.validation")] = held_out
    note = f"{NO_SPLIT}: {HELD_OUT} % of train ({held_out}) were held out for choosing. {WRITE}"
    return overrides, note


def _key(stage: str, key: str) -> str:
    return f"stages.{stage}.{key}" if stage else key


def cut(train: str) -> tuple[str, str]:
    """A split without its last tenth, and that tenth: "train[:80%]" -> "train[:72%]", "train[72%:80%]".

    Raises:
      UserError: the split is written in a way that does not say where it ends.
    """
    match = PART.fullmatch(train)
    name, start, stop = match.groups() if match else (None, None, None)
    ends = [end for end in (start, stop) if end]
    in_percent = [end.endswith("%") for end in ends]
    percent = "%" if all(in_percent) else ""
    if name is None or len(set(in_percent)) > 1 or not (percent or stop):
        raise UserError(f"{NO_SPLIT}, and none can be cut off train='{train}'. {WRITE}")
    low, high = int((start or "0").rstrip("%")), int((stop or "100").rstrip("%"))
    middle = f"{high - max(1, round((high - low) * HELD_OUT / 100))}{percent}"
    return f"{name}[{start or ''}:{middle}]", f"{name}[{middle}:{stop or ''}]"


def mode_of(name: str, task: Task) -> str:
    """Whether more ("max") or less ("min") of a metric is better.

    Raises:
      UserError: it is neither the task's main one nor one of bigjax's own.
    """
    mode = task.MAIN_METRIC[1] if name == task.MAIN_METRIC[0] else scores.mode(name)
    if mode is None:
        raise UserError(f"metric '{name}': say what is better, --mode=max or --mode=min")
    return mode


def check(sweep: Sweep, config: Config) -> None:
    """Refuses a metric that no run will have, and a choice made on test data without saying so.

    Raises:
      UserError: see above.
    """
    splits = config.get("evaluate.splits")
    for metric in filter(None, (sweep.metric, sweep.test_metric)):
        split, _ = _parts(metric)
        if split not in splits:
            raise UserError(
                f"metric '{metric}': config.evaluate.splits has no '{split}'"
                f"{did_you_mean(split, splits)}; it has {', '.join(splits) or 'nothing'}"
            )
    split, data = _parts(sweep.metric)[0], config.get("data.splits")
    if _is_test(split, data) and not sweep.select_on_test:
        raise UserError(
            f"metric '{sweep.metric}' chooses on test data ({split} = '{data[split]}'): the chosen "
            "one's test result would be too good. Leave the metric out (10 % of train are then held "
            "out), write --config.data.splits.validation=SPLIT, or say --select_on_test"
        )


def check_held_out(sweep: Sweep, task: Any, train: Any, held_out: Any) -> None:
    """Refuses to choose on the end of a split that is in order of its classes.

    Raises:
      UserError: a class that is at least 5 % of train is not among the rows held out from it.
    """
    key = getattr(task, "label", None)
    if not sweep.note.startswith(NO_SPLIT) or key is None:
        return
    seen = []
    for source in (train, held_out):
        rows = np.unique(np.linspace(0, len(source) - 1, LOOKED_AT).astype(int))
        seen.append(np.asarray(source.read(rows)[key]))
    if seen[0].ndim == 1 and np.issubdtype(seen[0].dtype, np.integer) and len(held_out) >= 100:
        classes, counts = np.unique(seen[0], return_counts=True)
        common = classes[counts >= 0.05 * len(seen[0])]
        if missing := sorted(set(common.tolist()) - set(seen[1].tolist())):
            raise UserError(
                f"{NO_SPLIT}, and the last {HELD_OUT} % of train hold no example of class "
                f"{', '.join(map(str, missing))}: train is in order. {WRITE}"
            )


def _parts(metric: str) -> tuple[str, str]:
    parts = metric.split("/")
    if len(parts) != 3 or parts[0] != "eval":
        raise UserError(f"metric '{metric}': write eval/SPLIT/NAME")
    return parts[1], parts[2]


def _is_test(split: str, splits: Mapping[str, str]) -> bool:
    return bool(TEST.search(split) or TEST.search(str(splits.get(split, ""))))
