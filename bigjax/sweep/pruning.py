"""Early stopping of weak trials, by optuna's pruners, from the metrics that a run writes anyway."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from bigjax.run.writers import read_metrics
from bigjax.sweep.executors import Pruning
from bigjax.sweep.search import import_optuna, storage


class Watch:
    """Watches one run and says when it is to be stopped.

    Args:
      folder: the run's; its metrics.jsonl is read whenever it has grown.

    Attributes:
      pruned: why, for pruned.json: step, metric and value; None while it goes on.
    """

    def __init__(self, pruning: Pruning, folder: Path):
        self._optuna = import_optuna()
        pruners = self._optuna.pruners
        pruner = (
            pruners.MedianPruner()
            if pruning.rule == "median"
            else pruners.SuccessiveHalvingPruner()
        )
        self._study = self._optuna.create_study(
            storage=storage(self._optuna, pruning.journal),
            study_name="pruning",
            direction="maximize" if pruning.mode == "max" else "minimize",
            pruner=pruner,
            load_if_exists=True,
        )
        self._trial = self._study.ask()
        self._metric = pruning.metric
        self._path = folder / "metrics.jsonl"
        self._size = 0
        self._last: tuple[int, float] | None = None
        self.pruned: dict[str, Any] | None = None

    def is_pruned(self) -> bool:
        """Cheap enough for every step: one look at the file's size."""
        if self.pruned is None and self._path.exists():
            size = self._path.stat().st_size
            if size != self._size:
                self._size = size
                self._report()
        return self.pruned is not None

    def close(self) -> None:
        """Tells the study how the run ended, for the judgement of later ones."""
        states = self._optuna.trial.TrialState
        if self.pruned:
            self._study.tell(self._trial, state=states.PRUNED)
        elif self._last:
            self._study.tell(self._trial, self._last[1])
        else:
            self._study.tell(self._trial, state=states.FAIL)

    def _report(self) -> None:
        for line in read_metrics(self._path):
            step = line["step"]
            if self._metric in line and (self._last is None or step > self._last[0]):
                self._last = step, line[self._metric]
                self._trial.report(line[self._metric], step)
                if self._trial.should_prune():
                    self.pruned = {"step": step, self._metric: line[self._metric]}
                    return
