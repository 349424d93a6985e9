"""Labels as a file holds them -> numbers: one mapping, from the train split, for every split."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from bigjax.core.errors import did_you_mean

MISSING = ("", "na", "n/a", "nan", "null", "none")  # a number that is not there, in any case
_INTEGER = re.compile(r"\s*[+-]?\d+\s*")


@dataclasses.dataclass(frozen=True)
class Labels:
    """What the labels of the train split are.

    kind: "class" (names: numbered in their order), "integer" (int32 as they are; names, if any, go
        with 0, 1, ...), "number" (float32).
    names: of the classes, or ().
    """

    kind: str
    names: tuple[str, ...] = ()

    @staticmethod
    def fit(values: Iterable[Any], names: Sequence[str] = (), kind: str | None = None) -> Labels:
        """From the labels of the train split; a missing one (None, "") says nothing.

        Args:
          values: text, numbers, truth values.
          names: of the classes, where they are known.
          kind: "category", "number", or None for what the values are: numbers if one has a fraction,
              integers if all are, names if one is a word (and not one such as "nan").
        """
        found, whole, fraction = set(), False, False
        for value in values:
            if not is_missing(value) and not isinstance(value, list | dict):
                found.add(text_of_label(value))
                integer = isinstance(value, int) or bool(_INTEGER.fullmatch(str(value)))
                whole |= integer
                fraction |= not integer and is_number(value)
        if kind == "number" or (kind is None and fraction and not names):
            return Labels("number")
        words = {name for name in found if not is_number(name)}
        if kind is None and (whole and all(word.lower() in MISSING for word in words)):
            return Labels("integer", tuple(names))
        return Labels("class", tuple(names) or tuple(sorted(found)))

    @property
    def dtype(self) -> np.dtype:
        return np.dtype(np.float32 if self.kind == "number" else np.int32)

    def encode(self, values: Sequence[Any]) -> tuple[np.ndarray, dict[int, str]]:
        """The labels int32 or float32 (N,), and what is wrong with some, by their place."""
        if self.kind == "class":
            number = {name: i for i, name in enumerate(self.names)}
            codes = [number.get(text_of_label(value), -1) for value in values]
            problems = {i: self._unknown(values[i]) for i, code in enumerate(codes) if code < 0}
            return np.array(codes, np.int32), problems
        problems, out = {}, np.zeros(len(values))
        for i, value in enumerate(values):
            if is_missing(value):
                problems[i] = "is empty"
            elif not is_number(value):
                problems[i] = f"is {value!r}, not a number"
            elif self.kind == "integer" and float(value) != int(float(value)):
                problems[i] = f"is {value!r}; in train all are whole numbers"
            elif self.kind == "integer" and not -(2**31) <= int(float(value)) < 2**31:
                problems[i] = f"is {value!r}, which does not fit 32 bits"
            elif self.names and not 0 <= float(value) < len(self.names):
                problems[i] = f"is {value!r}, but there are {len(self.names)} class names"
            else:
                out[i] = float(value)
        return out.astype(self.dtype), problems

    def _unknown(self, value: Any) -> str:
        if is_missing(value):
            return "is empty"
        if isinstance(value, list | dict):
            return f"is {value!r}: a class is a text or a number"
        name, known = text_of_label(value), ", ".join(self.names[:10])
        more = f" and {len(self.names) - 10} more" if len(self.names) > 10 else ""
        return (
            f"is {name!r}, no class of train{did_you_mean(name, self.names)}; it has {known}{more}"
        )


def lost_class(train: np.ndarray, part: np.ndarray) -> tuple[int, float] | None:
    """A class of train (N,), and its share, that has no row in another part (M,) of the same rows.

    None where that may be chance: drawn at random, less than one such part in 1,000 would lack it.
    """
    classes, counts = np.unique(train, return_counts=True)
    for number, share in zip(classes.tolist(), (counts / len(train)).tolist(), strict=True):
        if (1 - share) ** len(part) < 1e-3 and number not in part:
            return number, share
    return None


def is_missing(value: Any) -> bool:
    return value is None or (isinstance(value, str) and not value.strip()) or value != value


def text_of_label(value: Any) -> str:
    """ "Paris" of " Paris ", "3" of 3 and 3.0, "true" of True."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return str(value).strip()


def is_number(value: Any) -> bool:
    if isinstance(value, str) and "_" in value:  # Python's 1_000
        return False
    try:
        return math.isfinite(float(value))
    except (TypeError, ValueError, OverflowError):
        return False
