"""Every command line is read here: options, and --config.KEY=VALUE among them."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Sequence
from pathlib import Path

from bigjax.core.errors import UserError, did_you_mean


def expanded(text: str) -> Path:
    """A file or folder as a flag names it: a shell leaves the ~ of `--workdir=~/run` as it is."""
    return Path(os.path.expanduser(text))


def parsed(
    parser: argparse.ArgumentParser,
    arguments: Sequence[str],
    near: Callable[[str, Sequence[str]], str] = did_you_mean,
) -> tuple[argparse.Namespace, list[str]]:
    """The options, and the config overrides "KEY=VALUE", of a command line; see `read_options`."""
    overrides = [a.removeprefix("--config.") for a in arguments if a.startswith("--config.")]
    rest = [argument for argument in arguments if not argument.startswith("--config.")]
    return read_options(parser, rest, near), overrides


def read_options(
    parser: argparse.ArgumentParser,
    arguments: Sequence[str],
    near: Callable[[str, Sequence[str]], str] = did_you_mean,
) -> argparse.Namespace:
    """The options of a command line.

    `near` gives the hint for an unknown flag, from the flag and those that the parser knows.

    Raises:
      UserError: an unknown flag, with the hint, or a value that its flag does not take.
    """
    try:
        options, unknown = parser.parse_known_args(arguments)
    except argparse.ArgumentError as error:
        raise UserError(str(error)) from None
    if unknown:
        flags = [flag for action in parser._actions for flag in action.option_strings]
        word = unknown[0].partition("=")[0]
        raise UserError(f"unknown argument {word}{near(word, flags)}")
    return options
