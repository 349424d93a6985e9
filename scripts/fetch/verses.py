"""English-Spanish verse pairs: the King James and the Reina-Valera Bible, as SWORD modules carry them.

Both modules use the versification of the first, so verse n of one is verse n of the other.
"""

from __future__ import annotations

import html
import re
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path

from scripts.fetch.packages import Package, member
from scripts.fetch.text_sets import write_splits

BIBLES = (
    Package(
        registry="apt",
        name="sword-text-kjv",
        version="14.3-1",
        file="sword-text-kjv_14.3-1_all.deb",
        sha256="9f463f28ce665f6f528fc723179722bced880a4c5485f7a41bf742838315de57",
    ),
    Package(
        registry="apt",
        name="sword-text-sparv",
        version="2.60-1",
        file="sword-text-sparv_2.60-1_all.deb",
        sha256="5c87f9b2bc97457e8a872f5bae7ea7ce59cb3de1dcee73e4d4740451863694cf",
    ),
)
# Elements whose content is no part of the verse: foot notes, headings, the name of the book.
_ASIDE = re.compile(r"<(note|title|milestone)\b[^>]*(?<!/)>.*?</\1>", re.DOTALL)


def write_kjv_es(packages: list[Path], out: Path) -> None:
    """{"source": English, "target": Spanish, "id" such as "ot/17"}; one in ten is for test."""
    write_splits(
        out,
        (
            (identity, {"source": english, "target": spanish, "id": identity})
            for testament in ("ot", "nt")
            for identity, english, spanish in _pairs(packages, testament)
        ),
    )


def _pairs(packages: list[Path], testament: str) -> Iterator[tuple[str, str, str]]:
    both = [list(_verses(package, testament)) for package in packages]
    for number, (english, spanish) in enumerate(zip(*both, strict=True)):
        if english and spanish:
            yield f"{testament}/{number}", english, spanish


def _verses(package: Path, testament: str) -> Iterator[str]:
    """The plain text of every entry of a compressed module (SWORD's zText), "" where it is none.

    .bzs lists the compressed blocks (offset, size, size when unpacked), .bzv the entries (block,
    offset in it, length), .bzz holds the blocks; numbers are little-endian.
    """
    blocks, entries, data = (
        member(package, f"*/modules/texts/ztext/*/{testament}.{suffix}")
        for suffix in ("bzs", "bzv", "bzz")
    )
    texts = [
        zlib.decompress(data[start : start + size])
        for start, size, _ in struct.iter_unpack("<III", blocks)
    ]
    for block, start, length in struct.iter_unpack("<IIH", entries):
        yield plain_verse(texts[block][start : start + length].decode()) if length else ""


def plain_verse(osis: str) -> str:
    """Text of an OSIS fragment, without notes, headings and marks; spaces made single."""
    text = html.unescape(re.sub(r"<[^>]*>", "", _ASIDE.sub(" ", osis)))
    return " ".join(text.replace("\N{PILCROW SIGN}", " ").split())
