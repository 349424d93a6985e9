"""`python -m bigjax.sweep MODULE [FLAGS]`: runs a sweep file, or a grid over any experiment.
`python -m bigjax.sweep reproduce DIR/manifest.json --workdir=NEW`: runs a finished one again.

Exit codes as in `bigjax.verbs.launch`; 1 if a trial failed.
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

import jax

from bigjax.core.errors import UserError
from bigjax.loop.train import Stopped
from bigjax.run.files import workdir_lock
from bigjax.sweep import drive, flags, reproduce, results, search
from bigjax.sweep.describe import Sweep
from bigjax.sweep.executors import Pruning
from bigjax.sweep.trials import check_data, complete, expand
from bigjax.verbs.launch import FAILED, OK, STOPPED, WRONG_INPUT, Stop

log = logging.getLogger("bigjax")


def main(arguments: Sequence[str]) -> int:
    """Runs the sweep that the command line says; returns the exit code."""
    jax.config.update("jax_platforms", "cpu")  # this process only watches: devices are the workers'
    log.addHandler(logging.StreamHandler(sys.stderr))
    log.setLevel(logging.INFO)
    try:
        if arguments[:1] == ["reproduce"]:
            return reproduce.main(arguments[1:])
        options, overrides = flags.parse(arguments)
        sweep = complete(flags.sweep_of(options, overrides))
        workdir = options.workdir or Path("runs/sweeps", options.module.rpartition(".")[2])
        return run(sweep, options, workdir)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return WRONG_INPUT
    except Stopped as stopped:
        print(f"{stopped}; run the same command again to go on", file=sys.stderr)
        return STOPPED


def run(sweep: Sweep, options: argparse.Namespace, workdir: Path) -> int:
    """Checks every trial, runs what is missing, writes the results and prints the table."""
    trials, how = [], flags.how_of(options)
    if sweep.search is None:
        trials = expand(sweep)
        check_data(sweep, trials)
    else:
        search.check_search(sweep)
    pruning = None
    if how.prune:
        search.import_optuna()
        journal = str(workdir.absolute() / "pruning.journal")
        pruning = Pruning(how.prune, sweep.metric, sweep.mode, journal)
    with (
        workdir_lock(workdir),
        flags.executor_of(how.executor, options) as executor,
    ):
        asked = {name: getattr(options, name) for name in ("workers", "devices")}
        start = reproduce.new_start(
            {**{k: v and int(v) for k, v in asked.items()}, "vectorize": how.vectorize}
        )
        plan = drive.Plan(executor, workdir, Stop(), how.vectorize, how.retry_failed, pruning)
        try:
            if sweep.search is None:
                drive.write_description(sweep, trials, workdir)
                drive.run_trials(trials, plan)
            else:
                trials = search.run_search(sweep, plan)
        finally:
            if trials:  # an interrupted search tells none
                reproduce.record(sweep, trials, workdir, start)
                found = drive.conclude(sweep, trials, workdir)
    print(results.text_table(found))
    for line in results.failures(found):
        print(f"failed: {line}", file=sys.stderr)
    print(f"table: {workdir}/sweep.md, sweep.csv; page: {workdir}/sweep.html")
    return OK if all(row.status in ("done", "pruned") for row in found.rows) else FAILED


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
