"""A config made into all that a run needs. After this, nobody reads a config: only plain values.

References to other runs, and published weights, are resolved here once.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from bigjax.build.cache import Taught, taught_source
from bigjax.build.parts import traced_hyper
from bigjax.build.program import Program, build_program, read_references
from bigjax.build.references import read_models
from bigjax.build.weights import (
    base_again,
    check_init,
    initial_state,
)
from bigjax.config.config import Config
from bigjax.core import settings
from bigjax.core.adapt import BASE
from bigjax.core.errors import UserError
from bigjax.core.method import Method, Reference
from bigjax.core.mixing import Mixing
from bigjax.core.order import stream_of
from bigjax.core.state import TrainState
from bigjax.data.labels import lost_class
from bigjax.data.sources import check_classes, check_numbers, open_splits
from bigjax.mesh.sharding import check_batch, make_mesh
from bigjax.tasks.regression import Regression

log = logging.getLogger("bigjax")

SECTIONS = ("train", "evaluate", "checkpoint", "log", "check")  # whose settings a run holds


@dataclasses.dataclass(frozen=True)
class Setup:
    """A run, ready to start.

    Attributes:
      values: what `config.json` holds. fingerprint: of these values.
      train, evaluate, checkpoint, log, check: the settings of these sections.
      sources: split -> its examples: "train", and every split that is evaluated.
      evaluators: name -> evaluator (see `bigjax.loop.evaluators`).
      total_steps: of the whole run.
      program: the jitted functions.
      method: the run's, with its own scalars; the program's may have those of a run that shares it.
      order: which examples a step reads (`Method.order`, or `data.mixture`); None: the shuffled stream.
      mixing: of the parts of `data.mixture`, or None.
      hyper: the traced scalars, as the state holds them.
      initial: () -> (state before step 1, base).
      base_again: () -> the base of a run that has begun.
      read_frozen: () -> the variables of other runs that the method names.
      models: fields of the method that name a model. read_model: one of them -> (the model, its variables),
        also where its outputs are read from a cache.
      cached: the train split, where it holds the outputs of those runs in their place.
    """

    values: dict[str, Any]
    fingerprint: str
    seed: int
    train: settings.Train
    evaluate: settings.Evaluate
    checkpoint: settings.Checkpoint
    log: settings.Log
    check: settings.Check
    workers: int
    sources: dict[str, Any]
    evaluators: dict[str, Any]
    total_steps: int
    program: Program
    method: Method
    order: Callable[[Any], Any] | None
    hyper: dict[str, Any]
    initial: Callable[[], tuple[TrainState, Any]]
    base_again: Callable[[], Any]
    read_frozen: Callable[[], dict[str, Any]]
    models: tuple[str, ...]
    read_model: Callable[[str], tuple[Reference, Any]]
    cached: Taught | None = None
    mixing: Mixing | None = None

    def measure(self, step: int) -> dict[str, float]:
        """Metric -> number, of what is known of the run after `step` updates without its data."""
        mixed = self.mixing.measure(step) if self.mixing else {}
        return self.method.measure(step, self.sources["train"]) | mixed

    def start(self) -> tuple[TrainState, dict[str, Any]]:
        """(the state before step 1, frozen)."""
        state, base = self.initial()
        return state, self.frozen(base)

    def frozen(self, base: Any = None, *, references: bool = True) -> dict[str, Any]:
        """name -> variables that are read but never trained.

        base: of `initial`; made again if absent. references: with those of other runs.
        """
        found = self.read_frozen() if references else {}
        if references and self.cached:
            self.cached.fill()
        if BASE in self.program.frozen:
            found[BASE] = self.base_again() if base is None else base
        return found

    @property
    def eval_batch_size(self) -> int:
        return self.evaluate.batch_size or self.train.batch_size


def assemble(
    config: Config, workdir: Path, *, sources: dict[str, Any] | None = None, mesh: Any = None
) -> Setup:
    """Opens the data, reads the configs of other runs, and builds the program.

    Args:
      config: the run's.
      workdir: its folder; references that start with "." are seen from there.
      sources: split -> its examples, where they are open already.
      mesh: default what the config says.

    Raises:
      UserError: a reference, a data set or a checkpoint is not there, or something does not fit.
    """
    sources = open_sources(config) if sources is None else sources
    check_init(config, workdir)
    models = read_models(config, workdir)
    words = {name: model.words for name, model in models.items()}
    mesh = make_mesh(config.section("mesh")) if mesh is None else mesh
    method, cached = config.make("method"), None
    if method.cached:
        cached = taught_source(config, workdir, sources["train"], models, mesh, words)
        sources = {**sources, "train": cached}
    references = {name: model.config for name, model in models.items()}
    program = build_program(config, sources["train"], references, mesh, words)
    source, evaluation = sources["train"], config.section("evaluate")
    if evaluation.batch_size and (evaluation.splits or config.get("evaluators")):
        check_batch("config.evaluate.batch_size", evaluation.batch_size, 1, program.mesh)
    order, mixing = _order(config, method, source)

    def read_model(name: str) -> tuple[Reference, Any]:
        abstract, _, found = read_references(config, {name: references[name]}, source, mesh, words)
        return found[name], models[name].variables(abstract[name])

    return Setup(
        values=config.values,
        fingerprint=config.fingerprint,
        seed=config.seed,
        **{name: config.section(name) for name in SECTIONS},
        workers=config.get("data.workers"),
        sources=sources,
        evaluators=config.make("evaluators"),
        total_steps=config.section("train").total_steps(len(source)),
        program=program,
        method=method,
        order=order,
        mixing=mixing,
        hyper=traced_hyper(config),
        initial=lambda: initial_state(config, program, workdir),
        base_again=lambda: base_again(config, program, workdir),
        read_frozen=lambda: {
            name: models[name].variables(abstract)
            for name, abstract in program.frozen.items()
            if name != BASE
        },
        models=tuple(models),
        read_model=read_model,
        cached=cached,
    )


def open_sources(config: Config, splits: Sequence[str] | None = None) -> dict[str, Any]:
    """The train split and the others given; default every one that is evaluated."""
    data = config.section("data")
    if splits is None:
        own = [one["data"] for one in config.get("evaluators").values() if one["data"]]
        splits = (*config.get("evaluate.splits"), *own)
    sources = open_splits(data, ("train", *splits))
    check_vocabulary(config, sources["train"])
    check_labels(config, sources)
    return sources


def _order(
    config: Config, method: Method, source: Any
) -> tuple[Callable[[Any], Any] | None, Mixing | None]:
    """(which examples a step reads, or None for the shuffled stream; the mixture of `source.parts`).

    Raises:
      UserError: the method and the mixture both say, or a mixture is counted in epochs.
    """
    data, train = config.section("data"), config.section("train")
    total_steps = train.total_steps(len(source))
    order = method.order(source, config.seed, train.batch_size, total_steps)
    if not data.mixture:
        return order, None
    if order:
        raise UserError(
            "config.data.mixture: the method chooses its examples itself; leave one out"
        )
    if train.epochs:
        raise UserError(
            "config.train.epochs: a mixture has no epochs, its parts have; give steps or examples"
        )
    sizes = {name: len(part) for name, part in source.parts.items()}
    schedules = data.mixture_schedules or {}
    streams = {name: stream_of(part) for name, part in source.parts.items()}
    mixing = Mixing(
        sizes, data.mixture, schedules, config.seed, train.batch_size, total_steps, streams
    )
    return mixing.rows_of, mixing


def check_labels(config: Config, sources: dict[str, Any]) -> None:
    """Refuses labels that no output stands for: the loss would pass over them in silence.

    Not where a transform of the user's own may change them first.
    """
    transforms = (*config.get("data.augment"), *config.get("data.preprocess"))
    outputs = config.values["model"].get("outputs")
    task = config.make("task")
    if isinstance(task, Regression):
        check_numbers(sources["train"], task.label)
    known = task.classes(outputs) if isinstance(outputs, int) else None
    if known and not any(":" in one["type"] for one in transforms):
        label, classes, not_scored = known
        for split, source in sources.items():
            check_classes(source, label, classes, split, not_scored)
            tell_of_order(config.get("data.splits"), split, label, sources)


def tell_of_order(
    splits: Mapping[str, str], split: str, label: str, sources: Mapping[str, Any]
) -> None:
    """Warns of a part of train's own rows without a class of train, as of a file sorted by its label."""
    parts = [splits[name].partition("[")[0] for name in ("train", split)]
    if parts[0] != parts[1] or not all(hasattr(sources[n], "column") for n in ("train", split)):
        return
    train, part = (sources[name].column(label) for name in ("train", split))
    lost = lost_class(train, part) if train.ndim == 1 and train.dtype.kind in "iu" else None
    if lost:
        names = sources["train"].class_names
        log.warning(
            "split %r (%s) holds no example of class %s, which is %.0f %% of train: are the rows in order "
            "of their labels? Shuffle the file",
            *(split, splits[split], names[lost[0]] if names else lost[0], 100 * lost[1]),
        )


def check_vocabulary(config: Config, source: Any) -> None:
    """Refuses a tokenizer that is not the model's. Up to 255 rows more than tokens, or a hundredth, are
    padding: a published Qwen 2.5 has 271."""
    tokens, rows = getattr(source, "vocab_size", None), config.values["model"].get("vocab")
    if tokens is None or rows is None:
        return
    if not tokens <= rows <= tokens + max(255, tokens // 100):
        raise UserError(
            f"config.model.vocab: {rows}, but the tokenizer of the data has {tokens} tokens"
        )
