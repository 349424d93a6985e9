"""`python -m bigjax.sweep MODULE [FLAGS]`: runs a sweep file, or a grid over any experiment.
`python -m bigjax.sweep reproduce DIR/manifest.json --workdir=NEW`: runs a finished one again.

Exit codes as in `bigjax.verbs.launch`; 1 if a trial failed.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib
import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax

from bigjax.core.errors import UserError, did_you_mean
from bigjax.loop.train import Stopped
from bigjax.run.files import workdir_lock
from bigjax.sweep import drive, grid, record, reproduce, results, search
from bigjax.sweep.describe import Search, Sweep
from bigjax.sweep.executors import Executor, Local, Pruning
from bigjax.sweep.trials import check_data, expand
from bigjax.verbs.launch import FAILED, OK, STOPPED, WRONG_INPUT, Stop

log = logging.getLogger("bigjax")

FLAGS_OF = {
    "workers": ("local", "slurm"),
    "devices": ("local",),
    "ray_address": ("ray",),
    "slurm_partition": ("slurm",),
    "slurm_time": ("slurm",),
    "cpus_per_trial": ("ray", "slurm"),
    "gpus_per_trial": ("ray", "slurm"),
}


def main(arguments: Sequence[str]) -> int:
    """Runs the sweep that the command line says; returns the exit code."""
    jax.config.update("jax_platforms", "cpu")  # this process only watches: devices are the workers'
    log.addHandler(logging.StreamHandler(sys.stderr))
    log.setLevel(logging.INFO)
    try:
        if arguments[:1] == ["reproduce"]:
            return reproduce.main(arguments[1:])
        options, overrides = parse(arguments)
        sweep = describe(options, overrides)
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
    trials = []
    if sweep.search is None:
        trials = expand(sweep)
        check_data(trials)
    else:
        search.check_search(sweep)
    if options.prune:
        search.import_optuna()
        if options.vectorize:
            raise UserError("--vectorize runs trials in step: it cannot prune them")
    with workdir_lock(workdir):
        stop = Stop()
        start = record.new_start(options)
        pruning = None
        if options.prune:
            journal = str(workdir.absolute() / "pruning.journal")
            pruning = Pruning(options.prune, sweep.metric, sweep.mode, journal)
        with choose_executor(options) as executor:
            plan = drive.Plan(
                executor, workdir, stop, options.vectorize, options.retry_failed, pruning
            )
            try:
                if sweep.search is None:
                    drive.write_description(sweep, trials, workdir)
                    drive.run_trials(trials, plan)
                else:
                    trials = search.run_search(sweep, plan)
            finally:
                if trials:  # an interrupted search tells none
                    record.write(sweep, trials, workdir, start)
                found = drive.conclude(sweep, trials, workdir) if trials else None
    print(results.text_table(found))
    for line in results.failures(found):
        print(f"failed: {line}", file=sys.stderr)
    print(f"table: {workdir}/sweep.md, sweep.csv; page: {workdir}/sweep.html")
    return OK if all(row.status in ("done", "pruned") for row in found.rows) else FAILED


def choose_executor(options: argparse.Namespace) -> Executor:
    """What --executor names.

    Raises:
      UserError: a flag is for another executor, or a package is missing.
    """
    name = options.executor
    for flag, executors in FLAGS_OF.items():
        if getattr(options, flag) is not None and name not in executors:
            raise UserError(f"--{flag} is for --executor={' or '.join(executors)}, not {name}")
    if name == "local":
        return Local(options.workers, options.devices or 1)
    from bigjax.sweep.clusters import Ray, Slurm

    cpus, gpus = options.cpus_per_trial or 1, options.gpus_per_trial or 0
    if name == "ray":
        return Ray(options.ray_address, cpus, gpus)
    return Slurm(options.slurm_partition, options.slurm_time, cpus, gpus, options.workers)


def parse(arguments: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    """The options and the config overrides of a command line.

    Raises:
      UserError: an unknown flag; the nearest is named.
    """
    overrides = [a.removeprefix("--config.") for a in arguments if a.startswith("--config.")]
    rest = [argument for argument in arguments if not argument.startswith("--config.")]
    parser = argparse.ArgumentParser(
        prog="python -m bigjax.sweep",
        allow_abbrev=False,
        exit_on_error=False,
        epilog="--config.KEY=VALUE is for every trial",
    )
    parser.add_argument("module", help="a sweep file (experiments.sweeps.NAME) or an experiment")
    parser.add_argument("--workdir", type=Path, help="default: runs/sweeps/NAME")
    what = parser.add_argument_group("what (a sweep file says these itself)")
    what.add_argument("--grid", action="append", default=[], help="KEY=V1,V2,...: all combinations")
    what.add_argument("--zip", action="append", default=[], help="KEY=V1,V2,...: taken together")
    what.add_argument("--seeds", help="how many, or which: 5, or 0,3,7")
    what.add_argument("--stage", help="of a pipeline")
    what.add_argument("--metric", help="to choose by: eval/SPLIT/NAME")
    what.add_argument("--mode", choices=("max", "min"))
    what.add_argument("--test_metric", help="shown for the chosen point only")
    what.add_argument("--by", action="append", help="KEY: choose within each of its values")
    what.add_argument("--baseline", help="KEY=VALUE: compare with it")
    what.add_argument("--interval", choices=("t", "bootstrap"))
    what.add_argument("--select_on_test", action="store_true", default=None)
    what.add_argument(
        "--search",
        action="append",
        default=[],
        help="KEY=log:LOW:HIGH, uniform:, int: or V1,V2,...",
    )
    what.add_argument("--trials", type=int, help="points to draw, with --search")
    what.add_argument("--sampler", choices=("random", "tpe"), default="tpe")
    how = parser.add_argument_group("how")
    how.add_argument("--workers", type=int, help="at once; default: as devices or cores allow")
    how.add_argument("--devices", type=int, help="accelerators (or cores) a worker (1)")
    how.add_argument("--executor", choices=("local", "ray", "slurm"), default="local")
    how.add_argument("--ray_address", help="a running cluster; default: one on this machine")
    how.add_argument("--slurm_partition")
    how.add_argument("--slurm_time", help="limit for a trial: minutes, or HH:MM:SS")
    how.add_argument("--cpus_per_trial", type=int, help="ray, slurm (1)")
    how.add_argument("--gpus_per_trial", type=int, help="ray, slurm (0)")
    how.add_argument(
        "--vectorize", type=int, nargs="?", const=64, help="run up to N small trials at once (64)"
    )
    how.add_argument("--retry_failed", action="store_true")
    how.add_argument("--prune", choices=("median", "halving"), help="stop weak trials early")
    try:
        options, unknown = parser.parse_known_args(rest)
    except argparse.ArgumentError as error:
        raise UserError(str(error)) from None
    if unknown:
        flags = [flag for action in parser._actions for flag in action.option_strings]
        word = unknown[0].partition("=")[0]
        raise UserError(f"unknown argument {word}{did_you_mean(word, flags)}")
    for name in ("workers", "devices", "vectorize", "cpus_per_trial", "gpus_per_trial"):
        if getattr(options, name) is not None and getattr(options, name) < 1:
            raise UserError(f"--{name}: at least 1")
    return options, overrides


def describe(options: argparse.Namespace, overrides: Sequence[str]) -> Sweep:
    """The sweep of the module's `get_sweep`, or of the flags; flags have the last word.

    Raises:
      UserError: there is no such module, or the flags do not make a sweep.
    """
    try:
        module = importlib.import_module(options.module)
    except ModuleNotFoundError as error:
        if error.name is None or not options.module.startswith(error.name):
            raise
        raise UserError(f"no module '{options.module}' ({error})") from None
    changes: dict[str, Any] = {
        name: getattr(options, name)
        for name in ("stage", "metric", "mode", "test_metric", "by", "interval", "select_on_test")
        if getattr(options, name) is not None
    }
    if options.seeds:
        seeds = grid.parse_values(options.seeds)
        if not all(type(seed) is int for seed in seeds):
            raise UserError(f"--seeds={options.seeds}: whole numbers")
        changes["seeds"] = seeds[0] if len(seeds) == 1 else tuple(seeds)
    if options.baseline:
        changes["baseline"] = grid.parse_points(options.baseline)[0]
    lists = [grid.parse_points(text) for text in options.grid]
    if options.zip:
        lists.append(grid.zip(*map(grid.parse_points, options.zip)))
    if lists:
        changes["points"] = grid.product(*lists)
    if options.search:
        if not options.trials:
            raise UserError("--search needs --trials=N")
        space = dict(map(_range, options.search))
        changes["search"] = Search(space, options.trials, options.sampler)
    sweep = module.get_sweep() if hasattr(module, "get_sweep") else Sweep(options.module)
    fixed = dict(sweep.overrides)
    for text in overrides:
        fixed |= _override(text)
    return dataclasses.replace(sweep, overrides=fixed, **changes)


def _override(text: str) -> grid.Point:
    key, equals, value = text.partition("=")
    if not equals:
        raise UserError(f"--config.{text}: write --config.KEY=VALUE")
    values = grid.parse_values(value)
    return {key: values[0] if len(values) == 1 else tuple(values)}


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
    return key.removeprefix("config."), grid.parse_values(value)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
