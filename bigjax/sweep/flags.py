"""The command line of a sweep. Its flags are the attributes of `Sweep`, `How` and the executors:

names, types and help are theirs, read from their signatures and docstrings.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import inspect
import re
import typing
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from bigjax.config.flags import expanded, parsed
from bigjax.config.signature import convert, parameters
from bigjax.core.errors import UserError
from bigjax.sweep import describe
from bigjax.sweep.clusters import Ray, Slurm
from bigjax.sweep.describe import How, Search, Sweep, parse_points, parse_values
from bigjax.sweep.executors import Executor, Local
from bigjax.sweep.trials import load_module

EXECUTORS: Mapping[str, type[Executor]] = {"local": Local, "ray": Ray, "slurm": Slurm}
# Said in another way.
NO_FLAGS = ("experiment", "points", "overrides", "search", "space", "seed", "config")


def parse(arguments: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    """The options, as text, and the config overrides "KEY=VALUE" of a command line.

    Raises:
      UserError: an unknown flag; the nearest is named.
    """
    parser = argparse.ArgumentParser(
        prog="python -m bigjax.sweep",
        allow_abbrev=False,
        exit_on_error=False,
        epilog="--config.KEY=VALUE is for every trial",
    )
    parser.add_argument("module", help="a sweep file (experiments.sweeps.NAME) or an experiment")
    parser.add_argument("--workdir", type=expanded, help="default: runs/sweeps/NAME")
    points = parser.add_argument_group("points (a sweep file says them itself)")
    for name, text in (
        ("grid", "KEY=V1,V2,...: all combinations"),
        ("zip", "KEY=V1,V2,...: taken together"),
        ("search", "KEY=log:LOW:HIGH, uniform:, int: or V1,V2,...: drawn"),
    ):
        points.add_argument(f"--{name}", action="append", default=[], help=text)
    _add(points, Search)
    _add(parser.add_argument_group("what (a sweep file says it itself)"), Sweep)
    where = parser.add_argument_group("how")
    _add(where, How)
    where.add_argument("--executor", choices=EXECUTORS, default="local", help="where")
    for name, kind in EXECUTORS.items():
        _add(parser.add_argument_group(f"--executor={name}"), kind)
    return parsed(parser, arguments)


def sweep_of(options: argparse.Namespace, overrides: Sequence[str]) -> Sweep:
    """The sweep of the module's `get_sweep`, or of the flags; flags have the last word.

    Raises:
      UserError: there is no such module, or the flags do not make a sweep.
    """
    module = load_module(options.module)
    changes = _given(Sweep, options)
    lists = [parse_points(text) for text in options.grid]
    if options.zip:
        lists.append(describe.zip(*map(parse_points, options.zip)))
    if lists:
        changes["points"] = describe.product(*lists)
    if options.search:
        if not options.trials:
            raise UserError("--search needs --trials=N")
        changes["search"] = Search(dict(map(_range, options.search)), **_given(Search, options))
    sweep = module.get_sweep() if hasattr(module, "get_sweep") else Sweep(options.module)
    fixed = dict(sweep.overrides)
    for text in overrides:
        key, equals, value = text.partition("=")
        if not equals:
            raise UserError(f"--config.{text}: write --config.KEY=VALUE")
        fixed[key] = _one(value)
    return dataclasses.replace(sweep, overrides=fixed, **changes)


def how_of(options: argparse.Namespace) -> How:
    return How(**_given(How, options))


def executor_of(options: argparse.Namespace) -> Callable[[], Executor]:
    """Makes what --executor names; a missing package is told when it is called.

    Raises:
      UserError: a flag is for another executor, or has no such value.
    """
    chosen, name = EXECUTORS[options.executor], options.executor
    for flag in dict.fromkeys(flag for kind in EXECUTORS.values() for flag in parameters(kind)):
        if getattr(options, flag) is not None and flag not in parameters(chosen):
            others = [other for other, kind in EXECUTORS.items() if flag in parameters(kind)]
            raise UserError(f"--{flag} is for --executor={' or '.join(others)}, not {name}")
    return functools.partial(chosen, **_given(chosen, options))


def _helps(target: type) -> dict[str, str]:
    """What the docstring of a target says of each parameter: "name: text"."""
    text = inspect.getdoc(target)  # Python 3.13 strips the indentation itself
    found = re.findall(r"^ {2}(\w+): ((?:.|\n {4})+)", text, re.MULTILINE)
    return {name: " ".join(text.split()) for name, text in found}


def _add(group: Any, target: type) -> None:
    """A flag for each parameter of the target."""
    helps = _helps(target)
    for name, (annotation, _) in parameters(target).items():
        if name in NO_FLAGS or any(f"--{name}" in a.option_strings for a in group._actions):
            continue
        bare = annotation is bool or bool in typing.get_args(annotation)
        how = {"nargs": "?", "const": "True"} if bare else {}
        text = helps[name].replace("%", "%%")
        group.add_argument(f"--{name}", help=text, metavar="VALUE", **how)


def _given(target: type, options: argparse.Namespace) -> dict[str, Any]:
    """The flags of a target that were given, as its annotations ask for.

    Raises:
      UserError: a text is no such value.
    """
    found = {}
    for name, (annotation, _) in parameters(target).items():
        text = None if name in NO_FLAGS else getattr(options, name)
        if text is None:
            continue
        readings = [parse_points(text)[0]] if "=" in text else []
        for reading in (*readings, _one(text), text, (text,)):
            try:
                found[name] = convert(reading, annotation)
                break
            except TypeError:
                continue
        else:
            raise UserError(f"--{name}={text} will not do; it is: {_helps(target)[name]}")
    return found


def _one(text: str) -> Any:
    """ "5" as 5, "0,3" as (0, 3), "3," as (3,)."""
    values = parse_values(text)
    return values[0] if len(values) == 1 and not text.endswith(",") else tuple(values)


def _range(text: str) -> tuple[str, Any]:
    """ "KEY=log:LOW:HIGH" as (KEY, ("log", LOW, HIGH)); "KEY=A,B" as (KEY, [A, B])."""
    key, equals, value = text.partition("=")
    kind, *ends = value.split(":")
    if kind in ("log", "uniform", "int") and len(ends) == 2:
        try:
            low, high = (int(end) if kind == "int" else float(end) for end in ends)
        except ValueError:
            raise UserError(f"--search={text}: {ends} are not two numbers") from None
        return key.removeprefix("config."), (kind, low, high)
    if not equals or ends:
        raise UserError(f"--search={text}: write KEY=log:LOW:HIGH, uniform:, int: or KEY=V1,V2")
    return key.removeprefix("config."), parse_values(value)
