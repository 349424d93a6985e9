"""Examples that a user hands to `predict`, read as the train split was read.

Rows that cannot be read are told by number, and the rest goes on. Touches no device.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bigjax.core.errors import UserError, did_you_mean
from bigjax.data import files, pictures
from bigjax.data.handed import Inputs, good_rows, nothing_left
from bigjax.data.labels import is_number
from bigjax.data.narrow import zeros
from bigjax.data.npz import read_npz
from bigjax.data.sources import Arrays, Features, Source


def read(path: Path, train_source: Any, key: str | Sequence[str]) -> Inputs:
    """Reads `path` as examples of the features that the model takes.

    Args:
      path: what the train split was read from (a table, pictures, texts), or a .txt with one text a
        line; for a source of arrays, an .npz with an array named `key` (or only one array), a .csv
        with one number a column (a header line is allowed), pictures. Several inputs are arrays of an .npz.
      train_source: the train split.
      key: the model's input, e.g. "image", or its inputs (None: one that it does without).

    Raises:
      UserError: nothing there can be read.
    """
    if not path.exists():
        raise UserError(f"--input={path}: no such file or folder")
    if hasattr(train_source, "read_inputs"):
        inputs = train_source.read_inputs(path)
    elif hasattr(train_source, "encode"):
        inputs = _texts(path, train_source)
    else:
        inputs = _arrays(path, train_source.features, key)
    if not inputs.numbers:
        raise UserError(f"--input={path}: {nothing_left(inputs.problems)}")
    return dataclasses.replace(inputs, source=_Completed(inputs.source, train_source.features))


def given(
    rows: Mapping[str, Any] | Sequence[Any], train_source: Any, key: str | Sequence[str]
) -> Source:
    """A user's arrays, texts or rows of a table as examples of the features that the model takes.

    Args:
      rows: name of a feature -> its values, a leading axis of rows; or texts; or, of a table, what
        `FittedTable.read_rows` takes.
      train_source: the train split. key: the model's input.

    Raises:
      UserError: they are not what the model takes.
    """
    features = train_source.features
    if hasattr(train_source, "read_rows") and not (
        isinstance(rows, Mapping) and set(rows) <= set(features)
    ):
        return _Completed(train_source.read_rows(rows), features)
    if not isinstance(rows, Mapping):
        if not hasattr(train_source, "encode") or not all(isinstance(row, str) for row in rows):
            raise UserError(f"predict: this model reads arrays by name: {', '.join(features)}")
        return _Completed(Arrays(train_source.encode(list(rows))), features)
    columns = {}
    for name, values in rows.items():
        if name not in features:
            raise UserError(
                f"predict: the data has no feature '{name}'{did_you_mean(name, features)}"
            )
        shape, dtype = features[name]
        values = np.asarray(values)
        for number, value in enumerate(values):
            if problem := _misfit(value, shape, dtype):
                raise UserError(f"predict: row {number} of '{name}' {problem}")
        columns[name] = values.astype(dtype)
    missing = [name for name in _names(key) if name not in columns]
    if missing:
        raise UserError(f"predict: the model needs {', '.join(map(repr, missing))} too")
    return _Completed(Arrays(columns), features)


def read_lines(path: Path, where: str) -> list[str]:
    """The lines of a .txt file; raises UserError, naming `where`, for any other or unreadable file."""
    if path.suffix != ".txt":
        raise UserError(f"{where}: this model reads text: give a .txt, one text a line")
    return [line for _, line in files.lines(path)]


def json_rows(
    predicted: dict[str, Any], class_names: Sequence[str] | None
) -> Iterator[dict[str, Any]]:
    """One JSON-able dict for every row of a batch of predictions; a class beyond the names has none."""
    for row in range(len(next(iter(predicted.values())))):
        line = {name: _plain(values[row]) for name, values in predicted.items()}
        number = line.get("class")
        if class_names and isinstance(number, int) and number < len(class_names):
            line["name"] = class_names[number]
        yield line


class _Completed:
    """A Source with zeros for those features of the train split that a user's file has not."""

    class_names = num_classes = None

    def __init__(self, source: Source, features: Features):
        self._source = source
        self.features = {**features, **source.features}

    def __len__(self) -> int:
        return len(self._source)

    def read(self, ids: np.ndarray) -> dict[str, np.ndarray]:
        return {**zeros(self.features, len(ids)), **self._source.read(ids)}

    def fingerprint(self) -> str:
        return self._source.fingerprint()


def _texts(path: Path, train_source: Any) -> Inputs:
    """The lines of a .txt, or the rows of a file as the train split's, that are not empty."""
    problems: dict[int, str] = {}
    if path.suffix == ".txt":
        found = read_lines(path, f"--input={path}")
    elif path.suffix in files.TABLES:
        found = []
        for number, (_, row) in enumerate(files.records(path)):
            line, problem = _line(row, getattr(train_source, "fields", ("text",)))
            found.append(line)
            problems |= {number: problem} if problem else {}
    else:
        raise UserError(f"--input={path}: this model reads text: {', '.join(files.TEXTS)}")
    for number, line in enumerate(found):
        if not line.strip():
            problems.setdefault(number, "empty")
    numbers, told = good_rows(path, len(found), problems)
    return Inputs(Arrays(train_source.encode([found[n] for n in numbers])), numbers, told)


def _line(row: dict[str, Any] | str, fields: Sequence[str]) -> tuple[str, str]:
    """The texts of a row, parted by tabs, and what is wrong with it."""
    if isinstance(row, str):
        return "", row
    for field in fields:
        if row.get(field) is None:
            return "", f"there is no field {field!r}{did_you_mean(field, row)}"
    values = (row[field] for field in fields)
    texts = (" ".join(v) if isinstance(v, list) else str(v) for v in values)
    return "\t".join(text.replace("\t", " ") for text in texts), ""


def _arrays(path: Path, features: Features, key: str | Sequence[str]) -> Inputs:
    """For a train split that is arrays of a known shape, and no more is known."""
    keys = _names(key)
    for name in keys:
        if name not in features:
            raise UserError(
                f"config.task.input: the data has no feature '{name}'{did_you_mean(name, features)}"
            )
    if path.suffix == ".npz":
        return _columns(path, features, keys)
    if len(keys) > 1:
        said = ", ".join(keys)
        raise UserError(f"--input={path}: this model reads {said}: give an .npz of these")
    (key,) = keys
    shape, dtype = features[key]
    if path.is_dir() or path.suffix.lower() in pictures.PICTURES:
        if len(shape) != 3 or shape[2] not in (1, 3) or dtype != np.uint8:
            raise UserError(f"--input={path}: the model takes {dtype} {shape}, not pictures")
        return pictures.read_pictures(path, pictures.Shape(*shape))
    if path.suffix != ".csv":
        known = ", ".join(pictures.PICTURES)
        raise UserError(f"--input={path}: give .npz, .csv, or pictures ({known})")
    rows = list(_csv(path, shape, set(features) - {key}))
    found = (v if isinstance(v, str) else _misfit(v, shape, dtype) for v in rows)
    problems = {number: problem for number, problem in enumerate(found) if problem}
    numbers, told = good_rows(path, len(rows), problems)
    values = np.stack([rows[number].astype(dtype) for number in numbers])
    return Inputs(Arrays({key: values}), numbers, told)


def _names(key: str | Sequence[str | None]) -> list[str]:
    """The features that a task's input names."""
    return [key] if isinstance(key, str) else [name for name in key if name is not None]


def _columns(path: Path, features: Features, keys: Sequence[str]) -> Inputs:
    """An .npz with an array for each input; one that is alone is what a single input reads."""
    columns = {name: _numbers(path, values) for name, values in read_npz(path, keys).items()}
    if len(keys) == 1:
        columns = dict(zip(keys, columns.values(), strict=True))
    if missing := [name for name in keys if name not in columns]:
        raise UserError(f"--input={path}: has no array '{missing[0]}'")
    lengths = {name: len(values) for name, values in columns.items()}
    if len(set(lengths.values())) > 1:
        said = ", ".join(f"{name} {length}" for name, length in lengths.items())
        raise UserError(f"--input={path}: arrays of different numbers of rows: {said}")
    problems = {}
    for name in keys:
        for row, value in enumerate(columns[name]):
            if found := _misfit(value, *features[name]):
                problems.setdefault(row, found if len(keys) == 1 else f"'{name}' {found}")
    numbers, told = good_rows(path, len(columns[keys[0]]), problems)
    good = {name: columns[name][numbers].astype(features[name][1]) for name in keys}
    return Inputs(Arrays(good), numbers, told)


def _numbers(path: Path, values: np.ndarray) -> np.ndarray:
    if values.ndim < 1 or values.dtype.kind not in "biuf":
        raise UserError(f"{path}: needs an array of numbers with a leading axis of rows")
    return values


def _csv(path: Path, shape: tuple[int, ...], others: set[str]) -> Iterator[np.ndarray | str]:
    """Rows of numbers in the model's order; columns that a header calls by another feature's name
    (the label's) are passed over."""
    kept: list[int] | None = None
    for i, (_, cells) in enumerate(files.csv_lines(path)):
        if i == 0 and not any(is_number(cell) for cell in cells):
            kept = [place for place, name in enumerate(cells) if name.strip() not in others]
            continue
        if kept and len(cells) > kept[-1]:
            cells = [cells[place] for place in kept]
        bad = [place for place, cell in enumerate(cells) if not is_number(cell)]
        if bad:
            yield f"column {bad[0] + 1}: '{cells[bad[0]]}' is not a number"
            continue
        values = np.array(cells, "U").astype(np.float64)
        yield values.reshape(shape) if values.size == math.prod(shape) else values


def _misfit(value: np.ndarray, shape: tuple[int, ...], dtype: np.dtype) -> str:
    """Why a row is not one of the model's; "" if it is."""
    if value.shape != shape:
        order = sorted(value.shape) == sorted(shape)
        hint = ", its axes in that order (pictures: height, width, channels)" * order
        return f"has shape {value.shape}, the model takes {shape}{hint}"
    if not np.isfinite(value).all():
        return "holds a value that is not finite"
    with np.errstate(all="ignore"):
        same = value.astype(dtype)
    rounded = value.dtype.kind == "f" and dtype.kind == "f"  # as when the train split was read
    lost = ~np.isfinite(same) if rounded else same != value
    if lost.any():
        return f"holds {value[lost][0]}, which {dtype} cannot hold"
    return ""


def _plain(value: Any) -> Any:
    return np.asarray(value).tolist() if hasattr(value, "dtype") else value
