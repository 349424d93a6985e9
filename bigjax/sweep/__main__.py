"""`python -m bigjax.sweep MODULE [FLAGS]`: runs a sweep file, or a grid over any experiment.
`python -m bigjax.sweep reproduce DIR/manifest.json --workdir=NEW`: runs a finished one again.

Exit codes as in `bigjax.verbs.launch`; 1 if a trial failed.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import jax

from bigjax.core.errors import UserError
from bigjax.loop.train import Stopped
from bigjax.run.files import workdir_lock
from bigjax.sweep import drive, flags, reproduce, results, search
from bigjax.sweep.describe import Sweep
from bigjax.sweep.executors import Executor, Pruning
from bigjax.sweep.results import Results
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
        how = flags.how_of(options)
        executor = flags.executor_of(how.executor, options)
        asked = {name: getattr(options, name) for name in ("workers", "devices")}
        asked = {name: value and int(value) for name, value in asked.items()}
        found = run(sweep, how, executor, workdir, asked, Stop())
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


def run(
    sweep: Sweep,
    how: flags.How,
    executor: Executor,
    workdir: Path,
    asked: Mapping[str, int | None],
    stop: Callable[[], bool],
) -> Results:
    """Checks every trial of a complete sweep, runs what is missing, and writes the results.

    Args:
      asked: workers and devices, as they were asked for; kept in the manifest.

    Raises:
      UserError: a trial's config is wrong, optuna is missing, or the folder is in use.
      Stopped: `stop()` came true; what had begun is saved.
    """
    trials = []
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
    with workdir_lock(workdir), executor:
        start = reproduce.new_start({**asked, "vectorize": how.vectorize})
        plan = drive.Plan(executor, workdir, stop, how.vectorize, how.retry_failed, pruning)
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
    return found


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
