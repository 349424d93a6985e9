"""`python -m bigjax`: says what there is, writes a first experiment file, asks an exported folder."""

from __future__ import annotations

import difflib
import sys

from bigjax.core.errors import UserError
from bigjax.verbs import new

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

# What may be meant by another word -> how it is written.
ELSEWHERE = {
    **{word: f"python -m bigjax {word}" for word in ("new", "predict", "--help")},
    **{word: f"python -m bigjax.{word}" for word in ("doctor", "sweep")},
    **{
        verb: f"python -m experiments.NAME {verb}"
        for verb in ("train", "evaluate", "replay", "checkpoints", "sharding", "plan", "export",
                     "shrink", "config")
    },
    "experiments": "python -m experiments",
    "runs": "python -m experiments runs",
}  # fmt: skip


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
            near = difflib.get_close_matches(command, ELSEWHERE, n=1)
            hint = f" (did you mean '{ELSEWHERE[near[0]]}'?)" if near else ""
            raise UserError(f"unknown command '{command}'{hint}; see python -m bigjax --help")
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
