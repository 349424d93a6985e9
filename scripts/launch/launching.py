"""What the launch scripts share: where things are, and commands that are shown or run.

Standard library only: these scripts also run where bigjax is not installed.
"""

from __future__ import annotations

import argparse
import shlex
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def parser(usage: str) -> argparse.ArgumentParser:
    """A command line that ends in an experiment; `parse_known_args` leaves its flags over."""
    found = argparse.ArgumentParser(usage=usage, allow_abbrev=False)
    found.add_argument(
        "--dry_run", action="store_true", help="print what would be run, run nothing"
    )
    found.add_argument("experiment", help="experiments.NAME, then its verb and flags")
    return found


def job_name(experiment: str) -> str:
    """A name that clusters take: "experiments.digits_rnn" -> "digits-rnn"."""
    return experiment.removeprefix("experiments.").replace("_", "-").replace(".", "-")


def python() -> str:
    """The Python that scripts/run has set up; without it, the one that runs this."""
    installed = ROOT / ".venv" / "bin" / "python"
    return str(installed) if installed.exists() else sys.executable


def show_or_run(commands: Sequence[Sequence[str]], *, dry_run: bool) -> int:
    """Prints every command as one would type it, and runs it unless `dry_run`.

    Returns:
      0, or the exit code of the first command that failed; those after it do not run.
    """
    for command in commands:
        print(shlex.join(command), flush=True)
        if dry_run:
            continue
        try:
            code = subprocess.run(command, cwd=ROOT, check=False).returncode
        except FileNotFoundError:
            print(f"error: no program '{command[0]}' on this machine", file=sys.stderr)
            return 2
        if code:
            return code
    return 0
