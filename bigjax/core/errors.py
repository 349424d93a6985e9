"""The errors that are no defect of bigjax, and the hint that goes with a misspelt name.

`launch` prints them as one line: a `UserError` exits with code 2, a `RunFailed` with 1. Every other
exception is a defect of bigjax or of the machine and keeps its traceback.
"""

from __future__ import annotations

import contextlib
import difflib
import importlib
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any


class UserError(Exception):
    """The user's input is wrong. The message says what, where, and what would be right."""


class RunFailed(Exception):
    """The run cannot go on, though its input is right. The message says what happened."""


def did_you_mean(word: str, choices: Iterable[str]) -> str:
    """Returns " (did you mean 'x'?)" for the choice nearest to `word`, or "" if none is near."""
    near = difflib.get_close_matches(word, list(choices), n=1, cutoff=0.6)
    return f" (did you mean '{near[0]}'?)" if near else ""


def first_line(error: Exception) -> str:
    """The first line of what a library's error says, or its kind where it says nothing."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def said(error: BaseException) -> str:
    """What an error says, in one line; of one that is not bigjax's own, with its kind."""
    text, kind = str(error).strip().partition("\n")[0], type(error)
    return text if text and kind.__module__.startswith("bigjax.") else f"{kind.__name__}: {text}"


def to_install(package: str) -> str:
    """The command that installs a package into the environment that runs now: "PYTHON -m pip install X"."""
    python = Path(sys.executable)
    with contextlib.suppress(ValueError):  # ".venv/bin/python" within a checkout
        python = python.relative_to(Path.cwd())
    return f"{python} -m pip install {package}"


def needed(module: str, what: str, package: str = "") -> Any:
    """An optional library, imported when it is needed.

    Args:
      what: needs it, as the message begins: "--format=gguf needs".
      package: what pip calls it, where that is not the module's name.

    Raises:
      UserError: it is not installed; says how to.
    """
    try:
        return importlib.import_module(module)
    except ImportError:
        package = package or module
        raise UserError(f"{what} {package.split()[0]}: {to_install(package)}") from None
