"""Text sets that Debian carries as R data: six Austen novels, product reviews. Read with `rdata`.

An R package keeps its data as a lazy-load database: NAME.rdx tells where in NAME.rdb each variable
lies, and each is compressed by itself. `rdata` understands the serialized objects.
"""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
import re
import warnings
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bigjax.core.errors import UserError
from scripts.fetch.packages import Package, member
from scripts.fetch.text_sets import write_splits

AUSTEN = Package(
    registry="apt",
    name="r-cran-janeaustenr",
    version="1.0.0-1",
    file="r-cran-janeaustenr_1.0.0-1_all.deb",
    sha256="df6bddf211906d1ff404f8ff662c21b34e6660e7f54a311084e749050c019c95",
)
MODELDATA = Package(
    registry="apt",
    name="r-cran-modeldata",
    version="1.1.0-1",
    file="r-cran-modeldata_1.1.0-1_all.deb",
    sha256="66c2e08bb4bf695d972b1e72ea44d5af9ada3c42841793d3871017f7b896bf95",
)
NOVELS = {
    "sensesensibility": "Sense and Sensibility",
    "prideprejudice": "Pride and Prejudice",
    "mansfieldpark": "Mansfield Park",
    "emma": "Emma",
    "northangerabbey": "Northanger Abbey",
    "persuasion": "Persuasion",
}
_HEADING = re.compile(r"chapter\b.*", re.IGNORECASE)


def write_austen(packages: list[Path], out: Path) -> None:
    """Chapters: {"text", "book", "chapter" from 1 within the book}, about one in ten for test."""
    database = _Database(packages[0])
    write_splits(
        out,
        (
            (f"{book}/{number}", {"text": text, "book": title, "chapter": number})
            for book, title in NOVELS.items()
            for number, text in enumerate(_chapters(database.read(book)), start=1)
        ),
    )


def write_reviews(packages: list[Path], out: Path) -> None:
    """Amazon food reviews: {"text", "label" 1 great or 0 other, "product"}, split by the package."""
    database = _Database(packages[0])
    for split, variable in (("train", "training_data"), ("test", "testing_data")):
        table = database.read(variable)
        rows = zip(table["review"], table["score"], table["product"], strict=True)
        with open(out / f"{split}.jsonl", "w", encoding="utf-8") as file:
            for text, score, product in rows:
                row = {"text": str(text), "label": int(score == "great"), "product": str(product)}
                print(json.dumps(row, ensure_ascii=False), file=file)


class _Database:
    """The variables in data/Rdata.{rdx,rdb} of an R package inside a .deb."""

    def __init__(self, package: Path):
        try:
            import rdata
        except ImportError:
            raise UserError(
                "this set is R data: install its reader with `.venv/bin/python -m pip install rdata`"
            ) from None
        self._rdata = rdata
        self._rdb = member(package, "*/data/Rdata.rdb")
        index = self._convert(gzip.decompress(member(package, "*/data/Rdata.rdx")))
        self._places = {str(name): place for name, place in index["variables"].items()}

    def read(self, name: str) -> Any:
        """A variable as pandas or NumPy has it."""
        start, length = (int(number) for number in self._places[name])
        record = self._rdb[start : start + length]  # 4 bytes of size, 1 of kind, unless it is zlib
        if record[4:5] == b"Z":
            chain = [{"id": lzma.FILTER_LZMA2, "preset": 6}]
            return self._convert(lzma.decompress(record[5:], lzma.FORMAT_RAW, filters=chain))
        if record[4:5] == b"2":
            return self._convert(bz2.decompress(record[5:]))
        return self._convert(zlib.decompress(record[4:]))

    def _convert(self, content: bytes) -> Any:
        with warnings.catch_warnings():  # it warns that a lazy-load record has no file type
            warnings.simplefilter("ignore")
            return self._rdata.conversion.convert(self._rdata.parser.parse_data(content))


def _chapters(lines: Any) -> Iterator[str]:
    """Texts between the lines that read "Chapter ..."; what stands before the first is left out."""
    chapter: list[str] | None = None
    for line in [*(str(line).rstrip() for line in lines), "chapter"]:
        if _HEADING.fullmatch(line):
            if chapter and (text := "\n".join(chapter).strip()):
                yield text
            chapter = []
        elif chapter is not None:
            chapter.append(line)
