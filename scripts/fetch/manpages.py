"""Linux manual pages and their one-line summaries: the nearest to summarisation that Debian carries."""

from __future__ import annotations

import gzip
import re
from collections.abc import Iterator
from pathlib import Path

from scripts.fetch.packages import Package, members
from scripts.fetch.text_sets import write_splits

PACKAGES = (
    Package(
        registry="apt",
        name="manpages",
        version="6.03-2",
        file="manpages_6.03-2_all.deb",
        sha256="efa1ba4cd19ad7baeae959c9209a7eb74be2ebb858bcabb412597bfc9f588c91",
    ),
    Package(
        registry="apt",
        name="manpages-dev",
        version="6.03-2",
        file="manpages-dev_6.03-2_all.deb",
        sha256="96f55cb5e26231d5567c89b692bced63825a14a2d5bd18fdf16ea2ed44eb9838",
    ),
)
_SECTION = re.compile(r'^\.SH\s+"?([^"\n]+)"?\s*$', re.MULTILINE)
# groff's escapes that stand for a character, then those that stand for nothing printed.
_CHARACTERS = {
    r"\-": "-",
    r"\e": "\\",
    r"\(aq": "'",
    r"\[aq]": "'",
    r"\(dq": '"',
    r"\[dq]": '"',
    r"\(co": "(c)",
    r"\(bu": "*",
    r"\(em": "--",
    r"\[em]": "--",
    r"\(en": "-",
    r"\(ti": "~",
    r"\[ti]": "~",
    r"\(ha": "^",
    r"\[ha]": "^",
    r"\(lq": '"',
    r"\(rq": '"',
    r"\[lq]": '"',
    r"\[rq]": '"',
    r"\~": " ",
    r"\ ": " ",
    r"\0": " ",
}
_ESCAPE = re.compile(
    r"\\(?:-|e|~| |0|\((?:aq|dq|co|bu|em|en|ti|ha|lq|rq)|\[(?:aq|dq|em|ti|ha|lq|rq)\])"
    r"|\\f(?:\[[^\]]*\]|\(..|.)|\\s[-+]?\d+|\\\*?\([^\s]{2}|\\\*?\[[^\]]*\]|\\[&,/:%|^{}cd!]|\\"
)
_TEXT_MACROS = {"B", "I", "BR", "IR", "RB", "RI", "BI", "IB", "SM", "SB", "SS", "TP", "IP"}
_ALTERNATING = {"BR", "IR", "RB", "RI", "BI", "IB"}  # arguments are set without a space between


def write_manpages(packages: list[Path], out: Path) -> None:
    """{"source": the DESCRIPTION as plain text, "target": the summary, "id" such as "open.2"}."""
    write_splits(out, ((page["id"], page) for package in packages for page in _pages(package)))


def _pages(package: Path) -> Iterator[dict]:
    """Every page with a summary and a description; the links from one name to another are none."""
    for path, content in sorted(members(package, "*/man/man*/*.gz")):
        page = gzip.decompress(content).decode("utf-8", errors="replace")
        parts = _SECTION.split(page)
        sections = dict(zip(parts[1::2], parts[2::2], strict=True))
        _, _, summary = plain_text(sections.get("NAME", "")).partition(" - ")
        description = plain_text(sections.get("DESCRIPTION", ""))
        if summary and description:
            name = path.rpartition("/")[2].removesuffix(".gz")
            yield {"source": description, "target": summary, "id": name}


def plain_text(roff: str) -> str:
    """The words of a piece of man(7) source on one line: macros, tables and font changes taken out."""
    words, in_table = [], False
    for line in roff.splitlines():
        if line.startswith((".TS", ".EQ")):
            in_table = True
        elif line.startswith((".TE", ".EN")):
            in_table = False
        elif in_table or line.startswith(("'\\\"", '.\\"')):
            continue
        elif line.startswith((".", "'")):
            words.append(_macro_text(line[1:].strip()))
        else:
            words.append(line)
    return " ".join(_unescape("\n".join(words)).split())


def _macro_text(line: str) -> str:
    name, _, rest = line.partition(" ")
    if name not in _TEXT_MACROS or name == "TP":
        return ""
    arguments = [quoted or bare for quoted, bare in re.findall(r'"([^"]*)"|(\S+)', rest)]
    if name == "IP":  # the second argument is an indentation
        arguments = arguments[:1]
    return ("" if name in _ALTERNATING else " ").join(arguments)


def _unescape(text: str) -> str:
    text = re.sub(r'\\".*', "", text)  # a comment to the end of the line
    return _ESCAPE.sub(lambda match: _CHARACTERS.get(match[0], ""), text)
