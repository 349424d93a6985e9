"""Points that are drawn: random or Bayesian search through optuna, kept in a journal file.

What is drawn depends on the seed and on the results so far, never on how many processes run or where
the search was interrupted. optuna is an optional extra, imported here alone (and in `pruning`).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from bigjax.core.errors import UserError
from bigjax.sweep import results
from bigjax.sweep.describe import Search, Sweep
from bigjax.sweep.drive import Plan, run_trials, write_description
from bigjax.sweep.grid import Point
from bigjax.sweep.trials import Trial, check_data, expand

AT_ONCE = 4  # points drawn before the results of the ones before them are known


def import_optuna() -> Any:
    """optuna, or a `UserError` that says how to get it."""
    try:
        import optuna
    except ImportError:
        raise UserError("search and pruning need optuna: pip install 'bigjax[sweep]'") from None
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna


def storage(optuna: Any, path: Path | str) -> Any:
    """optuna's journal in a file: no server, and safe for many processes."""
    from optuna.storages.journal import JournalFileBackend

    return optuna.storages.JournalStorage(JournalFileBackend(str(path)))


def check_search(sweep: Sweep) -> None:
    """Resolves a point at each end of the space.

    Raises:
      UserError: optuna is missing, or an end of the space is no config.
    """
    import_optuna()
    if len(sweep.points) != 1:
        raise UserError("search: points are listed or drawn, not both")
    for end in (0, -1):
        point = {key: _values(kind)[end] for key, kind in sweep.search.space.items()}
        check_data(expand(sweep, [{**sweep.points[0], **point}]))


def run_search(sweep: Sweep, plan: Plan) -> list[Trial]:
    """Draws and runs points until there are as many as the search asks for; returns all trials.

    Raises:
      Stopped: as `drive.run_trials`; the next start goes on where this one was.
    """
    optuna, search = import_optuna(), sweep.search
    study = optuna.create_study(
        storage=storage(optuna, plan.workdir / "search.journal"),
        study_name="search",
        direction="maximize" if sweep.mode == "max" else "minimize",
        load_if_exists=True,
    )
    while True:
        drawn = study.get_trials(deepcopy=False)
        open_ones = [t for t in drawn if t.state == optuna.trial.TrialState.RUNNING]
        full = len(drawn) + (AT_ONCE - 1 if open_ones else AT_ONCE)  # up to the end of this batch
        wanted = min(search.trials, full // AT_ONCE * AT_ONCE)
        for number in range(len(drawn), wanted):
            study.sampler = _sampler(optuna, search, number)
            study.ask({key: _distribution(optuna, kind) for key, kind in search.space.items()})
        drawn = study.get_trials(deepcopy=False)
        open_ones = [t for t in drawn if t.state == optuna.trial.TrialState.RUNNING]
        trials = expand(sweep, [_point(sweep, t) for t in drawn])
        write_description(sweep, trials, plan.workdir)
        run_trials(trials, plan)
        if not open_ones:
            return trials
        found = results.load(sweep, trials, plan.workdir)
        for one in open_ones:
            (group,) = (g for g in found.groups if g.point == _point(sweep, one))
            if all(row.status == "done" for row in group.rows):
                study.tell(one.number, group.summary.mean)
            else:
                study.tell(one.number, state=optuna.trial.TrialState.FAIL)


def _point(sweep: Sweep, trial: Any) -> Point:
    return {**sweep.points[0], **{key: trial.params[key] for key in sweep.search.space}}


def _sampler(optuna: Any, search: Search, number: int) -> Any:
    """The sampler of draw `number`, seeded by it, so that a restart draws the same."""
    seed = search.seed * 1_000_003 + number
    if search.sampler == "random":
        return optuna.samplers.RandomSampler(seed)
    return optuna.samplers.TPESampler(seed=seed, constant_liar=True)


def _distribution(optuna: Any, kind: Any) -> Any:
    if isinstance(kind, list):
        return optuna.distributions.CategoricalDistribution(kind)
    name, low, high = kind
    if name == "int":
        return optuna.distributions.IntDistribution(low, high)
    return optuna.distributions.FloatDistribution(low, high, log=name == "log")


def _values(kind: Any) -> list[Any]:
    return kind if isinstance(kind, list) else list(kind[1:])
