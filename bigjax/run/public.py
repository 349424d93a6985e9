"""What others may see of a value that a run writes down: no secret, and no path outside the project. Pure."""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

PROJECT = Path(__file__).resolve().parents[2]

_SECRET_KEY = re.compile(
    r"(^|[_.-])(token|secret|passw(or)?d|passphrase|credentials?|(api|access|private)_?key)$"
)
_SECRET_VALUE = re.compile(
    r"(hf|ghp|gho|glpat|sk|xox[a-z])[_-]\w{12,}|AKIA\w{12,}|://[^/\s:@]+:[^/\s@]+@"
)
_PATH = re.compile(r"(?:(?<=[\s=,'\"(\[])|^)/[^\s,'\")\]]*[^\s,'\")\]/]")


def public(key: str, value: Any) -> str:
    """A value as others may see it: no secret, and no path outside the project."""
    text = str(value)
    if (isinstance(value, str) and _SECRET_KEY.search(key.lower())) or _SECRET_VALUE.search(text):
        return "(secret)"
    return _PATH.sub(_shown_path, text)


def public_all(key: str, value: Any) -> Any:
    """As `public`, of each item of a list."""
    return (
        [public(key, x) for x in value] if isinstance(value, list | tuple) else public(key, value)
    )


def shown(key: str, value: Any) -> str:
    """As `public`, for a line of text; of a hash, the first digits tell enough."""
    text = public(key, value)
    return text[:12] if re.fullmatch(r"[0-9a-f]{40}|[0-9a-f]{64}", text) else text


def command(arguments: Sequence[str]) -> str:
    """A command line as others may see it, see `shown`."""
    said = []
    for argument in arguments:
        key, equals, value = argument.partition("=")
        said.append(f"{key}={shown(key, value)}" if equals else shown("", argument))
    return shlex.join(said)


def _shown_path(match: re.Match[str]) -> str:
    path = Path(match[0])
    inside = path.is_relative_to(PROJECT)
    return path.relative_to(PROJECT).as_posix() if inside else f".../{path.name}"
