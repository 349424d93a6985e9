"""Floating-point formats: in which one each parameter is kept, and in which one each layer computes.

One rule: a layer computes in the dtype of its parameters. So a policy and its exceptions only say one
dtype per parameter, and models say nothing. Norms and heads are float32 unless an exception says
otherwise; losses and attention's softmax always are. This room knows neither devices nor the loop.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import flax
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from bigjax.core.adapt import PerLayer
from bigjax.core.rules import map_with_path, match_rules, paths
from bigjax.core.settings import Precision

COMPUTE = {
    "float32": "float32",
    "bfloat16": "bfloat16",
    "full_bfloat16": "bfloat16",
    "float16": "float16",
}
# Norms by the names that Flax and bigjax give them (LayerNorm_0, norm, attention_norm), heads, and what
# chooses experts.
FLOAT32_PATHS = (r"(?i)(.*/)?[^/]*norm(_\d+)?/[^/]*", r"(.*/)?head/.*", r"(.*/)?router/.*")
NORMS = (nn.BatchNorm, nn.LayerNorm, nn.RMSNorm, nn.GroupNorm, nn.InstanceNorm)


def param_dtypes(precision: Precision, params: Any) -> dict[str, str]:
    """Parameter path -> the dtype its layer computes in.

    Raises:
      UserError: an exception matches no parameter (see rules.match_rules).
    """
    names = list(paths(params))
    float32 = [p for p in FLOAT32_PATHS if any(re.fullmatch(p, name) for name in names)]
    return match_rules(
        [
            *precision.exceptions,
            *((pattern, "float32") for pattern in float32),
            (".*", COMPUTE[precision.policy]),
        ],
        params,
        what="config.precision.exceptions",
    )


def cast_params(precision: Precision, params: Any) -> Any:
    """The parameters in the dtypes that their layers compute in; integers stay as they are. Pure."""
    dtypes = param_dtypes(precision, params)

    def in_dtype(path: str, leaf: Any) -> Any:
        later = isinstance(leaf, PerLayer)
        return leaf.astype(dtypes[path]) if later else cast(leaf, dtypes[path])

    return map_with_path(in_dtype, params)


def stored_params(precision: Precision, params: Any) -> Any:
    """The parameters as the training state keeps them: float32, but under "full_bfloat16"."""
    return cast_params(precision, params) if precision.policy == "full_bfloat16" else params


def cast(x: Any, dtype: Any) -> Any:
    """`x` in `dtype` if it is an array of floating-point numbers, else as it is."""
    floating = isinstance(x, jax.Array | np.ndarray) and jnp.issubdtype(x.dtype, jnp.floating)
    return x.astype(dtype) if floating else x


@dataclass(frozen=True)
class ModelInPrecision:
    """A Linen module's `apply` under a precision policy; floating-point outputs are float32."""

    model: nn.Module
    precision: Precision

    def apply(self, variables: Mapping[str, Any], *inputs: Any, **options: Any) -> Any:
        """As `nn.Module.apply`; `variables["params"]` in the dtypes that the state keeps."""
        options = accepted(self.model, options)
        variables = {**variables, "params": cast_params(self.precision, variables["params"])}
        with (
            jax.default_matmul_precision(self.precision.matmul),
            nn.intercept_methods(compute_in_param_dtype),
        ):
            result = self.model.apply(variables, *inputs, **options)
        if not options.get("mutable"):
            return _float32(result)
        outputs, collections = result
        return _float32(outputs), collections


def accepted(model: nn.Module, options: Mapping[str, Any]) -> dict[str, Any]:
    """The options of a call without `train` where the module's `__call__` takes none."""
    parameters = inspect.signature(type(model).__call__).parameters.values()
    if any(p.name == "train" or p.kind == p.VAR_KEYWORD for p in parameters):
        return dict(options)
    return {key: value for key, value in options.items() if key != "train"}


def compute_in_param_dtype(layer_call: Any, args: Any, kwargs: Any, context: Any) -> Any:
    """Flax interceptor: a layer's floating-point inputs are cast to the dtype of its parameters.

    A layer is a module with parameters of its own and no module inside that has any, so that one
    float32 layer does not turn all that follow it to float32. A norm's output goes back to the dtype
    of its input. An LSTM's cell state (the sum over time) keeps its float32.
    """
    layer = context.module
    params = layer.variables.get("params", {})
    dtypes = [leaf.dtype for leaf in jax.tree.leaves(params)]
    if isinstance(layer, nn.OptimizedLSTMCell) and dtypes:
        dtype = jnp.result_type(*dtypes)
        (cell, hidden), *inputs = args
        args = ((cell, cast(hidden, dtype)), *(cast(x, dtype) for x in inputs))
    elif dtypes and not any(isinstance(entry, Mapping) for entry in params.values()):
        dtype = jnp.result_type(*dtypes)
        before = args[0].dtype if isinstance(layer, NORMS) else None
        args, kwargs = jax.tree.map(lambda x: cast(x, dtype), (args, kwargs))
        result = layer_call(*args, **kwargs)
        return result if before is None else cast(result, before)
    return layer_call(*args, **kwargs)


@flax.struct.dataclass
class LossScale:
    """Dynamic loss scaling (Micikevicius et al. 2018, section 3.2), part of the training state.

    The mean loss is multiplied by `value` before the gradient is taken, which lifts small gradients
    into float16's range; the gradient is divided by it in float32.

    Attributes:
      value: float32 scalar.
      good: int32 scalar, updates since it last changed.
    """

    value: jax.Array
    good: jax.Array


INITIAL_SCALE, SMALLEST_SCALE, LARGEST_SCALE = 2.0**15, 1.0, 2.0**24
GROWTH_INTERVAL = 2000  # updates without overflow after which the scale doubles


def init_loss_scale(precision: Precision) -> LossScale | None:
    """The scale before the first step; None where the policy needs none."""
    if precision.policy != "float16":
        return None
    return LossScale(value=jnp.float32(INITIAL_SCALE), good=jnp.zeros((), jnp.int32))


def loss_factor(loss_scale: LossScale | None, weight: jax.Array) -> Any:
    """What a loss sum of this weight is multiplied by before its gradient is taken."""
    return 1.0 if loss_scale is None else loss_scale.value / jnp.maximum(weight, 1.0)


def without_overflow(old: Any, new: Any, loss: Any, grads: Any) -> tuple[Any, jax.Array]:
    """`new` with its loss scale moved on, or, after an overflow, `old` with its scale halved. Pure.

    An overflow is a gradient that is not finite under a loss that is; at the smallest scale it is
    no longer the scale's doing, and `new` is given back for `bigjax.core.guard` to judge.

    Args:
      old, new: the `TrainState` before and after the update.
      loss: the step's (sum, weight).
      grads: the unscaled gradients.

    Returns:
      (state, whether there was an overflow).
    """
    scale = old.loss_scale
    finite = jnp.array([jnp.all(jnp.isfinite(g)) for g in jax.tree.leaves(grads)]).all()
    overflow = ~finite & jnp.isfinite(loss[0]) & (scale.value > SMALLEST_SCALE)
    grown = scale.good + 1 >= GROWTH_INTERVAL
    larger = jnp.minimum(scale.value * 2, LARGEST_SCALE)
    next_scale = LossScale(
        value=jnp.where(overflow, scale.value / 2, jnp.where(grown, larger, scale.value)),
        good=jnp.where(overflow | grown, 0, scale.good + 1),
    )
    state = jax.tree.map(lambda n, o: jnp.where(overflow, o, n), new, old)
    return state.replace(loss_scale=next_scale), overflow


@dataclass(frozen=True)
class MasterCopy:
    """An optimizer of narrow parameters that keeps, and updates, their float32 originals.

    An update smaller than half the spacing of bfloat16 numbers (2^-8 of the parameter) would be lost
    on the parameter itself; on the master copy it adds up (Micikevicius et al. 2018, section 3.1).

    Attributes:
      inner: a `bigjax.core.optimizers.Optimizer`; it has the same methods.
    """

    inner: Any

    def split(self, params: Any) -> tuple[Any, Any]:
        return self.inner.split(params)

    def merge(self, trainable: Any, frozen: Any) -> Any:
        return self.inner.merge(trainable, frozen)

    def init(self, params: Any) -> Any:
        """{"master": trained leaves in float32, "inner": the optimizer's state}."""
        master = _float32(self.inner.trainable(params))
        return {"master": jax.tree.map(jnp.copy, master), "inner": self.inner.init(params)}

    def update(
        self, grads: Any, opt_state: Any, params: Any, *, hyper: Mapping[str, Any], step: Any
    ) -> tuple[Any, Any, dict[str, jax.Array]]:
        """As `Optimizer.update`; `params` come back in the dtypes they came in."""
        precise, inner, info = self.inner.update(
            _float32(grads),
            opt_state["inner"],
            self.precise_params(params, opt_state),
            hyper=hyper,
            step=step,
        )
        narrow = map_with_path(lambda _, new, old: new.astype(old.dtype), precise, params)
        return narrow, {"master": self.inner.trainable(precise), "inner": inner}, info

    def precise_params(self, params: Any, opt_state: Any) -> Any:
        """The parameters as precisely as they are known."""
        master = paths(opt_state["master"])
        return map_with_path(lambda path, leaf: master.get(path, leaf), params)

    def evaluation_params(self, params: Any, opt_state: Any) -> Any:
        return self.inner.evaluation_params(
            self.precise_params(params, opt_state), opt_state["inner"]
        )


def stored_state(new: Any, like: Any, step: Any) -> Any:
    """An optimizer's new state in the dtypes of `like`; what becomes bfloat16 is rounded at random.

    Up or down with the probabilities that keep the mean: the second moment of Adam moves by 1e-3 of
    itself a step, and rounding to nearest (2^-9) would stop it for good. The randomness is a pure
    function of the step.
    """
    leaves, tree = jax.tree.flatten(new)
    keys = jax.random.split(jax.random.fold_in(jax.random.key(0), step), len(leaves))
    stored = [
        leaf if leaf.dtype == old.dtype else round_at_random(leaf, key)
        for leaf, old, key in zip(leaves, jax.tree.leaves(like), keys, strict=True)
    ]
    return tree.unflatten(stored)


def round_at_random(x: jax.Array, key: jax.Array) -> jax.Array:
    """float32 -> bfloat16, one of the two neighbours, unbiased (Gupta et al. 2015, section 2.1)."""
    bits = jax.lax.bitcast_convert_type(x, jnp.uint32)
    noise = jax.random.bits(key, x.shape, jnp.uint16).astype(jnp.uint32)
    rounded = jax.lax.bitcast_convert_type((bits + noise) & jnp.uint32(0xFFFF0000), jnp.float32)
    return jnp.where(jnp.isfinite(x), rounded, x).astype(jnp.bfloat16)


def _float32(tree: Any) -> Any:
    return jax.tree.map(lambda x: cast(x, jnp.float32), tree)
