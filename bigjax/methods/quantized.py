"""Parametrizations in few bits: a base held so, training that sees it coming, layers' inputs.

Which leaves, and in which format, is said by rules; what has None stays in full precision.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from bigjax.core.adapt import Parametrization
from bigjax.core.errors import UserError
from bigjax.core.matrices import as_matrix
from bigjax.core.quantize import LARGEST, parse_format, quantize, rounded
from bigjax.core.rules import Rules, first_value, match_rules

DYNAMIC = "dynamic"


@dataclasses.dataclass(frozen=True)
class _InFormats(Parametrization):
    """What has rules of formats.

    rules: (regex, format): "int8", "int4", "nf4", "fp8", or None; "int4:32" has a group of its own.
    group: inputs of a channel that share a scale; None: all of them.
    """

    rules: Rules = ((".*kernel", "int8"), (".*", None))
    group: int | None = None

    def __post_init__(self) -> None:
        if self.group is not None and self.group < 1:
            raise UserError(f"{self.NAME}: group {self.group} must be 1 or more, or None")

    def formats(self, params: Mapping[str, Any]) -> dict[str, tuple[str, int | None]]:
        """Path -> (format, group), of the leaves that have one.

        Raises:
          UserError: a rule matches no leaf, gives an unknown format, or one to what is no matrix.
        """
        where = f"config.adapt: {self.NAME}: rules"
        matched = match_rules(self.rules, params, what=where)
        found = {}
        for path, name in matched.items():
            if name is not None:
                found[path] = parse_format(name, self.group, f"{where} (for {path})")
                as_matrix(path, params[path].shape)
        return found


@dataclasses.dataclass(frozen=True)
class Quantize(_InFormats):
    """Chosen leaves are frozen and held in few bits, as full numbers only where a step uses them.

    Before "lora" in `config.adapt` it is QLoRA (Dettmers et al. 2023): their nf4 has groups of 64; the
    scales, which they quantize too, are float32. The backward pass makes each leaf again from its
    codes. Of stacked layers (`model.scan_layers`) one is full numbers at a time.
    """

    NAME = "quantize"
    RECOMPUTED = True
    BY_LAYER = True

    def keeps(self, params: Mapping[str, Any]) -> set[str]:
        return set(params) - set(self.formats(params))

    def hold(self, base: dict[str, jax.Array], params: Mapping[str, jax.Array]) -> dict:
        formats = self.formats(params)
        return {
            path: quantize(path, leaf, *formats[path]) if path in formats else leaf
            for path, leaf in base.items()
        }


@dataclasses.dataclass(frozen=True)
class QuantizationAware(_InFormats):
    """Chosen leaves are seen as they will be in few bits, and trained as if rounding were not there.

    Jacob et al. 2018, section 3; the gradient goes straight through (Bengio et al. 2013). What is trained
    is rounded by the same function as what is quantized after it, so that this loses nothing more.
    """

    NAME = "qat"

    def keeps(self, params: Mapping[str, Any]) -> set[str]:
        self.formats(params)  # before a device is touched
        return set(params)

    def apply(self, own: Any, params: dict[str, jax.Array], step: jax.Array) -> dict:
        return params | {
            path: straight_through(params[path], rounded(path, params[path], *format))
            for path, format in self.formats(params).items()
        }


@dataclasses.dataclass(frozen=True)
class QuantizeInputs(Parametrization):
    """The inputs of chosen layers as eight-bit numbers: simulated, the products are of floats.

    The numbers are those of integer products with a scale for each input and each channel, up to the
    rounding of their sums; nothing becomes faster. In training the gradient goes straight through.

    rules: (regex of a layer's path, such as "dense_0", what its input's scale comes of): "dynamic"
      measures each row (a token, a picture) as it comes; a number is the largest magnitude, found on
      calibration data; None leaves the layer alone.
    """

    NAME = "quantize_inputs"
    BY_LAYER = True

    rules: Rules = ((".*", DYNAMIC),)

    def keeps(self, params: Mapping[str, Any]) -> set[str]:
        where = f"config.adapt: {self.NAME}: rules"
        layers = {p.removesuffix("/kernel"): p for p in params if p.endswith("/kernel")}
        for layer, rule in match_rules(self.rules, layers, what=where).items():
            number = isinstance(rule, int | float) and not isinstance(rule, bool) and rule > 0
            if not (number or rule in (DYNAMIC, None)):
                raise UserError(
                    f"{where}: {rule!r} (for {layer}) is none of 'dynamic', a number above 0, and None"
                )
        return set(params)

    def wrap(self, model: Any) -> Any:
        return Intercepted(model, self._interceptor)

    def _interceptor(self, layer_call: Any, args: Any, kwargs: Any, context: Any) -> Any:
        layer = context.module
        if is_matrix_layer(context):
            rule = first_value(self.rules, "/".join(layer.path))
            if rule is not None:
                x = args[0]
                largest = rule if rule != DYNAMIC else row_magnitude(layer, x)
                args = (straight_through(x, in_eight_bits(x, largest)), *args[1:])
        return layer_call(*args, **kwargs)


@dataclasses.dataclass(frozen=True)
class Intercepted:
    """A model whose layers' calls go through a Flax interceptor; has its `apply`."""

    model: Any
    interceptor: Any

    def apply(self, variables: Mapping[str, Any], *inputs: Any, **options: Any) -> Any:
        with nn.intercept_methods(self.interceptor):
            return self.model.apply(variables, *inputs, **options)


def is_matrix_layer(context: Any) -> bool:
    """Whether an intercepted call is that of a layer with a kernel of its own."""
    layer = context.module
    return context.method_name == "__call__" and "kernel" in layer.variables.get("params", {})


def row_magnitude(layer: nn.Module, x: jax.Array) -> jax.Array:
    """The largest magnitude among the inputs that a layer sums over, of each row (of each example
    where the layer is a convolution): no row depends on its neighbours."""
    if hasattr(layer, "kernel_size"):
        axes: Any = tuple(range(1, x.ndim))
    else:
        axes = getattr(layer, "axis", -1)
    return jnp.max(jnp.abs(x), axis=axes, keepdims=True)


def in_eight_bits(x: jax.Array, largest: Any) -> jax.Array:
    """The nearest of 255 levels from -largest to largest; beyond them the outermost."""
    scale = jnp.where(largest > 0, largest / LARGEST["int8"], 1.0)
    return jnp.clip(jnp.round(x / scale), -LARGEST["int8"], LARGEST["int8"]) * scale


def straight_through(x: jax.Array, seen: jax.Array) -> jax.Array:
    """`seen`, with the gradient of `x`."""
    return x + jax.lax.stop_gradient(seen - x)
