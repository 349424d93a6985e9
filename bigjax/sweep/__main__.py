"""`python -m bigjax.sweep MODULE [FLAGS]`: runs a sweep file, or a grid over any experiment.
`python -m bigjax.sweep reproduce DIR/manifest.json --workdir=NEW`: runs a finished one again.

Exit codes as in `bigjax.verbs.launch`; 1 if a trial failed.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence
from pathlib import Path

import jax

from bigjax.core.errors import UserError
from bigjax.loop.train import Stopped
from bigjax.sweep import drive, flags, reproduce, results
from bigjax.verbs.launch import FAILED, OK, STOPPED, WRONG_INPUT, Stop

log = logging.getLogger("bigjax")


def main(arguments: Sequence[str]) -> int:
    """Runs the sweep that the command line says and prints its table; returns the exit code."""
    jax.config.update("jax_platforms", "cpu")  # this process only watches: devices are the workers'
    log.addHandler(logging.StreamHandler(sys.stderr))
    log.setLevel(logging.INFO)
    try:
        if arguments[:1] == ["reproduce"]:
            return reproduce.main(arguments[1:])
        options, overrides = flags.parse(arguments)
        sweep, how = flags.sweep_of(options, overrides), flags.how_of(options)
        workdir = options.workdir or Path("runs/sweeps", options.module.rpartition(".")[2])
        place = flags.executor_of(options)
        found = drive.run(sweep, workdir, how, place, Stop())
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return WRONG_INPUT
    except Stopped as stopped:
        print(f"{stopped}; run the same command again to go on", file=sys.stderr)
        return STOPPED
    print(results.text_table(found))
    for line in results.failures(found):
        print(f"failed: {line}", file=sys.stderr)
    print(f"table: {workdir}/sweep.md, sweep.csv; page: {workdir}/sweep.html")
    return OK if all(row.status in ("done", "pruned") for row in found.rows) else FAILED


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
