"""A finished run (or one under way), opened to be looked at: evaluated, asked, exported."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np

from bigjax.build.assemble import Setup, assemble
from bigjax.config import resolve as configs
from bigjax.config.resolve import Config
from bigjax.core.errors import UserError, did_you_mean
from bigjax.core.state import TrainState
from bigjax.loop.evaluate import Metrics, eval_batches, evaluate
from bigjax.loop.evaluators import Seen, check_evaluators
from bigjax.mesh import distributed
from bigjax.run.checkpoint import Checkpoints

log = logging.getLogger("bigjax")


@dataclass(frozen=True)
class Opened:
    """A run with its newest state.

    workdir: its folder. config: its config.
    setup: its sources and program. frozen: the variables of the model that are not trained.
    """

    workdir: Path
    config: Config
    setup: Setup
    state: TrainState
    frozen: Any

    @property
    def step(self) -> int:
        """Updates done."""
        return int(self.state.step)

    @property
    def model(self) -> Any:
        """The Linen module."""
        return self.config.make("model")

    @property
    def variables(self) -> Any:
        """The Linen variables that the run is judged by: `model.apply(variables, x, train=False)`."""
        return self.setup.program.evaluation_variables(self.state, self.frozen)

    def evaluate(self, split: str) -> Metrics:
        """The task's metrics over one of `config.data.splits`."""
        source = self.setup.sources.get(split)
        if source is None:
            source = self.config.section("data").open(check_split(self.config, split))
        found = evaluate(self.setup, self.state, self.frozen, source)
        assert found is not None
        return found[0]

    def measure(self) -> Metrics:
        """What the run's evaluators give, named "eval/NAME/METRIC"."""
        check_evaluators(self.setup, self.workdir)
        seen = Seen(self.setup, self.state, self.frozen, self.step, self.workdir)
        return {
            f"eval/{name}/{metric}": value
            for name, evaluator in self.setup.evaluators.items()
            for metric, value in evaluator.evaluate_all(seen)[0].items()
        }

    def predictions(self, source: Any) -> Iterator[dict[str, dict[str, np.ndarray]]]:
        """For each batch of a source, without padding: {"batch": what was read, "predicted": ...}."""
        program = self.setup.program
        for batch in eval_batches(program, source, self.setup.eval_batch_size):
            predicted = program.predict_step(self.state, batch, self.frozen)
            found = jax.tree.map(distributed.whole, {"batch": batch, "predicted": predicted})
            real = found["batch"]["mask"] > 0
            yield jax.tree.map(lambda column, real=real: column[real], found)


def open_run(
    workdir: Path,
    overrides: Sequence[str] = (),
    *,
    splits: Sequence[str] | None = None,
    raw: Any = None,
    trust: bool = False,
) -> Opened:
    """Opens the run in a folder at its newest good checkpoint.

    Where there is none, but `raw`, an experiment's config, starts from a published checkpoint, the
    state has that one's weights.

    Args:
      splits: what is evaluated, in place of `config.evaluate.splits`.
      trust: whether the folder's config may import anything; else bigjax's own short names, and
        what `raw` and `overrides` name.

    Raises:
      UserError: the folder holds no run or no checkpoint, or there is no such split.
    """
    untrained = not (workdir / "config.json").exists() and configs.starts_published(raw or {})
    if untrained:
        config = configs.resolve(raw, overrides)
    else:
        config = load_run(workdir, overrides, raw, trust)
    if splits is not None:
        for split in splits:
            check_split(config, split)
        config = config.with_value("evaluate.splits", tuple(splits))
    setup = assemble(config, workdir)
    if untrained:
        source = config.get("init.source")
        log.info("%s holds no run: these are the weights of %s", workdir, source)
        state, frozen = setup.start()
    else:
        state, frozen = newest_state(setup, workdir), setup.frozen(references=False)
    return Opened(workdir, config, setup, state, frozen)


def load_run(
    workdir: Path, overrides: Sequence[str] = (), raw: Any = None, trust: bool = False
) -> Config:
    """The config of the run in the folder. Arguments as for `open_run`.

    Raises:
      UserError: the folder holds no run; the runs below it are named.
    """
    path = workdir / "config.json"
    if not path.exists():
        runs = sorted(str(p.parent) for p in workdir.glob("*/*/config.json"))
        hint = (
            f"; give one of its runs as --workdir: {', '.join(runs)}" if runs else "; train first"
        )
        raise UserError(f"{workdir} holds no run{hint}")
    named = configs.targets(configs.plain(raw or {}))
    return configs.load(path, overrides, named | ({configs.TRUST_ALL} if trust else set()))


def newest_state(setup: Setup, workdir: Path) -> TrainState:
    """The state of the newest good checkpoint; nothing is moved or removed."""
    checkpoints = Checkpoints(workdir, setup.checkpoint)
    restored = checkpoints.restore_newest(setup.program.state)
    checkpoints.close()
    if restored is None:
        raise UserError(f"{workdir}: holds no checkpoint yet")
    return restored[1]


def check_split(config: Config, split: str) -> str:
    """The split, if `config.data.splits` has it; the nearest is named if not."""
    splits = config.get("data.splits")
    if split not in splits:
        raise UserError(
            f"--split={split}: no such split{did_you_mean(split, splits)}; "
            f"config.data.splits has {', '.join(splits)}"
        )
    return split
