"""Optax's optimizers by name, with signatures that a config can check."""

from __future__ import annotations

import functools
import importlib
import inspect
import typing
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import optax
import optax.contrib

from bigjax.core.errors import UserError, did_you_mean

# They need more than gradients (the loss, its function, per-example gradients) or another optimizer.
NOT_FROM_GRADIENTS = {"lbfgs", "momo", "momo_adam", "sophia", "dpsgd", "schedule_free"}
# Optax's ways to say per parameter what the rules here say.
REPLACED_BY_RULES = (
    "weight_decay", "mask", "weight_decay_mask", "weight_decay_rate", "adam_weight_decay"
)  # fmt: skip


def momentum(
    learning_rate: float, momentum: float = 0.9, accumulator_dtype: str | None = None
) -> optax.GradientTransformation:
    """m <- momentum m + g; p <- p - lr m (Polyak 1964)."""
    return optax.sgd(learning_rate, momentum, accumulator_dtype=accumulator_dtype)


def nesterov(
    learning_rate: float, momentum: float = 0.9, accumulator_dtype: str | None = None
) -> optax.GradientTransformation:
    """m <- momentum m + g; p <- p - lr (g + momentum m) (Sutskever et al. 2013)."""
    return optax.sgd(learning_rate, momentum, nesterov=True, accumulator_dtype=accumulator_dtype)


@functools.cache
def names() -> dict[str, Callable[..., optax.GradientTransformation]]:
    """Returns {name: factory} of every optimizer that works from gradients alone.

    The factories' signatures and annotations are plain (see `_plainly`), for the config to check.
    """
    found = {
        name: _plainly(function)
        for module in (optax.contrib, optax)
        for name, function in vars(module).items()
        if inspect.isfunction(function)
        and "learning_rate" in inspect.signature(function).parameters
        and not name.startswith(("_", "scale_by_"))
        and name not in NOT_FROM_GRADIENTS
    }
    return dict(sorted({**found, "momentum": momentum, "nesterov": nesterov}.items()))


def resolve(type_name: str) -> Callable[..., optax.GradientTransformation]:
    """Returns the factory for "adamw", "momentum", ..., or "package.module:function".

    Raises:
        UserError: there is none, or the optimizer needs more than gradients.
    """
    if ":" in type_name:
        module, _, name = type_name.partition(":")
        try:
            return getattr(importlib.import_module(module), name)
        except (ImportError, AttributeError) as error:
            raise UserError(
                f"config.optimizer.type: cannot import '{type_name}': {error}"
            ) from error
    if type_name in NOT_FROM_GRADIENTS:
        raise UserError(
            f"config.optimizer.type: '{type_name}' needs more than gradients: not supported"
        )
    if type_name not in names():
        raise UserError(
            f"config.optimizer.type: no optimizer '{type_name}'{did_you_mean(type_name, names())}; "
            f"there are {', '.join(names())}, or give package.module:function"
        )
    return names()[type_name]


def _plainly(factory: Callable[..., Any]) -> Callable[..., Any]:
    """Returns `factory`, its signature reduced to what a config can say.

    What rules replace and what is no plain value (a function) goes; a dtype is said by its name; a
    number is annotated as number, where Optax admits any array.
    """

    @functools.wraps(factory)
    def plain(**keywords: Any) -> Any:
        return factory(**keywords)

    kept, annotations = [], {}
    for name, parameter in inspect.signature(factory).parameters.items():
        default, annotation = parameter.default, parameter.annotation
        if isinstance(default, type) and default is not parameter.empty:
            default = jnp.dtype(default).name
        required = default is parameter.empty
        if name in REPLACED_BY_RULES[1:] or (callable(default) and not required):
            continue
        if isinstance(default, bool | int | float):
            may_be_none = type(None) in typing.get_args(annotation)
            annotation = int | float if type(default) is int else type(default)
            annotation = annotation | None if may_be_none else annotation
        kept.append(parameter.replace(default=default, kind=parameter.KEYWORD_ONLY))
        annotations[name] = annotation
    plain.__annotations__ = annotations
    plain.__signature__ = inspect.Signature(kept)
    return plain
