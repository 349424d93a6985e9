"""Plain values: nested dicts as flat ones, canonical JSON and its hash, and whom a folder may name."""

from __future__ import annotations

import ast
import hashlib
import json
import math
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import ml_collections

from bigjax.core.errors import UserError

TRUST_ALL = "*"  # among `trusted`: a folder's config may import anything


def plain(node: Any, path: str = "config") -> Any:
    """Plain nested dicts and tuples from a ConfigDict (or parsed JSON); refuses any other object."""
    if isinstance(node, ml_collections.ConfigDict):
        node = dict(node.items())
    if isinstance(node, Mapping):
        return {str(key): plain(value, f"{path}.{key}") for key, value in node.items()}
    if isinstance(node, list | tuple):
        return tuple(plain(value, f"{path}[{i}]") for i, value in enumerate(node))
    if isinstance(node, str) and not (node.isascii() and "\0" not in node):
        _check_text(node, path)
    if isinstance(node, float) and not math.isfinite(node):
        raise UserError(f"{path}: {node} is not a finite number")
    if isinstance(node, int) and not -(2**63) <= node < 2**63:
        raise UserError(f"{path}: a whole number of {node.bit_length()} bits; 64 are the most")
    if node is None or isinstance(node, bool | int | float | str):
        return node
    raise UserError(
        f"{path}: a config holds plain values only (numbers, strings, booleans, None, "
        f"lists, dicts), not {type(node).__name__}"
    )


def _check_text(text: str, path: str) -> None:
    """Refuses text that no file's name or content can be."""
    if "\0" in text or any("\ud800" <= letter <= "\udfff" for letter in text):
        raise UserError(f"{path}: {text!r} holds a character that is none")


def literal(word: str) -> Any:
    """What a word of a command line means: a Python literal, true, false or none, or the word itself."""
    try:
        return ast.literal_eval(word)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return {"true": True, "false": False, "none": None}.get(word.lower(), word)


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested dicts as one dict of dotted paths; an empty dict stays as a leaf."""
    flat = {}
    for key, value in values.items():
        if isinstance(value, dict) and value:
            flat.update(flatten(value, f"{prefix}{key}."))
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def canonical(values: Any) -> str:
    """JSON with sorted keys and no white space: equal configs give equal strings."""
    return json.dumps(values, sort_keys=True, separators=(",", ":"))


def fingerprint(values: Any) -> str:
    """sha256 of the canonical JSON of plain values."""
    return hashlib.sha256(canonical(values).encode()).hexdigest()


def targets(node: Any) -> frozenset[str]:
    """All that plain values name to be imported: a `type` like "package.module:Name"."""
    if isinstance(node, Mapping):
        own = node.get("type")
        inner = frozenset().union(*map(targets, node.values()))
        return inner | {own} if isinstance(own, str) and ":" in own else inner
    if isinstance(node, list | tuple):
        return frozenset().union(*map(targets, node))
    return frozenset()


def check_trusted(path: Path, values: Mapping[str, Any], trusted: Collection[str]) -> None:
    """Refuses a config from a folder that would import what its user has not named.

    Raises:
      UserError: names the first such `type`, and the ways to trust it.
    """
    strange = sorted(targets(values) - frozenset(trusted))
    if strange and TRUST_ALL not in trusted:
        raise UserError(
            f"{path}: names '{strange[0]}', which would be imported and run. A folder may name only "
            "bigjax's own short names, and what your experiment file or command line names; "
            "if you trust the folder, give --trust (in Python: trust=True)"
        )
