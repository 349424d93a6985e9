"""What the launch scripts share: where things are, and commands that are shown or run.

Standard library only: these scripts also run where bigjax is not installed.
"""

from __future__ import annotations

import shlex
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


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
        if not dry_run and (code := subprocess.run(command, check=False).returncode):
            return code
    return 0
