"""One reader for each format: .txt by rows; .csv, .tsv, .jsonl, .parquet, .arrow also in columns.

Training and predict read by these alone; `npz.py` reads arrays.
"""

from __future__ import annotations

import contextlib
import csv
import dataclasses
import functools
import itertools
import json
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bigjax.core.errors import UserError, first_line

if TYPE_CHECKING:
    import pyarrow as pa

TABLES = (".csv", ".tsv", ".jsonl", ".parquet", ".arrow")
TEXTS = (*TABLES, ".txt")
COLUMNAR = (".parquet", ".arrow")
UNITS = ("file", "paragraph", "line")
ROWS = 8192  # of a chunk

Row = tuple[str, dict[str, Any]]  # (where it stands, its fields)
Record = tuple[str, "dict[str, Any] | str"]  # a row, or what is wrong with it


@dataclasses.dataclass(frozen=True)
class Chunk:
    """Some rows of a file.

    size: N, how many.
    columns: name -> Arrow array (N,); of a csv, strings.
    where: place in the chunk -> where the row stands, for messages.
    problems: place in the chunk -> why the row could not be read; its cells are null.
    typed: the columns of which the file itself says whether they are numbers or text.
    schema: what the file says of its columns (Hugging Face's class names), or None.
    """

    size: int
    columns: dict[str, pa.Array]
    where: Callable[[int], str]
    problems: dict[int, str]
    typed: frozenset[str]
    schema: Any = None

    def __len__(self) -> int:
        return self.size

    def part(self, rows: slice) -> Chunk:
        """Some of its rows; slice(start, stop)."""
        size = rows.stop - rows.start
        return dataclasses.replace(
            self,
            size=size,
            columns={name: column.slice(rows.start, size) for name, column in self.columns.items()},
            where=lambda i: self.where(i + rows.start),
            problems={
                i - rows.start: p for i, p in self.problems.items() if rows.start <= i < rows.stop
            },
        )


def read_rows(path: Path, unit: str = "file") -> Iterator[Row]:
    """The rows of a file; raises UserError at the first that cannot be read.

    unit: what one row of a .txt is: "file", "paragraph" (between blank lines) or "line".
    """
    for where, row in _txt(path, unit) if path.suffix == ".txt" else records(path):
        if isinstance(row, str):
            raise UserError(f"{where}: {row}")
        yield where, row


def records(path: Path) -> Iterator[Record]:
    """The rows of one of `TABLES`; instead of a bad one, what is wrong with it."""
    if path.suffix in COLUMNAR:
        return (
            (chunk.where(i), row)
            for chunk in read_chunks(path)
            for i, row in enumerate(_pylist(chunk.columns))
        )
    return (_jsonl if path.suffix == ".jsonl" else _csv)(path)


def read_chunks(path: Path) -> Iterator[Chunk]:
    """The rows of one of `TABLES` in columns; holds one chunk in memory."""
    if path.suffix in COLUMNAR:
        yield from _columnar(path)
        return
    rows = records(path)
    # A csv has its columns even where no row is good, or there.
    typed = path.suffix == ".jsonl"
    header = [] if typed else next(csv_lines(path), (1, []))[1]
    first = True
    while (part := list(itertools.islice(rows, ROWS))) or first:
        first = False
        names = dict.fromkeys(name.strip() for name in header)
        names |= dict.fromkeys(name for _, row in part if isinstance(row, dict) for name in row)
        good = [{} if isinstance(row, str) else row for _, row in part]
        arrays = {name: _arrow([row.get(name) for row in good]) for name in names}
        yield Chunk(
            size=len(part),
            columns={name: array for name, (array, _) in arrays.items()},
            where=[where for where, _ in part].__getitem__,
            problems={i: row for i, (_, row) in enumerate(part) if isinstance(row, str)},
            typed=frozenset(n for n, (_, one) in arrays.items() if one and typed),
        )


def held(rows: Any) -> Chunk:
    """Rows that are in memory: a pandas table, a list of dicts, or columns by name.

    Raises:
      UserError: they are none of these, of different lengths, or none.
    """
    import pyarrow

    if hasattr(rows, "to_dict"):  # so that pandas need not be there
        table = pyarrow.Table.from_pandas(rows, preserve_index=False)
        columns = {name: table[name].combine_chunks() for name in table.column_names}
    elif isinstance(rows, Mapping):
        columns = {name: _arrow(list(values))[0] for name, values in rows.items()}
    elif all(isinstance(row, Mapping) for row in rows):
        names = dict.fromkeys(name for row in rows for name in row)
        columns = {name: _arrow([row.get(name) for row in rows])[0] for name in names}
    else:
        raise UserError(
            "predict: this model reads a pandas table, a list of dicts, or columns by name"
        )
    sizes = sorted(set(map(len, columns.values())))
    if len(sizes) != 1 or sizes == [0]:
        raise UserError(f"predict: columns of {' and '.join(map(str, sizes)) or 'no'} rows")
    return Chunk(sizes[0], columns, "predict, row {}".format, {}, frozenset(columns))


def describe(path: Path) -> tuple[int, list[str]]:
    """Rows and column names of a .parquet or .arrow, without reading it."""
    with _reading(path):
        if path.suffix == ".parquet":
            import pyarrow.parquet

            found = pyarrow.parquet.read_metadata(path)
            return found.num_rows, found.schema.to_arrow_schema().names
        rows, names = 0, []
        for batch in _arrow_batches(path):
            rows, names = rows + batch.num_rows, batch.schema.names
        return rows, names


def class_names(path: Path, field: str | None) -> tuple[str, ...] | None:
    """The names that Hugging Face's `datasets` writes beside a column of classes, if it did."""
    chunk = next(read_chunks(path), None) if path.suffix in COLUMNAR else None
    said = (chunk.schema.metadata or {}).get(b"huggingface") if chunk else None
    features = json.loads(said).get("info", {}).get("features", {}) if said else {}
    return tuple((features.get(field) or {}).get("names") or ()) or None


def lines(path: Path) -> Iterator[tuple[int, str]]:
    """Numbered lines without their ends: a line ends in LF, CR LF or CR, and in nothing else.

    A byte order mark at the beginning is dropped. Raises UserError naming line and byte of what is
    not UTF-8.
    """
    number = 0
    try:
        with open(path, "rb") as file:
            for raw in file:
                for part in raw.removesuffix(b"\n").removesuffix(b"\r").split(b"\r"):
                    number += 1
                    try:
                        yield number, part.decode("utf-8-sig" if number == 1 else "utf-8")
                    except UnicodeDecodeError as error:
                        raise UserError(
                            f"{path}, line {number}, byte {error.start + 1}: "
                            f"0x{part[error.start]:02x} is not UTF-8: save the file in that encoding"
                        ) from None
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from None


def _txt(path: Path, unit: str) -> Iterator[Row]:
    """Blank lines are no row of their own; a file of unit "file" without text is an error later."""
    if unit == "file":
        yield str(path), {"text": "\n".join(line for _, line in lines(path))}
        return
    start, held = 1, []
    for number, line in lines(path):
        if line.strip() and not held:
            start = number
        held += [line] if line.strip() else []
        if held and (unit == "line" or not line.strip()):
            yield f"{path}, line {start}", {"text": "\n".join(held)}
            held = []
    if held:
        yield f"{path}, line {start}", {"text": "\n".join(held)}


def _jsonl(path: Path) -> Iterator[Record]:
    for number, line in lines(path):
        where = f"{path}, line {number}"
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            yield where, f"no JSON object ({error}); is the line cut off?"
            continue
        yield where, row if isinstance(row, dict) else "JSON, but no object with named fields"


def _csv(path: Path) -> Iterator[Record]:
    header: list[str] = []
    for number, cells in csv_lines(path):
        if not header:
            header = [cell.strip() for cell in cells]
            _refuse_twice(path, header)
            continue
        if len(cells) == len(header):
            yield f"{path}, line {number}", dict(zip(header, cells, strict=True))
        else:
            many = f"{len(cells)} cells under {len(header)} columns"
            yield f"{path}, line {number}", many
    if not header:
        raise UserError(f"{path} is empty; its first line should name the columns")


def _refuse_twice(path: Path, names: list[str]) -> None:
    twice = next((name for i, name in enumerate(names) if name in names[:i]), None)
    if twice is not None:
        raise UserError(f"{path}: two columns are called {twice!r}")


def csv_lines(path: Path) -> Iterator[tuple[int, list[str]]]:
    """(line number, cells) of every line of a csv that is not blank, the header too.

    Cells are parted by what the first line has most of: commas, semicolons or tabs.
    """
    text = (f"{line}\n" for _, line in lines(path))
    first = next(text, "")
    mark = max(",;\t", key=re.sub(r'"[^"]*"', "", first).count)
    reader = csv.reader(itertools.chain([first], text), delimiter=mark, strict=True)
    try:
        for cells in reader:
            if cells:
                yield reader.line_num, cells
    except csv.Error as error:
        ended = "unexpected end" in str(error)
        reason = "a quotation mark above is never closed" if ended else error
        raise UserError(f"{path}, line {reader.line_num}: {reason}") from None


def _columnar(path: Path) -> Iterator[Chunk]:
    start = 1
    with _reading(path):
        for batch in _parquet_batches(path) if path.suffix == ".parquet" else _arrow_batches(path):
            batch.validate(full=True)  # a damaged offset would be followed out of the file
            names = batch.schema.names
            _refuse_twice(path, names)
            yield Chunk(
                size=batch.num_rows,
                columns=dict(zip(names, batch.columns, strict=True)),
                where=functools.partial(_row_of, path, start),
                problems={},
                typed=frozenset(names),
                schema=batch.schema,
            )
            start += batch.num_rows


def _row_of(path: Path, start: int, place: int) -> str:
    return f"{path}, row {start + place}"


def _parquet_batches(path: Path) -> Iterator[pa.RecordBatch]:
    """Row group by row group."""
    import pyarrow.parquet

    with pyarrow.parquet.ParquetFile(path, memory_map=True) as file:
        yield from file.iter_batches(batch_size=ROWS)


def _arrow_batches(path: Path) -> Iterator[pa.RecordBatch]:
    """Of an IPC file, or of an IPC stream, which is what Hugging Face writes; memory-mapped."""
    import pyarrow

    with pyarrow.memory_map(str(path)) as file:
        try:
            reader = pyarrow.ipc.open_file(file)
            batches = (reader.get_batch(i) for i in range(reader.num_record_batches))
        except pyarrow.ArrowInvalid:
            batches = iter(pyarrow.ipc.open_stream(file))
        for batch in batches:
            for start in range(0, batch.num_rows, ROWS):
                yield batch.slice(start, ROWS)


def _arrow(values: list[Any]) -> tuple[pa.Array, bool]:
    """Values of a row file as one array, and whether they are of one kind; else they are their text."""
    import pyarrow

    try:
        return pyarrow.array(values), True
    except (pyarrow.ArrowException, OverflowError):
        texts = [v if v is None or isinstance(v, str) else json.dumps(v) for v in values]
        return pyarrow.array(texts), False


def _pylist(columns: dict[str, pa.Array]) -> Iterator[dict[str, Any]]:
    values = [column.to_pylist() for column in columns.values()]
    return (dict(zip(columns, row, strict=True)) for row in zip(*values, strict=True))


@contextlib.contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Turns what a library raises at an unreadable file into one line that names the file."""
    try:
        yield
    except (ValueError, OSError, NotImplementedError) as error:  # all that pyarrow raises
        reason = first_line(error)
        raise UserError(f"cannot read {path}: {reason}") from None
