"""optuna's part: points that are drawn (random or Bayesian search), and weak trials stopped early.

What is drawn depends on the seed and on the results so far, never on how many processes run or where
the search was interrupted. optuna is an optional extra, imported here alone; it keeps journal files.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from bigjax.core.errors import UserError, needed
from bigjax.run.writers import read_metrics
from bigjax.sweep import results
from bigjax.sweep.describe import Point, Search, Sweep
from bigjax.sweep.trials import Trial, check_data, expand

AT_ONCE = 4  # points drawn before the results of the ones before them are known


def import_optuna() -> Any:
    """optuna, or a `UserError` that says how to get it."""
    optuna = needed("optuna", "search and pruning need")
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna


def open_study(optuna: Any, journal: Path | str, name: str, mode: str, **parts: Any) -> Any:
    """A study in optuna's journal file: no server, and safe for many processes."""
    from optuna.storages.journal import JournalFileBackend

    return optuna.create_study(
        storage=optuna.storages.JournalStorage(JournalFileBackend(str(journal))),
        study_name=name,
        direction="maximize" if mode == "max" else "minimize",
        load_if_exists=True,
        **parts,
    )


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
        check_data(sweep, expand(sweep, [{**sweep.points[0], **point}]))


def run_search(sweep: Sweep, workdir: Path, run: Callable[[Sequence[Trial]], None]) -> list[Trial]:
    """Draws points and has them run until there are as many as the search asks for.

    Returns all trials. If `run` raises, the next start goes on where this one was.
    """
    optuna, search = import_optuna(), sweep.search
    study = open_study(optuna, workdir / "search.journal", "search", sweep.mode)
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
        run(trials)
        if not open_ones:
            return trials
        found = results.load(sweep, trials, workdir)
        for one in open_ones:
            (group,) = (g for g in found.groups if g.point == _point(sweep, one))
            whole = all(row.status == "done" for row in group.rows)
            if whole and math.isfinite(group.summary.mean):
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


class Watch:
    """Watches one run, as a callback of `train`, and says when it is to be stopped.

    Args:
      folder: the run's; what it has evaluated before counts, too.
      rule: "median" or "halving", optuna's MedianPruner or SuccessiveHalvingPruner.
      metric, mode: judged by; whether more ("max") or less ("min") of it is better.
      journal: path of optuna's journal file, which all trials share.

    Attributes:
      pruned: why, for pruned.json: step, metric and value; None while it goes on.
    """

    def __init__(self, folder: Path, rule: str, metric: str, mode: str, journal: str):
        optuna = import_optuna()
        rules = {"median": "MedianPruner", "halving": "SuccessiveHalvingPruner"}
        pruner = getattr(optuna.pruners, rules[rule])()
        self._states = optuna.trial.TrialState
        self._study = open_study(optuna, journal, "pruning", mode, pruner=pruner)
        self._trial, self._metric = self._study.ask(), metric
        self._step, self._value = -1, math.nan  # the last that was reported
        self.pruned: dict[str, Any] | None = None
        for line in read_metrics(folder / "metrics.jsonl"):
            self(line["step"], line)

    def __call__(self, step: int, metrics: Mapping[str, Any], state: Any = None) -> None:
        if self.pruned or self._metric not in metrics or step <= self._step:
            return
        value = float(metrics[self._metric])
        self._step, self._value = step, value if math.isfinite(value) else math.nan
        self._trial.report(self._value, step)  # both rules take NaN for the worst
        if self._trial.should_prune():
            self.pruned = {"step": step, self._metric: value}

    def close(self) -> None:
        """Tells the study how the run ended, for the judgement of later ones."""
        if self.pruned:
            self._study.tell(self._trial, state=self._states.PRUNED)
        elif math.isfinite(self._value):
            self._study.tell(self._trial, self._value)
        else:
            self._study.tell(self._trial, state=self._states.FAIL)
