"""What a user hands to `predict`: the rows that are good, and what is wrong with the others."""

from __future__ import annotations

import concurrent.futures
import dataclasses
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from bigjax.core.errors import UserError
from bigjax.data.sources import Source


@dataclasses.dataclass(frozen=True)
class Inputs:
    """A user's file, read for predict: the good rows, their numbers (or names), and the problems."""

    source: Source
    numbers: list[int | str]
    problems: list[str]


def good_rows(path: Path, count: int, problems: Mapping[int, str]) -> tuple[list[int], list[str]]:
    """(the numbers of the good rows of a user's file, a line for each of the others).

    Args:
      problems: number of a row, below `count` -> what is wrong with it.

    Raises:
      UserError: no row is good.
    """
    good = [number for number in range(count) if number not in problems]
    told = [f"row {number}: {problems[number]}; left out" for number in sorted(problems)]
    if not good:
        raise UserError(f"--input={path}: {nothing_left(told)}")
    return good, told


def good_files(
    path: Path, files: Sequence[Path], reason: Callable[[Path], str]
) -> tuple[dict[str, Path], list[str]]:
    """(name -> file of those in a user's folder that can be read, a line for each of the others).

    Args:
      path: the folder, or the one file.
      reason: why a file cannot be read, "" if it can; called in threads.
    """
    names = [str(file.relative_to(path)) if path.is_dir() else file.name for file in files]
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        reasons = dict(zip(names, pool.map(reason, files), strict=True))
    told = [f"{name}: {why}; left out" for name, why in reasons.items() if why]
    return {n: file for n, file in zip(names, files, strict=True) if not reasons[n]}, told


def nothing_left(problems: Sequence[str]) -> str:
    """Why no row can be predicted: the first reasons."""
    more = f"; and {len(problems) - 3} more" if len(problems) > 3 else ""
    said = "; ".join(problem.removesuffix("; left out") for problem in problems[:3])
    return f"no row can be predicted: {said or 'there is none'}{more}"
