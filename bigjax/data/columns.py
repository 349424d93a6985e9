"""A column of a table -> numbers that a model takes; all that is fitted comes from the train split.

number    float32; a missing cell is filled with the mean of train, and told by a second column if
          train has missing cells too
boolean   0 or 1, else as a number
date      days (float32) since the mean date of train, else as a number
category  one column for each text of train, 0 or 1, and a last one for a text that train has not
image     uint8 (H, W, C), a feature of its own
skip      nothing
"""

from __future__ import annotations

import dataclasses
import datetime
import math
import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from bigjax.core.errors import UserError
from bigjax.data.labels import MISSING, text_of_label
from bigjax.data.moments import Moments

if TYPE_CHECKING:
    import pyarrow as pa

KINDS = ("number", "boolean", "date", "category", "image", "skip")
MOST_CATEGORIES = 1000  # of one column: each is a column of the features
TRUTH = {"true": 1.0, "yes": 1.0, "false": 0.0, "no": 0.0}
DAY = 86_400_000_000  # microseconds

_NUMBER = r"^[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?$"
_DATE = re.compile(r"\d{4}-\d{2}-\d{2}([T ]\d{2}:\d{2}(:\d{2}(\.\d+)?)?(Z|[+-]\d{2}:?\d{2})?)?")
# Written otherwise than this reader takes them: as categories they would be learned by heart.
_OTHER_NUMBER = re.compile(
    r"[$€£¥]\s?[+-]?\d[\d.,' _]*|[+-]?\d[\d.,' _]*\s?[%$€£¥]"  # $3.50, 12 %
    r"|[+-]?\d{1,3}([,' _]\d{3})+([.,]\d+)?|[+-]?\d{1,3}(\.\d{3})+,\d+|[+-]?\d+,\d+"  # 1,234.5; 1.234,5; 3,5
)
_OTHER_DATE = re.compile(r"(\d{1,2}([./-])\d{1,2}\2\d{2,4}|\d{4}[./]\d{1,2}[./]\d{1,2})\b.*")
_EPOCH = datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)

# An array of cells -> values float64 (N,), NaN where missing or bad; bad, bool (N,).
Parsed = tuple[np.ndarray, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Column:
    """What is known of a column from the train split.

    kind: one of `KINDS` but image and skip.
    fill: for a missing cell: the mean of train.
    missing: whether train has missing cells.
    offset: subtracted in float64, for values that float32 cannot tell apart: the mean, or 0.
    vocabulary: the texts of train, sorted; "" is a missing cell, if train has one.
    """

    name: str
    kind: str
    fill: float = 0.0
    missing: bool = False
    offset: float = 0.0
    vocabulary: tuple[str, ...] = ()

    @property
    def names(self) -> tuple[str, ...]:
        """One for each number that it becomes."""
        if self.kind == "category":
            return (*(f"{self.name}={text}" for text in self.vocabulary), f"{self.name}=?")
        return (self.name, f"{self.name} missing") if self.missing else (self.name,)

    def encode(self, cells: pa.Array) -> tuple[np.ndarray, dict[int, str]]:
        """Cells (N,) -> float32 (N, len(names)), and what is wrong with some, by their place."""
        if self.kind == "category":
            place = {text: i for i, text in enumerate(self.vocabulary)}
            codes = [place.get(text, len(place)) for text in texts(cells)]
            return np.eye(len(place) + 1, dtype=np.float32)[codes], {}
        values, bad = PARSE[self.kind](cells)
        empty = np.isnan(values)
        wrong = bad if self.missing else empty
        problems = {}
        for i in np.flatnonzero(wrong).tolist():
            cell = cells[i].as_py()
            what = _misfit(cell, self.kind) if bad[i] else "is empty; no cell of train is"
            problems[i] = f"column {self.name!r}: {what}"
        numbers = np.where(empty, self.fill, values) - self.offset
        columns = [numbers, empty] if self.missing else [numbers]
        return np.stack(columns, axis=1).astype(np.float32), problems


class Seen:
    """What the train split shows of a column, chunk by chunk.

    name: of the column.
    kind: what it is, if the config or the file says so.
    typed: whether the file tells numbers from text.
    """

    def __init__(self, name: str, kind: str | None, typed: bool):
        self.name, self.kind = name, kind
        self._typed, self._said, self._rows = typed and kind is None, "", 0
        # The first of them, where there are more than a column may have.
        self._values: set[str] = set()
        # By kind: how many cells are of it, the first that is not, and the moments of those that are.
        self._tried = {
            kind: _Tried()
            for kind in (("number", "boolean", "date") if kind is None else (kind,))
            if kind in PARSE
        }

    def add(self, cells: pa.Array, where: Callable[[int], str]) -> None:
        import pyarrow.types as its

        kind = cells.type
        if any(
            is_of(kind) for is_of in (its.is_nested, its.is_binary, its.is_time, its.is_duration)
        ):
            raise UserError(
                f"{where(0)}: column {self.name!r} is {kind}, no number or text: {self._leave_out}"
            )
        if self._typed and not its.is_null(kind):
            self._settle(_kind_of(kind), where)
        self._rows += len(cells)
        for kind, tried in self._tried.items():
            tried.add(*PARSE[kind](cells), cells, where)
            if kind == "number" and self.kind is None and tried.moments.count:
                self._tried = {kind: tried}  # one cell that is a number decides
                return
        if self.kind in (None, "category") and len(self._values) <= MOST_CATEGORIES:
            self._values.update(texts(cells.unique()))

    def column(self) -> Column:
        """What is fitted; raises UserError for a column that is part this and part that."""
        kind = self.kind or self._infer()
        if kind == "category":
            if self.kind is None:
                self._refuse_other_spelling()
            if len(self._values) > MOST_CATEGORIES:
                raise UserError(
                    f"column {self.name!r} holds more than {MOST_CATEGORIES} different texts in train: "
                    f"{self._leave_out}"
                )
            if self._values != {""}:
                return Column(self.name, kind, vocabulary=tuple(sorted(self._values)))
        tried = self._tried.get(kind, _Tried())
        if tried.bad:
            cell, where = tried.bad
            raise UserError(f"{where}, column {self.name!r}: {_misfit(cell, kind)}")
        if not tried.moments.count:
            raise UserError(f"column {self.name!r} is empty throughout train: {self._leave_out}")
        mean, std = float(tried.moments.mean), float(tried.moments.std)
        # float32 keeps 24 bits: of values far from 0 and near each other too few are left.
        lossy = kind == "number" and 0 < std * 1e-3 < tried.largest * 2**-24
        offset = mean if kind == "date" or lossy else 0.0
        missing = tried.moments.count < self._rows
        return Column(
            self.name, kind, fill=mean if missing else 0.0, missing=missing, offset=offset
        )

    @property
    def _leave_out(self) -> str:
        return f"leave it out with columns.{self.name}='skip'"

    def _settle(self, said: str, where: Callable[[int], str]) -> None:
        """A typed file says the kind, or that it is text, which may be dates."""
        if said != (self._said or said):
            raise UserError(
                f"{where(0)}: column {self.name!r} is {said}, before it is {self._said}; mend it, "
                f"or say what it is: columns.{self.name}='category'"
            )
        if not self._said:
            self._said = said
            self.kind = None if said == "text" else said
            kept = "date" if said == "text" else said
            self._tried = {kind: one for kind, one in self._tried.items() if kind == kept}

    def _refuse_other_spelling(self) -> None:
        """UserError where all texts would be numbers or dates, if they were written plainly."""
        cells = sorted(text for text in self._values if text.lower() not in MISSING)
        for pattern, plainly in ((_OTHER_NUMBER, "1234.5"), (_OTHER_DATE, "2024-12-31")):
            if cells and all(map(pattern.fullmatch, cells)):
                raise UserError(
                    f"column {self.name!r} of train holds {cells[0]!r}: write it as {plainly} is "
                    f"written, or say what the column is: columns.{self.name}='category'"
                )

    def _infer(self) -> str:
        for kind in ("number", "date", "boolean"):
            tried = self._tried.get(kind)
            if tried is None or not tried.moments.count:
                continue
            if not tried.bad:
                return kind
            if kind != "boolean":
                cell, where = tried.bad
                raise UserError(
                    f"{where}, column {self.name!r}: {cell!r} is no {kind}, others are; mend it, "
                    f"or say what the column is: columns.{self.name}='category'"
                )
        return "category"


def _misfit(cell: Any, kind: str) -> str:
    if isinstance(cell, int) and kind == "number":
        return f"{cell} has too many digits for a number: say 'category' or 'skip' of the column"
    return f"{cell!r} is no {kind}"


class _Tried:
    def __init__(self) -> None:
        self.moments, self.largest, self.bad = Moments(), 0.0, None

    def add(self, values: np.ndarray, bad: np.ndarray, cells: pa.Array, where: Callable) -> None:
        good = values[~np.isnan(values)]
        self.moments.add(good)
        self.largest = max(self.largest, float(np.abs(good).max(initial=0.0)))
        if self.bad is None and bad.any():
            first = int(np.flatnonzero(bad)[0])
            self.bad = cells[first].as_py(), where(first)


def numbers(cells: pa.Array) -> Parsed:
    """Of numbers, truth values, or text that is a number."""
    import pyarrow
    import pyarrow.compute as pc

    kind = cells.type
    if pyarrow.types.is_boolean(kind):
        cells = pc.cast(cells, pyarrow.int8())
    if _is_text(kind):
        text = pc.utf8_trim_whitespace(pc.cast(cells, pyarrow.string()))
        missing = _missing(text)
        good = ~missing & _mask(pc.match_substring_regex(text, _NUMBER))
        values = np.full(len(cells), np.nan)
        values[good] = np.array(text.filter(pyarrow.array(good)).to_pylist(), "U").astype(float)
        bad = ~missing & ~(good & np.isfinite(values))
    elif pyarrow.types.is_null(kind):
        values, bad = np.full(len(cells), np.nan), np.zeros(len(cells), bool)
    elif pyarrow.types.is_temporal(kind):
        values, bad = np.full(len(cells), np.nan), ~_mask(cells.is_null())
    else:
        values = pc.cast(cells, pyarrow.float64(), safe=False).to_numpy(zero_copy_only=False)
        bad = np.isinf(values)
        if pyarrow.types.is_integer(kind):
            bad |= np.abs(values) > 2**53  # no float64 tells these apart
    return np.where(bad, np.nan, values), bad


def booleans(cells: pa.Array) -> Parsed:
    """Of truth values, 0 and 1, or "true", "false", "yes", "no"."""
    import pyarrow
    import pyarrow.compute as pc

    if not _is_text(cells.type):
        values, bad = numbers(cells)
        bad |= ~np.isnan(values) & (values != 0) & (values != 1)
        return np.where(bad, np.nan, values), bad
    text = pc.utf8_lower(pc.utf8_trim_whitespace(pc.cast(cells, pyarrow.string())))
    values = np.array([TRUTH.get(word, math.nan) for word in text.to_pylist()], float)
    return values, ~_missing(text) & np.isnan(values)


def dates(cells: pa.Array) -> Parsed:
    """Days since 1970-01-01 UTC, of dates, times, or text of ISO 8601; without a zone it is UTC."""
    import pyarrow
    import pyarrow.compute as pc

    kind = cells.type
    if pyarrow.types.is_timestamp(kind) or pyarrow.types.is_date(kind):
        times = pc.cast(pc.cast(cells, pyarrow.timestamp("us"), safe=False), pyarrow.int64())
        days = pc.cast(times, pyarrow.float64(), safe=False).to_numpy(zero_copy_only=False) / DAY
        return days, np.zeros(len(cells), bool)
    if not _is_text(kind):
        values, _ = numbers(cells)
        return np.full(len(cells), np.nan), ~np.isnan(values)
    text = pc.utf8_trim_whitespace(pc.cast(cells, pyarrow.string()))
    values = np.array([_days(cell) for cell in text.to_pylist()], float)
    return values, ~_missing(text) & np.isnan(values)


PARSE: dict[str, Callable[[Any], Parsed]] = {"number": numbers, "boolean": booleans, "date": dates}


def texts(cells: pa.Array) -> list[str]:
    """The cells as text without white space around it; "" for a missing one."""
    return [
        "" if cell is None or cell != cell else text_of_label(cell) for cell in cells.to_pylist()
    ]


def _kind_of(kind: pa.DataType) -> str:
    import pyarrow

    if pyarrow.types.is_boolean(kind):
        return "boolean"
    if pyarrow.types.is_temporal(kind):
        return "date"
    return "text" if _is_text(kind) else "number"


def _is_text(kind: pa.DataType) -> bool:
    import pyarrow

    if pyarrow.types.is_dictionary(kind):
        kind = kind.value_type
    known = (pyarrow.string(), pyarrow.large_string(), pyarrow.string_view())
    return kind in known


def _missing(text: pa.Array) -> np.ndarray:
    import pyarrow
    import pyarrow.compute as pc

    lower = pc.utf8_lower(text)
    return _mask(pc.is_in(lower, value_set=pyarrow.array(MISSING))) | _mask(text.is_null())


def _mask(array: pa.Array) -> np.ndarray:
    """A Boolean Arrow array as NumPy's; null is False."""
    return array.fill_null(False).to_numpy(zero_copy_only=False)


def _days(cell: str | None) -> float:
    if cell is None or not _DATE.fullmatch(cell):
        return math.nan
    try:
        time = datetime.datetime.fromisoformat(cell)
    except ValueError:
        return math.nan
    time = time if time.tzinfo else time.replace(tzinfo=datetime.UTC)
    return (time - _EPOCH) / datetime.timedelta(days=1)
