"""A finished run (or one under way), opened to be looked at: evaluated, asked, exported."""

from __future__ import annotations

import dataclasses
import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np

from bigjax.build.assemble import Setup, assemble, open_sources
from bigjax.config import resolve as configs
from bigjax.config.config import Config
from bigjax.config.values import TRUST_ALL
from bigjax.core.adapt import BASE
from bigjax.core.errors import UserError, did_you_mean, needed
from bigjax.core.state import TrainState
from bigjax.data import inputs
from bigjax.data.handed import Inputs
from bigjax.data.sources import Arrays
from bigjax.loop.evaluate import Metrics, eval_batches, evaluate
from bigjax.loop.evaluators import Seen, check_evaluators
from bigjax.loop.record import train_batches
from bigjax.mesh import distributed
from bigjax.run import manifest
from bigjax.run.checkpoint import Checkpoints
from bigjax.run.checkpoint.folder import step_of_result
from bigjax.run.files import plain, read_json
from bigjax.run.writers import read_metrics

log = logging.getLogger("bigjax")


@dataclass(frozen=True, repr=False)  # a notebook shows what a cell ends in: not all weights
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

    def __repr__(self) -> str:
        return f"Opened({str(self.workdir)!r}, step {self.step})"

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
            check_split(self.config, split)
            source = open_sources(self.config, [split])[split]
        found = evaluate(self.setup, self.state, self.frozen, source)
        assert found is not None
        return found[0]

    def measure(self) -> Metrics:
        """What the run's evaluators give, named "eval/NAME/METRIC"."""
        check_evaluators(self.setup, self.workdir)
        found = {}
        for name, evaluator in self.setup.evaluators.items():
            seen = Seen(self.setup, self.state, self.frozen, self.step, self.workdir, name)
            (values,) = evaluator.evaluate_all(seen)
            found.update({f"eval/{name}/{metric}": value for metric, value in values.items()})
        return found

    def predictions(self, source: Any) -> Iterator[dict[str, dict[str, np.ndarray]]]:
        """For each batch of a source, without padding: {"batch": what was read, "predicted": ...}."""
        program = self.setup.program
        for batch in eval_batches(program, source, self.setup.eval_batch_size):
            predicted = program.predict_step(self.state, batch, self.frozen)
            found = jax.tree.map(distributed.whole, {"batch": batch, "predicted": predicted})
            real = found["batch"]["mask"] > 0
            yield jax.tree.map(lambda column, real=real: column[real], found)

    def answers(self, source: Any) -> Iterator[dict[str, Any]]:
        """What a person is shown of each example of a source: JSON-able, with the names of classes."""
        task, train, corpus = self.setup.program.task, self.setup.sources["train"], None
        if getattr(task, "corpus", None):
            lines = inputs.read_lines(Path(task.corpus), "config.task.corpus")
            parts = [p["predicted"] for p in self.predictions(Arrays(train.encode(lines)))]
            corpus = lines, {name: np.concatenate([p[name] for p in parts]) for name in parts[0]}
        for found in self.predictions(source):
            shown = task.present(found["predicted"], found["batch"], train, corpus)
            yield from inputs.json_rows(shown, train.class_names)

    def read(self, path: Path) -> Inputs:
        """A user's file or folder as examples, with the numbers of its good rows and what is wrong."""
        return inputs.read(path, self.setup.sources["train"], self.setup.program.task.input)

    def predict(self, rows: Mapping[str, Any] | Sequence[Any] | str | Path) -> list[dict[str, Any]]:
        """What the verb `predict` writes, one dict a row.

        rows: arrays by the name of the feature, texts, the path of a file or folder; of a run on a
          table also a pandas table, a list of dicts, or columns by name.

        Raises:
          UserError: the model cannot read them.
        """
        source = self.setup.sources["train"]
        if isinstance(rows, str | Path):
            found = self.read(Path(os.path.expanduser(rows)))
            return [
                {"row": number, **line}
                for number, line in zip(found.numbers, self.answers(found.source), strict=True)
            ]
        given = inputs.given(rows, source, self.setup.program.task.input)
        return [{"row": i, **line} for i, line in enumerate(self.answers(given))]

    def metrics(self) -> Any:
        """Every logged number as a pandas table, a row a step.

        Raises:
          UserError: pandas is not installed.
        """
        pandas = needed("pandas", "metrics as a table need")
        rows: dict[int, dict[str, Any]] = {}
        for line in read_metrics(self.workdir / "metrics.jsonl"):
            rows.setdefault(line["step"], {}).update(line)
        return pandas.DataFrame(list(rows.values())).set_index("step")

    def switched(self, workdir: str | Path) -> Opened:
        """Another run's adapters on this run's base, which is held once and serves both.

        Raises:
          UserError: that run has another model, other parametrizations, or another base.
        """
        other = Path(os.path.expanduser(workdir))
        values = read_json(other / "config.json") or {}
        for key in ("model", "adapt"):
            if plain(values.get(key)) != plain(self.config.get(key)):
                raise UserError(f"{other}: its config.{key} is not that of {self.workdir}")
        bases = [manifest.known_of(w).get("frozen", {}).get(BASE) for w in (other, self.workdir)]
        if None in bases or bases[0] != bases[1]:
            raise UserError(f"{other}: its adapters were not trained on the base of {self.workdir}")
        return dataclasses.replace(self, workdir=other, state=newest_state(self.setup, other))

    def next_batch(self) -> dict[str, jax.Array]:
        """The batch that the next step of the run would read."""
        return next(train_batches(self.setup, self.workdir, self.step))


def open_run(
    workdir: Path,
    overrides: Sequence[str] = (),
    *,
    splits: Sequence[str] | None = None,
    raw: Any = None,
    trust: bool = False,
    untrained: bool = False,
) -> Opened:
    """Opens the run in a folder at its newest good checkpoint.

    Where there is none, but `raw`, an experiment's config, starts from a published checkpoint, the
    state has that one's weights; if it leaves a head or others of the model untrained, only where
    `untrained` asks for it.

    Args:
      splits: what is evaluated, in place of `config.evaluate.splits`.
      trust: whether the folder's config may import anything; else bigjax's own short names, and
        what `raw` and `overrides` name.

    Raises:
      UserError: the folder holds no run or no checkpoint, or there is no such split.
    """
    published = not (workdir / "config.json").exists() and configs.starts_published(raw or {})
    if published:
        config = configs.resolve(raw, overrides)
        scratch = [pattern for pattern, path in config.get("init.rules") if path is None]
        if scratch and not untrained:
            raise UserError(
                f"{workdir} holds no run, and config.init leaves {', '.join(scratch)} untrained: "
                "train first, or give --untrained to see what random numbers answer"
            )
    else:
        config = load_run(workdir, overrides, raw, trust)
    if splits is not None:
        for split in splits:
            check_split(config, split)
        config = config.with_value("evaluate.splits", tuple(splits))
    setup = assemble(config, workdir)
    if published:
        source = config.get("init.source")
        log.info("%s holds no run: these are the weights of %s", workdir, source)
        state, frozen = setup.start()
    else:
        manifest.check_fitted(workdir, setup.sources["train"])
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
            f"; give one of its runs with --stage, or as --workdir: {', '.join(runs)}"
            if runs
            else "; train first"
        )
        raise UserError(f"{workdir} holds no run{hint}")
    named = configs.targets(configs.plain(raw or {}))
    return configs.load(path, overrides, named | ({TRUST_ALL} if trust else set()))


def newest_state(setup: Setup, workdir: Path) -> TrainState:
    """The state of the newest good checkpoint, or of the one that the run's result names; nothing is
    moved or removed."""
    checkpoints = Checkpoints(workdir, setup.checkpoint)
    if best := step_of_result(workdir):
        restored = best, checkpoints.restore(setup.program.state, best)
    else:
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
