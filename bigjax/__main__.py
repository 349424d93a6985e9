"""`python -m bigjax`: says what there is, writes a first experiment file, asks an exported folder."""

from __future__ import annotations

import difflib
import sys

from bigjax.core.errors import UserError
from bigjax.verbs import new
from bigjax.verbs.flags import VERBS

HELP = """bigjax: one config file to one reproducible run.

    python -m bigjax new NAME [--source=SOURCE] [--task=TASK]   writes NAME.py, a commented experiment
    python -m bigjax predict FOLDER --input=FILE [--output=FILE]   asks what the verb `export` wrote
    python NAME.py [VERB] [FLAGS]        trains it; `python NAME.py --help` lists verbs and flags
    python -m experiments                lists the experiments that come along
    python -m experiments.NAME [VERB]    runs one of them
    python -m experiments runs [DIR]     a table of the runs below a folder
    python -m bigjax.sweep EXPERIMENT    many runs: grids, searches, statistics
    python -m bigjax.doctor              whether this machine computes rightly

In Python: bigjax.train(config, workdir), bigjax.open_run(workdir), bigjax.sweep(config, workdir, grid).
See README.md.
"""


def main(arguments: list[str]) -> int:
    """Runs the command; returns the exit code."""
    command = arguments[0] if arguments else "--help"
    try:
        if command == "new":
            print(new.main(arguments[1:]))
        elif command == "predict":
            from bigjax.verbs import exported  # imports JAX

            exported.main(arguments[1:])
        elif command in ("--help", "-h", "help"):
            print(HELP, end="")
        else:
            raise UserError(
                f"unknown command '{command}'{meant(command)}; see python -m bigjax --help"
            )
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def meant(command: str) -> str:
    """How what an unknown command may mean is written; "" if nothing is near."""
    written = {
        **{verb: f"python -m experiments.NAME {verb}" for verb in VERBS},
        **{word: f"python -m bigjax {word}" for word in ("new", "predict", "--help")},
        **{word: f"python -m bigjax.{word}" for word in ("doctor", "sweep")},
        "experiments": "python -m experiments",
        "runs": "python -m experiments runs",
    }
    near = difflib.get_close_matches(command, written, n=1)
    return f" (did you mean '{written[near[0]]}'?)" if near else ""


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
