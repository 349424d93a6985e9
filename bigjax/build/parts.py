"""The objects that a config names, and how a training state comes to be from them. Pure."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from bigjax.config.resolve import Config
from bigjax.core import precision, settings
from bigjax.core.exact import exactly
from bigjax.core.optimizers import build as build_optimizer
from bigjax.core.state import TrainState, init_state
from bigjax.data.transforms import apply_transforms
from bigjax.mesh.placement import Placement, logical_names, place, vocabulary


@dataclass(frozen=True)
class Parts:
    """What a run is made of.

    Attributes:
      model: a Linen module; `applied` is the same model under the precision policy.
      task, optimizer: see `bigjax.tasks` and `bigjax.core.optimizers`.
      augment, preprocess: transforms of training alone, and of every batch.
      features: name -> (shape, dtype) of what the data source gives.
      ema: whether a moving average of the parameters is kept.
    """

    model: Any
    applied: Any
    task: Any
    optimizer: Any
    policy: settings.Precision
    augment: tuple[Any, ...]
    preprocess: tuple[Any, ...]
    features: dict[str, Any]
    ema: bool

    def boxed_variables(self, model: Any, init_key: jax.Array) -> Any:
        """A model's variables as Linen makes them, logical axis names around the parameters."""
        batch = apply_transforms(self.preprocess, example_batch(self.features, rows=1), init_key)
        params_key, dropout_key = jax.random.split(init_key)
        rngs = {"params": params_key, "dropout": dropout_key}
        init = exactly(functools.partial(model.init, train=False))
        return init(rngs, *self.task.inputs(batch))

    def variables(self, model: Any, init_key: jax.Array) -> Any:
        """A model's variables: plain arrays."""
        return nn.unbox(self.boxed_variables(model, init_key))

    def placements(
        self, model: Any, options: settings.Sharding, mesh: Mesh
    ) -> dict[str, Placement]:
        """Parameter path -> where it lies, without making the parameter."""
        boxed = jax.eval_shape(functools.partial(self.boxed_variables, model), jax.random.key(0))
        params, words = boxed["params"], vocabulary(model, options)
        return place(options.rules, nn.unbox(params), mesh, logical_names(params), words)

    def init(self, rng: jax.Array, hyper: dict[str, jax.Array]) -> TrainState:
        """The state before step 1, from scratch: rng uint32 (2,), hyper as `traced_hyper` gives."""
        init_key, run_key = jax.random.split(jax.random.wrap_key_data(rng))
        variables = self.variables(self.model, init_key)
        return self.init_from(variables, jax.random.key_data(run_key), hyper)

    def init_from(self, variables: Any, rng: jax.Array, hyper: dict[str, jax.Array]) -> TrainState:
        """The state before step 1, from given variables."""
        state = init_state(variables, self.optimizer, rng=rng, hyper=hyper, ema=self.ema)
        return state.replace(
            params=precision.stored_params(self.policy, state.params),
            loss_scale=precision.init_loss_scale(self.policy),
        )


def make_parts(config: Config, source: Any, total_steps: int) -> Parts:
    """The parts that a config names, fitted to the train split."""
    model, policy = config.make("model"), config.section("precision")
    optimizer = build_optimizer(
        config.section("optimizer"),
        config.get("optimizer.type"),
        config.keywords("optimizer"),
        total_steps,
    )
    if policy.policy == "full_bfloat16":
        optimizer = precision.MasterCopy(optimizer)
    return Parts(
        model=model,
        applied=precision.ModelInPrecision(model, policy),
        task=config.make("task"),
        optimizer=optimizer,
        policy=policy,
        augment=fitted(config.make("data.augment"), source),
        preprocess=fitted(config.make("data.preprocess"), source),
        features=source.features,
        ema=config.get("train.ema_decay") is not None,
    )


def traced_hyper(config: Config) -> dict[str, np.ndarray]:
    """The config's traced scalars, as the state holds them."""
    names = ["optimizer.learning_rate", "optimizer.weight_decay"]
    if config.values["distill"]:
        names += ["distill.temperature", "distill.alpha"]
    return {name: np.float32(config.get(name)) for name in names}


def key_data(seed: int) -> np.ndarray:
    """The random key of a run, as plain uint32 (2,) data."""
    return np.asarray(jax.random.key_data(jax.random.key(seed)))


def fitted(transforms: tuple[Any, ...], source: Any) -> tuple[Any, ...]:
    """The transforms, those with statistics of their own computed from the train split."""
    return tuple(t.fit(source) if hasattr(t, "fit") else t for t in transforms)


def example_batch(features: dict[str, Any], rows: int) -> dict[str, jax.Array]:
    """A batch of zeros with a source's features and the keys that the pipeline adds."""
    batch = {name: jnp.zeros((rows, *shape), dtype) for name, (shape, dtype) in features.items()}
    ids = jnp.zeros((rows,), jnp.int32)
    return {**batch, "mask": jnp.ones((rows,), jnp.float32), "sample": ids, "epoch": ids}
