"""Optax optimizers from config: frozen leaves, per-leaf rates and decay, clipping, traced scalars.

The Optax transformation is built inside the update from the traced learning rate, so a sweep over
learning rates compiles once. Optax's own state is kept as it is: each part follows the parameters'
structure, less the frozen leaves. This room never touches devices or the loop.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import jax
import jax.numpy as jnp
import optax
import optax.contrib

from bigjax.core import compilers
from bigjax.core.errors import UserError
from bigjax.core.layout import platform
from bigjax.core.marks import Traced
from bigjax.core.optax_names import REPLACED_BY_RULES, resolve
from bigjax.core.precision import stored_state
from bigjax.core.rules import Rules, map_with_path, match_rules, paths
from bigjax.core.schedules import Constant, Schedule

LEARNING_RATE = "optimizer.learning_rate"
WEIGHT_DECAY = "optimizer.weight_decay"

# They choose the step length or average the iterates themselves, so decay must happen inside them,
# where Optax does it, and nothing may be scaled after them: rules can only be 1 or (freezing) None.
SELF_SCALED = {
    "schedule_free_adamw", "schedule_free_sgd", "prodigy", "dadapt_adamw", "dog", "dowg", "cocob"
}  # fmt: skip
# Optax adds the decay of these where it is part of the algorithm: under a trust ratio (LAMB: You et al.
# 2020, alg. 2; LARS: You et al. 2017, alg. 1), into a moment, or apart from the learning rate.
DECAY_INSIDE = {"adadelta", "adafactor", "lamb", "lars", "madgrad", "novograd"}


@dataclass(frozen=True)
class OptimizerSettings:
    """What every optimizer is told; the other keywords of the section go to Optax.

    Args:
        learning_rate: the peak; the schedule's factor multiplies it.
        weight_decay: decoupled (Loshchilov & Hutter 2019, alg. 2): p <- p - lr weight_decay p; for an
            optimizer whose own algorithm says where it belongs, there (DECAY_INSIDE, SELF_SCALED).
        clip_norm: bound of the gradients' global norm, frozen leaves left out (Pascanu et al. 2013,
            alg. 1), or None.
        state_dtype: how the state's arrays (moments) are kept between steps; all are computed with
            in float32. "bfloat16" halves their memory (see precision.stored_state).
        learning_rate_rules: (regex, factor) pairs; the leaf's whole update, decay included, is
            multiplied by the factor; None freezes the leaf.
        weight_decay_rules: (regex, factor) pairs; the leaf's weight decay is multiplied.

    Raises:
        UserError: a number is negative or not finite, or clip_norm is 0.
    """

    learning_rate: Traced = 1e-3
    schedule: Schedule = field(default_factory=Constant)
    weight_decay: Traced = 0.0
    clip_norm: float | None = None
    state_dtype: Literal["float32", "bfloat16"] = "float32"
    learning_rate_rules: Rules = ((".*", 1.0),)
    weight_decay_rules: Rules = ((".*", 1.0),)

    def __post_init__(self) -> None:
        for name in ("learning_rate", "weight_decay"):
            if not _is_factor(getattr(self, name)):
                raise UserError(
                    f"config.optimizer.{name}: expected a finite number, 0 or more, got {getattr(self, name)!r}"
                )
        if self.clip_norm is not None and not (_is_factor(self.clip_norm) and self.clip_norm > 0):
            raise UserError(
                f"config.optimizer.clip_norm: expected a number above 0, or None, got {self.clip_norm!r}"
            )


def build(
    settings: OptimizerSettings, type_name: str, keywords: Mapping[str, Any], total_steps: int
) -> Optimizer:
    """Returns the optimizer for a run of `total_steps` steps.

    Args:
        keywords: keywords of the Optax function itself, e.g. {"b2": 0.95}.

    Raises:
        UserError: unknown type, a keyword that Optax refuses or that a rule replaces, or a schedule
            that does not fit into the run.
    """
    factory = resolve(type_name)
    own = inspect.signature(inspect.unwrap(factory)).parameters
    for name in REPLACED_BY_RULES:
        if name in keywords and (name not in own or keywords[name] != own[name].default):
            raise UserError(
                f"config.optimizer.{name}: use weight_decay and weight_decay_rules instead"
            )
    settings.schedule.check(total_steps)
    name = type_name.rpartition(":")[2]  # "optax.contrib:prodigy" is no other than prodigy
    if name in SELF_SCALED and settings.state_dtype != "float32":
        raise UserError(
            f"config.optimizer.state_dtype: {type_name} keeps parameters in its state, which {settings.state_dtype} "
            "would round; use float32"
        )
    optimizer = Optimizer(settings, name, factory, dict(keywords), total_steps)
    try:
        optimizer.transformation(settings.learning_rate, settings.weight_decay, {})
    except (TypeError, ValueError) as error:
        raise UserError(f"config.optimizer: {type_name} refuses its keywords: {error}") from error
    return optimizer


@dataclass(frozen=True)
class Optimizer:
    """Pure functions over parameter trees; made by `build`."""

    settings: OptimizerSettings
    type_name: str
    factory: Callable[..., optax.GradientTransformation]
    keywords: dict[str, Any]
    total_steps: int

    def hyper(self) -> dict[str, float]:
        """Returns the numbers that are traced inputs of `update`."""
        return {
            LEARNING_RATE: float(self.settings.learning_rate),
            WEIGHT_DECAY: float(self.settings.weight_decay),
        }

    def split(self, params: Any) -> tuple[Any, Any]:
        """Returns (trainable, frozen): `params` with None in place of the leaves of the other kind.

        Raises:
            UserError: a rule is wrong (see rules.match_rules), or every leaf is frozen.
        """
        rates = self._rates(params)
        if not any(rate is not None for rate in rates.values()):
            raise UserError("config.optimizer.learning_rate_rules: every parameter is frozen")
        trainable = map_with_path(lambda path, p: None if rates[path] is None else p, params)
        frozen = map_with_path(lambda path, p: p if rates[path] is None else None, params)
        return trainable, frozen

    def merge(self, trainable: Any, frozen: Any) -> Any:
        """Returns the whole tree; the inverse of `split`."""
        return map_with_path(lambda _, t, f: f if t is None else t, trainable, frozen)

    def init(self, params: Any) -> Any:
        """Returns Optax's state for the trainable leaves of `params`."""
        scalars, trainable = self._scalars(self.hyper(), 0), self.trainable(params)
        state = self.transformation(**scalars, decays=self._decays(params)).init(trainable)
        return jax.tree.map(self._kept, jax.tree.map(_strong, state))

    def update(
        self, grads: Any, opt_state: Any, params: Any, *, hyper: Mapping[str, Any], step: Any
    ) -> tuple[Any, Any, dict[str, jax.Array]]:
        """Applies one update.

        Args:
            grads: gradients of the trainable leaves; those of frozen leaves are not looked at.
            params: all parameters, or the trainable ones alone.
            hyper: scalars by the names that `hyper()` gives; others are not looked at.
            step: number of updates already done.

        Returns:
            (new params of the structure given, new state, {"grad_norm": global norm before
            clipping, "learning_rate": the scheduled rate}).
        """
        trainable, grads = self.trainable(params), self.trainable(grads)
        rates, decays = self._rates(params), self._decays(params)
        grad_norm = global_norm(grads)
        if self.settings.clip_norm is not None:
            shrink = jnp.minimum(1, self.settings.clip_norm / grad_norm)
            grads = jax.tree.map(lambda g: (g * shrink).astype(g.dtype), grads)

        scalars = self._scalars(hyper, step)
        learning_rate, weight_decay = scalars["learning_rate"], scalars["weight_decay"]
        wide = jax.tree.map(self._wide, opt_state)
        transformation = self.transformation(**scalars, decays=decays)
        updates, new_state = transformation.update(grads, wide, trainable)

        def finish(path: str, update: jax.Array, param: jax.Array) -> jax.Array:
            if self.type_name in SELF_SCALED:
                return update
            if self.type_name not in DECAY_INSIDE:
                update = update - learning_rate * weight_decay * decays[path] * param
            return rates[path] * update

        new_trainable = optax.apply_updates(trainable, map_with_path(finish, updates, trainable))
        # A float32 rate must not widen a bfloat16 state: the step would compile anew.
        new_state = jax.tree.map(lambda new, old: _strong(new, old.dtype), new_state, wide)
        if self.settings.state_dtype == "bfloat16":
            new_state = stored_state(new_state, opt_state, step)
        info = {"grad_norm": grad_norm, "learning_rate": learning_rate}
        return _replace(params, new_trainable), new_state, info

    def precise_params(self, params: Any, opt_state: Any) -> Any:
        """Returns `params`: there are none more precise (see precision.MasterCopy)."""
        del opt_state
        return params

    def evaluation_params(self, params: Any, opt_state: Any) -> Any:
        """Returns the parameters to evaluate: `params`, or the average that schedule-free keeps.

        Source: Defazio et al. 2024, eq. 5 (x, where gradients are taken at y).
        """
        if not self.type_name.startswith("schedule_free_"):
            return params
        trainable = self.trainable(params)
        average = optax.contrib.schedule_free_eval_params(opt_state, trainable)
        return _replace(params, average)

    def transformation(
        self, learning_rate: Any, weight_decay: Any, decays: Mapping[str, float]
    ) -> Any:
        """Returns the Optax transformation.

        Args:
            decays: path -> factor of the weight decay, which the SELF_SCALED and DECAY_INSIDE ones see.
        """
        own = inspect.signature(inspect.unwrap(self.factory)).parameters
        name = next((name for name in ("weight_decay", "weight_decay_rate") if name in own), None)

        def make(factor: float) -> Any:
            inside = self.type_name in SELF_SCALED | DECAY_INSIDE
            decay = {name: weight_decay * factor if inside else 0.0} if name else {}
            return self.factory(learning_rate=learning_rate, **decay, **self.keywords)

        factors = set(decays.values()) if self.type_name in DECAY_INSIDE else set()
        if len(factors) <= 1:
            return make(factors.pop() if factors else 1.0)
        return optax.partition(
            {factor: make(factor) for factor in factors},
            lambda params: map_with_path(lambda path, _: decays[path], params),
        )

    def _kept(self, leaf: jax.Array) -> jax.Array:
        """Returns a leaf of the first state as it is kept; scalars stay as they are."""
        narrow = self.settings.state_dtype == "bfloat16" and leaf.ndim > 0
        return leaf.astype(jnp.bfloat16) if narrow and leaf.dtype == jnp.float32 else leaf

    def _wide(self, leaf: jax.Array) -> jax.Array:
        """Returns a kept leaf as it is computed with."""
        narrow = self.settings.state_dtype == "bfloat16" and leaf.dtype == jnp.bfloat16
        return leaf.astype(jnp.float32) if narrow else leaf

    def _scalars(self, hyper: Mapping[str, Any], step: Any) -> dict[str, Any]:
        factor = self.settings.schedule(step, self.total_steps)
        return {
            "learning_rate": hyper[LEARNING_RATE] * factor,
            "weight_decay": hyper[WEIGHT_DECAY],
        }

    def trainable(self, tree: Any) -> Any:
        """Returns `tree` without frozen leaves and, as some of Optax fails on them, without holes."""
        return _without_holes(self.split(tree)[0])

    def _rates(self, params: Any) -> dict[str, float | None]:
        return self._factors("learning_rate_rules", params)

    def _decays(self, params: Any) -> dict[str, float]:
        decays = self._factors("weight_decay_rules", params)
        if None in decays.values():
            raise UserError(
                "config.optimizer.weight_decay_rules: None is no factor; 0.0 means no decay"
            )
        return decays

    def _factors(self, name: str, params: Any) -> dict[str, Any]:
        what = f"config.optimizer.{name}"
        factors = match_rules(getattr(self.settings, name), params, what=what)
        for path, factor in factors.items():
            if factor is not None and not _is_factor(factor):
                raise UserError(f"{what}: '{path}' gets {factor!r}, not a number, 0 or more")
            if self.type_name in SELF_SCALED and factor not in (1, None):
                raise UserError(
                    f"{what}: {self.type_name} sets the step length of all parameters together, so "
                    f"'{path}' cannot have a factor of its own ({factor}); only None, to freeze it"
                )
        return factors


def _without_holes(tree: Any) -> Any:
    if not isinstance(tree, Mapping):
        return tree
    return {key: _without_holes(value) for key, value in tree.items() if value is not None}


def _replace(params: Any, new: Any) -> Any:
    """Returns `params` with the leaves that `new` holds under the same path."""
    by_path = paths(new)
    return map_with_path(lambda path, leaf: by_path.get(path, leaf), params)


def global_norm(tree: Any) -> jax.Array:
    """Returns the Euclidean norm of all leaves together, in float32 or wider, shape ()."""
    # A jaxlib whose fused reductions are wrong has them turned off on a CPU: one over a whole leaf would
    # write its squares to memory first (57 ms for 80 MB, 6 so). A leaf in parts stays as it lies.
    in_two = platform() == "cpu" and compilers.remedies() and jax.device_count() == 1
    return jnp.sqrt(sum(_sum_of_squares(leaf, bool(in_two)) for leaf in jax.tree.leaves(tree)))


def _sum_of_squares(leaf: jax.Array, in_two: bool) -> jax.Array:
    """Shape (); `in_two`: of sixteen parts side by side first, then of what that gives."""
    squares = jnp.square(leaf.astype(jnp.promote_types(leaf.dtype, jnp.float32)))
    if in_two and leaf.size % 16 == 0:
        squares = jax.lax.optimization_barrier(jnp.sum(squares.reshape(16, -1), axis=0))
    return jnp.sum(squares)


def _strong(leaf: jax.Array, dtype: Any = None) -> jax.Array:
    """Returns `leaf` in `dtype` (default: its own), never weakly typed, which would compile twice."""
    if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        return leaf
    return jax.lax.convert_element_type(leaf, dtype or leaf.dtype)


def _is_factor(value: Any) -> bool:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return is_number and math.isfinite(value) and value >= 0
