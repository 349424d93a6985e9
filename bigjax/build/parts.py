"""The objects that a config names, and how a training state comes to be from them. Pure."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from bigjax.build import classes
from bigjax.config.config import Config
from bigjax.core import precision, settings
from bigjax.core.adapt import MODEL, Adaptation, OwnLeaves, loops_met
from bigjax.core.errors import UserError, first_line
from bigjax.core.losses import AUXILIARY
from bigjax.core.method import Call, Facts, Method, Reference
from bigjax.core.optimizers import build as build_optimizer
from bigjax.core.rules import paths
from bigjax.core.state import TrainState, init_state
from bigjax.core.transforms import apply_transforms
from bigjax.data.sources import open_splits
from bigjax.mesh.placement import Placement, logical_names, place, vocabulary
from bigjax.mesh.sharding import batch_sharding
from bigjax.tasks.base import Task

ADAPTER_RULES = ((".*", "fsdp:65536"),)  # where the leaves of parametrizations lie


@dataclass(frozen=True)
class Network:
    """A Linen module with what decides its variables: how a run's examples reach it.

    model: the module; `applied` is the same under the run's precision policy.
    features: name -> (shape, dtype) of what the data source gives.
    """

    model: Any
    applied: Any
    task: Any
    method: Method
    preprocess: tuple[Any, ...]
    features: dict[str, Any]

    @functools.cached_property
    def boxed_variables(self) -> Callable[[jax.Array], Any]:
        """key -> the variables as Linen makes them, logical axis names around the parameters. Traced once for
        all that ask for their shapes, for places and for values."""
        return jax.jit(self._boxed_variables, inline=True)

    def _boxed_variables(self, key: jax.Array) -> Any:
        params_key, dropout_key = jax.random.split(key)
        rngs = {"params": params_key, "dropout": dropout_key}
        inputs = self.inputs(example_batch(self.features, rows=1), key)
        options = precision.accepted(self.model, {"train": False})
        variables = self.model.init(rngs, *inputs, **options)
        return {name: tree for name, tree in variables.items() if name != AUXILIARY}

    def inputs(self, batch: dict[str, jax.Array], key: jax.Array) -> tuple:
        """What the model reads of a batch that the source gives."""
        batch = apply_transforms(self.preprocess, batch, key)
        return self.task.inputs(self.method.view(batch, key))

    def call(self, variables: Any) -> Call:
        """How the model is called, with these abstract variables, on two rows of the source."""
        batch = jax.eval_shape(lambda: example_batch(self.features, rows=2))
        return Call(self.applied, variables, jax.eval_shape(self.inputs, batch, jax.random.key(0)))

    def flops(self, batch: dict[str, jax.Array]) -> dict[str, float]:
        """A training step's FLOPs by the model's own formula; {} if it has none. Nothing is computed."""
        if not hasattr(self.model, "flops"):
            return {}
        key = jax.random.key(0)
        params = jax.eval_shape(self.variables, key)["params"]
        return self.model.flops(params, *jax.eval_shape(self.inputs, batch, key))

    def variables(self, key: jax.Array) -> Any:
        """The variables: plain arrays."""
        return nn.unbox(self.boxed_variables(key))

    def placements(self, options: settings.Sharding, mesh: Mesh) -> dict[str, Placement]:
        """Parameter path -> where it lies, without making the parameter."""
        boxed = jax.eval_shape(self.boxed_variables, jax.random.key(0))
        params, words = boxed["params"], vocabulary(self.model, options)
        return place(options.rules, nn.unbox(params), mesh, logical_names(params), words)


@dataclass(frozen=True)
class Parts:
    """What a run is made of.

    network: the model, its task and method, and what they are fed.
    augment: transforms of training alone.
    ema: whether a moving average of the trained leaves is kept.
    rows: of a batch.
    """

    network: Network
    optimizer: Any
    adaptation: Adaptation
    policy: settings.Precision
    augment: tuple[Any, ...]
    ema: bool
    rows: int

    def with_own_leaves(self, facts: Facts) -> Parts:
        """These parts with the trained leaves that the method asks for, if it does."""
        make = functools.partial(self.network.method.parameters, facts=facts)
        if not jax.eval_shape(make, jax.random.key(0)):
            return self
        parts = (*self.adaptation.parts, OwnLeaves(make))
        return dataclasses.replace(
            self, adaptation=dataclasses.replace(self.adaptation, parts=parts)
        )

    def init(self, rng: jax.Array, hyper: dict[str, jax.Array]) -> tuple[TrainState, Any]:
        """(the state before step 1, base), from scratch: rng uint32 (2,), hyper as `traced_hyper` gives."""
        init_key, run_rng = split_key(rng)
        return self.init_from(self.network.variables(init_key), run_rng, hyper)

    def init_from(
        self, variables: Any, rng: jax.Array, hyper: dict[str, jax.Array], own: Any = None
    ) -> tuple[TrainState, Any]:
        """(the state before step 1, base), from given variables.

        own: leaves of parametrizations, by their NAME, that begin otherwise than these would begin them.
        base: the leaves that a parametrization freezes, {} without.
        """
        key = jax.random.wrap_key_data(rng)
        collections = {name: value for name, value in variables.items() if name != "params"}
        params = precision.stored_params(self.policy, variables["params"])
        trained, base = self.adaptation.begin(jax.random.fold_in(key, 0xADA97), params)
        trained = {**trained, **own} if own else trained
        state = init_state(trained, collections, self.optimizer, rng=rng, hyper=hyper, ema=self.ema)
        return state.replace(
            loss_scale=precision.init_loss_scale(self.policy),
            memory=self.network.method.init(jax.random.fold_in(key, 0x3E3), variables, self.rows),
        ), base

    def placements(
        self, options: settings.Sharding, mesh: Mesh, trained: Any, base: Any
    ) -> dict[str, Placement]:
        """Path of a trained or frozen leaf -> where it lies; trained, base: the abstract leaves."""
        placed = self.network.placements(options, mesh)
        if self.adaptation.parts:
            kept = paths(trained.get(MODEL, {}))
            own = {name: tree for name, tree in trained.items() if name != MODEL}
            placed |= {f"{MODEL}/{path}": placed[path] for path in kept}
            held = {path: leaf for path, leaf in paths(base).items() if path not in placed}
            for of_parts in (own, held):
                placed |= place(ADAPTER_RULES, of_parts, mesh) if paths(of_parts) else {}
        return placed


def make_parts(config: Config, source: Any, total_steps: int) -> Parts:
    """The parts that a config names, fitted to the train split."""
    optimizer = build_optimizer(
        config.section("optimizer"),
        config.get("optimizer.type"),
        config.keywords("optimizer"),
        total_steps,
    )
    policy = config.section("precision")
    if policy.policy == "full_bfloat16":
        optimizer = precision.MasterCopy(optimizer)
    network = make_network(config, source.features, source)
    adapters = config.make("adapt")
    for adapter in adapters:
        adapter.check(total_steps)
    with loops_met() as looped:
        if adapters and getattr(network.model, "scan_layers", False):
            jax.eval_shape(lambda: network.variables(jax.random.key(0)))
    remat = getattr(network.model, "remat", "none") != "none"
    return Parts(
        network=network,
        optimizer=optimizer,
        adaptation=Adaptation(adapters, frozenset(looped), remat),
        policy=policy,
        augment=fitted(config.make("data.augment"), source),
        ema=config.get("train.ema_decay") is not None,
        rows=config.get("train.batch_size"),
    )


def make_network(config: Config, features: Mapping[str, Any], source: Any) -> Network:
    """The network that a config names; its preprocessing is fitted to `source`.

    Raises:
      UserError: the task is none of ours.
    """
    task, model, policy = config.make("task"), config.make("model"), config.section("precision")
    if not isinstance(task, Task):
        raise UserError(
            f"config.task.type: {type(task).__name__} must inherit from bigjax.tasks.base.Task"
        )
    return Network(
        model=model,
        applied=Adaptation(config.make("adapt")).wrap(precision.ModelInPrecision(model, policy)),
        task=task,
        method=config.make("method"),
        preprocess=fitted(config.make("data.preprocess"), source),
        features=dict(features),
    )


def make_reference(
    name: str, config: Config, run: Config, source: Any, words: classes.Words
) -> tuple[Network, Reference]:
    """Another run's network on this run's examples, with its own preprocessing; its outputs for this
    run's classes, in their order.

    Raises:
      UserError: it cannot read this run's examples, or lacks a class.
    """
    theirs = source
    fits = any(hasattr(transform, "fit") for transform in run.make("data.preprocess"))
    if fits and run.get("data") != config.get("data"):
        theirs = open_splits(run.section("data"), ["train"])["train"]
    network = make_network(run, source.features, theirs)
    try:
        jax.eval_shape(network.variables, jax.random.key(0))
    except Exception as error:  # whatever a model makes of inputs that are not its own
        reason = first_line(error)
        raise UserError(
            f"config.method.{name}: its preprocessing and model cannot read this run's examples "
            f"({reason})"
        ) from None
    if words.mapped is not None:
        if not network.task.TOKENS or getattr(source, "vocab_size", words.mapped) != words.mapped:
            raise UserError(
                f"config.method.tokens: maps {words.mapped} tokens; the task {type(network.task).__name__} "
                f"reads {getattr(source, 'vocab_size', 'none')}"
            )
        translated = classes.Translated(network.applied, network.task.TOKENS)
        network = dataclasses.replace(network, applied=translated)
    ours, renamed = classes.words_of_source(source), config.make("method").renamed
    taken = classes.columns(ours, words, renamed, f"config.method.{name}")
    if taken is not None:
        if network.task.outputs(source) != len(taken):
            raise UserError(
                f"config.method.{name}: has the classes {', '.join(words.classes)}, this run "
                f"{', '.join(ours.classes)}; its task has no output of their own for them to be picked by"
            )
        network = dataclasses.replace(network, applied=classes.Columns(network.applied, taken))
    return network, Reference(network.applied, network.task, network.preprocess)


def traced_hyper(config: Config) -> dict[str, np.ndarray]:
    """The config's traced scalars, as the state holds them."""
    return {hyper_name(config, path): np.float32(config.get(path)) for path in config.traced}


def method_hyper(config: Config) -> dict[str, str]:
    """Field of the method -> the name of its traced scalar in the state."""
    own = [path for path in config.traced if path.startswith("method.")]
    return {path.removeprefix("method."): hyper_name(config, path) for path in own}


def hyper_name(config: Config, path: str) -> str:
    """A traced scalar's name in the state: a method's begins with its type, "distill.temperature"."""
    section, _, field = path.partition(".")
    return f"{config.get('method.type')}.{field}" if section == "method" else path


def key_data(seed: int) -> np.ndarray:
    """The random key of a run, as plain uint32 (2,) data."""
    return np.asarray(jax.random.key_data(jax.random.key(seed)))


def split_key(rng: jax.Array) -> tuple[jax.Array, jax.Array]:
    """(the key that initialises, the data of the run's own key) from a run's key data."""
    init_key, run_key = jax.random.split(jax.random.wrap_key_data(rng))
    return init_key, jax.random.key_data(run_key)


def fitted(transforms: tuple[Any, ...], source: Any) -> tuple[Any, ...]:
    """The transforms, those with statistics of their own computed from the train split."""
    return tuple(t.fit(source) if hasattr(t, "fit") else t for t in transforms)


def example_batch(features: dict[str, Any], rows: int) -> dict[str, jax.Array]:
    """A batch of zeros with a source's features and the keys that the pipeline adds."""
    batch = {name: jnp.zeros((rows, *shape), dtype) for name, (shape, dtype) in features.items()}
    ids = jnp.zeros((rows,), jnp.int32)
    return {**batch, "mask": jnp.ones((rows,), jnp.float32), "sample": ids, "epoch": ids}


def abstract_batch(mesh: Mesh, features: dict[str, Any], rows: int) -> dict[str, Any]:
    """The shapes of `example_batch`, laid out as a run's batch."""
    layout = batch_sharding(mesh)
    return {
        name: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=layout)
        for name, leaf in jax.eval_shape(lambda: example_batch(features, rows)).items()
    }
