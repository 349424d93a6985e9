"""Points of a sweep: lists of overrides, and the pure functions that combine them. Plain values only.

A point is a dict from config key to value, e.g. {"optimizer.learning_rate": 1e-3}.
"""

from __future__ import annotations

import ast
import builtins
import itertools
import random
from collections.abc import Iterable, Sequence
from typing import Any

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
        return [_value(word.strip()) for word in text.split(",")]


def parse_points(text: str) -> list[Point]:
    """The points of a shell list "KEY=V1,V2,..."; KEY may start with "config.".

    Raises:
      UserError: there is no "=", no key or no value.
    """
    key, equals, values = text.partition("=")
    if not (key and equals and values):
        raise UserError(f"'{text}': write KEY=VALUE,VALUE,...")
    return over(key.removeprefix("config."), parse_values(values))


def _value(word: str) -> Any:
    try:
        return ast.literal_eval(word)
    except (ValueError, SyntaxError):
        return {"true": True, "false": False, "none": None}.get(word.lower(), word)


def _merged(points: Iterable[Point]) -> Point:
    merged: Point = {}
    for point in points:
        for key in point:
            if key in merged:
                raise UserError(f"a point cannot have two values of '{key}'")
        merged.update(point)
    return merged
