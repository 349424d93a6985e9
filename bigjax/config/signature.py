"""Keyword arguments checked against a signature: the type system of a config, and all of it.

`parameters` reads what a class or function takes; `bind` checks plain values against that, converts
where nothing is lost (1 -> 1.0, list -> tuple) and fills in the defaults. Pure; imports no JAX.
"""

from __future__ import annotations

import collections.abc
import contextlib
import inspect
import types
import typing
from collections.abc import Callable, Mapping
from typing import Any

from bigjax.core.errors import UserError, did_you_mean

MISSING = inspect.Parameter.empty
# Fields that every Linen module has and no config sets.
_NOT_CONFIG = ("self", "parent", "name", "args", "kwargs")


class Parameter(typing.NamedTuple):
    """What one keyword argument takes: its annotation and its default (or MISSING)."""

    annotation: Any
    default: Any


def parameters(target: Callable[..., Any]) -> dict[str, Parameter]:
    """The keyword arguments of a class (its fields, for a dataclass or Linen module) or function."""
    hints: dict[str, Any] = {}
    for annotated in (target, target.__init__) if inspect.isclass(target) else (target,):
        # A library's annotations may name what only its type checker imports: then the defaults judge.
        with contextlib.suppress(NameError, TypeError, AttributeError):
            hints.update(typing.get_type_hints(annotated))
    keep_name = not (inspect.isclass(target) and hasattr(target, "scope"))
    return {
        name: Parameter(hints.get(name, Any), parameter.default)
        for name, parameter in inspect.signature(target).parameters.items()
        if (name not in _NOT_CONFIG or (name == "name" and keep_name))
        and parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
    }


def bind(
    where: str, what: str, accepted: Mapping[str, Parameter], given: Mapping[str, Any]
) -> dict[str, Any]:
    """The complete keyword arguments: every given value checked, every absent one from its default.

    Args:
      where: the config path for messages, e.g. "config.model".
      what: the target's name for messages.

    A default that is no plain value (a function, a dtype) stays out: the target applies it itself.

    Raises:
      UserError: unknown keyword (the nearest is named), missing keyword, or wrong type.
    """
    for key in given:
        if key not in accepted:
            raise UserError(
                f"{where}.{key}: {what} takes no '{key}'{did_you_mean(key, accepted)}; "
                f"it takes {', '.join(accepted) or 'nothing'}"
            )
    complete = {}
    for key, (annotation, default) in accepted.items():
        if key not in given and default is MISSING:
            raise UserError(f"{where}.{key} is missing: {what} needs it ({_name(annotation)})")
        if key not in given:
            if _is_plain(default):
                complete[key] = _tuples(default)
            continue
        try:
            complete[key] = convert(given[key], annotation, default)
        except TypeError:
            raise UserError(
                f"{where}.{key}: {given[key]!r} is not {_name(annotation, default)}"
            ) from None
    return complete


def convert(value: Any, annotation: Any, default: Any = MISSING) -> Any:
    """`value` as the annotated type if that loses nothing.

    An annotation this function does not know (a library's own type) is judged by the default's type.

    Raises:
      TypeError: the value does not fit.
    """
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if annotation is None or annotation is type(None):
        return _require(value is None, value)
    if annotation is bool:
        return _require(isinstance(value, bool), value)
    if annotation is int:
        return _require(isinstance(value, int) and not isinstance(value, bool), value)
    if annotation is float:
        number = isinstance(value, int | float) and not isinstance(value, bool)
        return float(_require(number, value))
    if annotation is str:
        if value is None and default == "none":  # the word, as `--config.KEY=none` gives it
            return default
        return _require(isinstance(value, str), value)
    if origin in (typing.Union, types.UnionType):
        return _first_fit(value, arguments)
    if origin is typing.Literal:
        return _require(value in arguments, value)
    if annotation in (tuple, list) or origin in (tuple, list, collections.abc.Sequence):
        return _sequence(value, origin, arguments)
    if annotation is dict or origin in (dict, collections.abc.Mapping):
        key_type, value_type = arguments or (str, Any)
        _require(isinstance(value, dict), value)
        return {convert(k, key_type): convert(v, value_type) for k, v in value.items()}
    if isinstance(default, bool):
        return convert(value, bool)
    if isinstance(default, int | float) and value is not None:
        return convert(value, int | float if isinstance(default, int) else float)
    return value


def _sequence(value: Any, origin: Any, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
    _require(isinstance(value, tuple | list), value)
    if not arguments:
        return tuple(value)
    if origin is tuple and Ellipsis not in arguments:
        _require(len(value) == len(arguments), value)
        return tuple(convert(v, a) for v, a in zip(value, arguments, strict=True))
    return tuple(convert(v, arguments[0]) for v in value)


def _first_fit(value: Any, choices: tuple[Any, ...]) -> Any:
    # An exact fit first, so that 3 stays an int under `float | int`.
    for choice in sorted(choices, key=lambda c: c is float):
        try:
            return convert(value, choice)
        except TypeError:
            continue
    raise TypeError


def _require(condition: bool, value: Any) -> Any:
    if not condition:
        raise TypeError
    return value


def _is_plain(value: Any) -> bool:
    if isinstance(value, list | tuple):
        return all(_is_plain(item) for item in value)
    return value is None or isinstance(value, bool | int | float | str)


def _tuples(value: Any) -> Any:
    return tuple(_tuples(v) for v in value) if isinstance(value, list | tuple) else value


def _name(annotation: Any, default: Any = MISSING) -> str:
    """The annotation as a reader would say it."""
    simple = {bool: "True or False", int: "a whole number", float: "a number", str: "a string"}
    if annotation in simple:
        return simple[annotation]
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if annotation is type(None):
        return "None"
    if origin in (typing.Union, types.UnionType):
        return " or ".join(_name(argument) for argument in arguments)
    if origin is typing.Literal:
        return "one of " + ", ".join(repr(argument) for argument in arguments)
    if origin in (tuple, list, collections.abc.Sequence) and arguments:
        return f"a list (each {_name(arguments[0])})"
    if annotation is Any and default is not MISSING and default is not None:
        return simple.get(type(default), str(type(default).__name__))
    return str(annotation).replace("typing.", "")
