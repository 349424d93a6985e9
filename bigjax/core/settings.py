"""The settings of a run: one frozen dataclass per config section, with its defaults and ranges.

Every field is a plain value; a range or a contradiction is refused in `__post_init__`. The values
are read by the room each section is named after. No JAX here.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from bigjax.core.errors import UserError, did_you_mean
from bigjax.core.marks import RunReference


def _positive(section: str, **values: float | None) -> None:
    for key, value in values.items():
        if value is not None and value <= 0:
            raise UserError(f"config.{section}.{key}: {value!r} must be more than 0")


@dataclass(frozen=True)
class Train:
    """How long, and how many examples at a time."""

    steps: int | None = None
    epochs: float | None = None
    examples: int | None = None
    batch_size: int = 64  # global: over all devices and hosts
    accumulate: int = 1  # microbatches a step; the numbers stay the same, memory falls
    ema_decay: float | None = None  # keep a moving average of the parameters and evaluate that

    def __post_init__(self) -> None:
        lengths = {"steps": self.steps, "epochs": self.epochs, "examples": self.examples}
        given = [name for name, value in lengths.items() if value is not None]
        if len(given) != 1:
            raise UserError(
                "config.train: give exactly one of steps, epochs, examples, not "
                + (" and ".join(given) or "none")
            )
        _positive("train", **lengths, batch_size=self.batch_size, accumulate=self.accumulate)
        if self.batch_size % self.accumulate:
            raise UserError(
                f"config.train.accumulate: {self.accumulate} does not divide "
                f"train.batch_size {self.batch_size}"
            )
        if self.ema_decay is not None and not 0 < self.ema_decay < 1:
            raise UserError(f"config.train.ema_decay: {self.ema_decay} must lie between 0 and 1")

    def total_steps(self, train_examples: int) -> int:
        """Steps of the whole run; enough to see at least the examples asked for.

        Raises:
          UserError: they are more than a step number can count.
        """
        examples = self.examples or (self.epochs or 0) * train_examples
        steps = self.steps or max(1, math.ceil(examples / self.batch_size))
        if steps >= 2**31:
            raise UserError(
                f"config.train: {steps:.3g} steps are more than a run can count (2**31)"
            )
        return steps


@dataclass(frozen=True)
class Data:
    """Where examples come from and what happens to them on the way to the model."""

    source: Any
    # "train" and the names that `evaluate.splits` and evaluators may use -> a part of the source, such
    # as "train[:90%]", or of one of `sources`: "NAME:train"
    splits: Mapping[str, str]
    sources: Mapping[str, Any] | None = None  # other sources, by name
    # split -> weight: what is trained on in place of "train" alone, which is among them; and split ->
    # schedule that its weight is multiplied by (see `bigjax.core.mixing`)
    mixture: Mapping[str, float] | None = None
    mixture_schedules: Mapping[str, Any] | None = None
    augment: Sequence[Any] = ()  # training only, first
    preprocess: Sequence[Any] = ()  # always, after `augment`
    workers: int = 2  # reading threads

    def __post_init__(self) -> None:
        if "train" not in self.splits:
            raise UserError("config.data.splits: needs a split named 'train'")
        _positive("data", workers=self.workers)
        mixed = self.mixture or {}
        if mixed and "train" not in mixed:
            raise UserError("config.data.mixture: must hold 'train', which all is fitted to")
        for name, weight in mixed.items():
            if name not in self.splits:
                raise UserError(
                    f"config.data.mixture.{name}: no such split{did_you_mean(name, self.splits)}; "
                    f"config.data.splits has {', '.join(self.splits)}"
                )
            if not 0 <= weight < math.inf:
                raise UserError(f"config.data.mixture.{name}: {weight!r} must be 0 or more")
        for name in self.mixture_schedules or {}:
            if name not in mixed:
                raise UserError(
                    f"config.data.mixture_schedules.{name}: no part of config.data.mixture"
                    f"{did_you_mean(name, mixed)}"
                )


@dataclass(frozen=True)
class Evaluate:
    """Which splits are evaluated, and when (see `bigjax.config.when`)."""

    splits: Sequence[str] = ()  # default: those of `data.splits` that are not trained on
    every: int | float | str = 0.1  # ten times a run, so that a curve has points
    batch_size: int | None = None  # default: train.batch_size

    def __post_init__(self) -> None:
        _positive("evaluate", batch_size=self.batch_size)


@dataclass(frozen=True)
class Checkpoint:
    """When the state is saved and which saves are kept."""

    every: int | float | str = "end"
    keep: int = 3  # the newest ones
    best: str | None = None  # a metric such as "eval/test/accuracy": its best save is kept too
    best_mode: Literal["max", "min"] = "max"
    # a folder or a URL (gs://BUCKET/...) under which each new run keeps its checkpoints by its id,
    # instead of in its own folder
    folder: str | None = None
    # early stopping: the run ends after so many evaluations in a row in which `best` was not bettered
    patience: int | None = None
    # the save whose weights a finished run is: judged, opened, exported, taught from
    final: Literal["newest", "best"] = "newest"

    def __post_init__(self) -> None:
        _positive("checkpoint", keep=self.keep, patience=self.patience)
        for key, said in (("patience", self.patience is not None), ("final", self.final == "best")):
            if said and self.best is None:
                raise UserError(
                    f"config.checkpoint.{key}: name the metric in config.checkpoint.best, such as "
                    "eval/test/accuracy"
                )


@dataclass(frozen=True)
class Log:
    """What a person sees."""

    every: int = 100  # steps
    tensorboard: bool = True
    trackers: Sequence[str] = ()  # "wandb" (offline), "mlflow" (local files)
    profile: int | float | str = "never"  # when to trace one step with the JAX profiler
    histograms: bool = False  # of every parameter, in TensorBoard, at each checkpoint

    def __post_init__(self) -> None:
        _positive("log", every=self.every)


@dataclass(frozen=True)
class Check:
    """What is done about numbers that cannot be right (see `bigjax.core.guard`, `bigjax.run.ledger`, `bigjax.loop.replay`)."""

    # stop: exit 1 with a dump; skip: go on without that update; rewind: back to the newest
    # checkpoint and on without those examples; off: no check at all
    policy: Literal["stop", "skip", "rewind", "off"] = "stop"
    # a loss this many robust deviations above the recent ones is bad too
    spike: float | None = None
    max_skips: int = 10  # in a row; then the run stops
    max_rewinds: int = 3  # of the whole run; then it stops
    replay_every: int | None = None  # steps; each is run twice and compared, bit for bit

    def __post_init__(self) -> None:
        _positive(
            "check", spike=self.spike, max_skips=self.max_skips, replay_every=self.replay_every
        )
        if self.max_rewinds < 0:
            raise UserError(f"config.check.max_rewinds: {self.max_rewinds} must be 0 or more")


@dataclass(frozen=True)
class Precision:
    """In which floating-point format a run computes and keeps its parameters (`bigjax.core.precision`)."""

    # float32; bfloat16: computes in bfloat16, keeps float32; full_bfloat16: keeps bfloat16 too, and a
    # float32 master copy beside the optimizer's state; float16: computes in float16 with loss scaling
    policy: Literal["float32", "bfloat16", "full_bfloat16", "float16"] = "float32"
    # (regex, dtype) for the parameters whose layers compute in another dtype; first match wins
    exceptions: Sequence[tuple[str, Literal["float32", "bfloat16", "float16"]]] = ()
    # of float32 matrix products on hardware that has cheaper ones; "highest" is true float32
    matmul: Literal["default", "high", "highest"] = "default"


@dataclass(frozen=True)
class Mesh:
    """Devices along each axis; -1 takes what is left, and at most one axis may say it."""

    data: int = -1
    fsdp: int = 1
    tensor: int = 1
    sequence: int = 1
    expert: int = 1
    pipeline: int = 1
    dcn: int = 1  # slices (or hosts) joined by the slow network; the batch is split over them first

    def __post_init__(self) -> None:
        sizes = vars(self)
        for axis, size in sizes.items():
            if size == 0 or size < -1:
                raise UserError(f"config.mesh.{axis}: {size} must be -1 or at least 1")
        if list(sizes.values()).count(-1) > 1:
            free = [axis for axis, size in sizes.items() if size == -1]
            raise UserError(f"config.mesh: only one axis may be -1, not {' and '.join(free)}")


@dataclass(frozen=True)
class Sharding:
    """Which parameter is split over which mesh axes (see `bigjax.mesh.placement`), and by whom."""

    rules: Sequence[tuple[str, Any]] = ((".*", "tensor + fsdp:65536"),)
    # (logical axis name, mesh axis) pairs that go before the model's own LOGICAL_RULES
    logical: Sequence[tuple[str, Any]] = ()
    # jit: the compiler splits the step; shard_map: it runs per device, with explicit sums
    mode: Literal["jit", "shard_map"] = "jit"
    # with mesh.sequence: keys and values go round, or each device gathers all (`bigjax.models.ring`)
    sequence: Literal["ring", "gather"] = "ring"
    # with mesh.pipeline: at most so many pass at a time (`bigjax.models.pipeline`); None: 4 a stage
    microbatches: int | None = None
    # and each goes so often round the stages, which then have as many groups of layers
    rounds: int = 1
    # the optimizer's state lies in the host's memory between steps (see `bigjax.mesh.offload`)
    offload_optimizer: bool = False

    def __post_init__(self) -> None:
        if self.microbatches is not None and self.microbatches < 1:
            raise UserError(f"config.sharding.microbatches: {self.microbatches} must be at least 1")
        if self.rounds < 1:
            raise UserError(f"config.sharding.rounds: {self.rounds} must be at least 1")


@dataclass(frozen=True)
class Init:
    """Initial weights from another run or a published checkpoint; the optimizer starts fresh."""

    OPTIONAL: ClassVar[bool] = True

    # a run folder ("../NAME" names an earlier stage of a pipeline); with `family`: see pretrained.reader
    source: RunReference
    # of a published checkpoint: bert, gpt2, llama, ... (see `bigjax.pretrained.families`)
    family: str | None = None
    # regex -> parameter path in the source (may use \1), or None: initialised from scratch.
    rules: Sequence[tuple[str, str | None]] = field(default=((r"(.*)", r"\1"),))
    unused: Sequence[str] = ()  # regexes of published names that nothing needs to read
    resize: Sequence[str] = ()  # regexes of leaves cut or, from scratch, filled up to our shape
    # which blocks of the source, from 0, become block_0, block_1, ... here: (0, 2, 4) of six; (): all
    layers: Sequence[int] = ()
    # of a folder of adapters (peft's): "merge" into the base, or "train" on, as config.adapt then says
    adapters: Literal["merge", "train"] = "merge"

    def __post_init__(self) -> None:
        if any(layer < 0 for layer in self.layers):
            raise UserError(f"config.init.layers: {tuple(self.layers)} must be 0 or more")
        if self.family is None and (self.unused or self.resize):
            raise UserError("config.init: `unused` and `resize` need a `family`")


@dataclass(frozen=True)
class Teacher:
    """A model that a method reads and does not train; what is not said here is its run's own, or this run's
    of a published checkpoint.
    """

    source: str  # a run folder; or a folder or Hub id OWNER/NAME in published layout
    family: str | None = None  # of a published checkpoint; found in its config.json
    model: Mapping[str, Any] | None = None  # fields of the model, such as head="mlm"
    task: Mapping[str, Any] | None = None  # what it reads of a batch
    preprocess: Sequence[Any] | None = None  # in place of its run's
    precision: Mapping[str, Any] | None = None  # in which it computes
    sharding: Mapping[str, Any] | None = None  # where its parameters lie
    unused: Sequence[str] = ()  # as in `Init`

    @property
    def changes(self) -> dict[str, Any]:
        """Section of a config -> what is said otherwise."""
        sections = ("model", "task", "precision", "sharding")
        found = {name: value for name in sections if (value := getattr(self, name)) is not None}
        return (
            found if self.preprocess is None else found | {"data": {"preprocess": self.preprocess}}
        )
