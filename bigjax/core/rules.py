"""The one grammar for everything said per parameter: an ordered list of (regex, value).

A leaf's name is its path joined by "/", such as "dense_0/kernel". A pattern must match the whole path
(`re.fullmatch`): ".*bias" is every bias, "head/.*" everything under head. The first match wins.
This room knows neither optimizers nor meshes; it only pairs leaves with values.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Sequence
from typing import Any

import jax

from bigjax.core.errors import UserError

Rules = Sequence[tuple[str, Any]]


def path_of(key_path: tuple) -> str:
    """Returns the name of a leaf from its JAX key path, e.g. "dense_0/kernel"."""
    return jax.tree_util.keystr(key_path, simple=True, separator="/")


def paths(tree: Any) -> dict[str, Any]:
    """Returns {path: leaf} in tree order.

    A None (a hole left by freezing) counts as a leaf, and so does what is ONE_LEAF by its own word
    (`bigjax.core.adapt.PerLayer`).
    """
    return {path_of(keys): leaf for keys, leaf in jax.tree.leaves_with_path(tree, is_leaf=_is_leaf)}


def map_with_path(function: Callable[..., Any], tree: Any, *rest: Any) -> Any:
    """Returns the tree of `function(path, leaf, *leaves of rest)`; leaves are those of `paths`."""
    return jax.tree.map_with_path(
        lambda keys, *leaves: function(path_of(keys), *leaves), tree, *rest, is_leaf=_is_leaf
    )


def match_rules(rules: Rules, tree: Any, *, what: str) -> dict[str, Any]:
    """Returns {path: value of the first rule whose pattern matches the whole path}.

    The result is a dict and not a tree, so that None is a value like any other (it freezes, say).

    Args:
        rules: (pattern, value) pairs, most particular first.
        tree: parameters, or anything of their structure.
        what: the config key the rules come from, for messages.

    Raises:
        UserError: a rule is no such pair, a pattern is not a regex, a leaf is matched by no pattern,
            or a pattern other than ".*" matches no leaf at all (surely a misspelling).
    """
    compiled = [_compile(rule, what) for rule in rules]
    names = list(paths(tree))
    values = {}
    for name in names:
        for pattern, value in compiled:
            if pattern.fullmatch(name):
                values[name] = value
                break
        else:
            patterns = ", ".join(repr(pattern.pattern) for pattern, _ in compiled) or "none"
            raise UserError(
                f"{what}: parameter '{name}' is matched by no pattern (patterns, each for the whole "
                f"path: {patterns}); end the list with ('.*', value) to cover the rest"
            )
    for pattern, _ in compiled:
        if pattern.pattern != ".*" and not any(map(pattern.fullmatch, names)):
            raise UserError(
                f"{what}: pattern '{pattern.pattern}' matches the whole path of no parameter"
                + _nearest(pattern.pattern, names)
            )
    return values


def first_value(rules: Rules, path: str) -> Any:
    """The value for one path, of rules that `match_rules` has passed; None where none matches."""
    return next((value for pattern, value in rules if re.fullmatch(pattern, path)), None)


def _compile(rule: Any, what: str) -> tuple[re.Pattern[str], Any]:
    if isinstance(rule, str) or not isinstance(rule, Sequence) or len(rule) != 2:
        raise UserError(f"{what}: a rule is a pair (pattern, value), got {rule!r}")
    pattern, value = rule
    if not isinstance(pattern, str):
        raise UserError(f"{what}: a rule begins with a regular expression, got {pattern!r}")
    try:
        return re.compile(pattern), value
    except re.error as error:
        raise UserError(f"{what}: '{pattern}' is not a regular expression: {error}") from error


def _nearest(pattern: str, names: list[str]) -> str:
    near = difflib.get_close_matches(pattern, names, n=1, cutoff=0.0)
    return f" (the nearest path is '{near[0]}')" if near else ""


def _is_leaf(leaf: Any) -> bool:
    return leaf is None or getattr(leaf, "ONE_LEAF", False)
