"""LoRA and DoRA: a frozen model, and beside each chosen matrix a product of two thin ones that is trained."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import traverse_util

from bigjax.core.adapt import Parametrization
from bigjax.core.errors import UserError
from bigjax.core.matrices import as_matrix
from bigjax.core.rules import Rules, match_rules, paths

ADAPT, TRAIN = "adapt", "train"


@dataclasses.dataclass(frozen=True)
class LoRA(Parametrization):
    """W + (alpha / r) A B, with A (m, r) Gaussian and B (r, n) zero at first (Hu et al. 2021, eq. 3).

    Theirs is B A x of columns; here x W of rows, so A reads the input. Before the first step the model
    is the base, bit for bit. A leaf of more than two dimensions, such as a query's (D, heads, H), is
    the matrix that comes of cutting its dimensions in two where A and B have the fewest numbers; one
    of stacked layers has an A and a B for each layer. A and B are float32 whatever the base is.

    rank: r.
    alpha: the product is scaled by alpha / r, so that another r needs no other learning rate
      (section 4.1).
    rank_stabilized: alpha / sqrt(r) in its place, which keeps the product's size at any rank
      (Kalajdzievski 2023, eq. 7).
    rules: (regex, what becomes of the leaf): "adapt" gives it an adapter of `rank`, a whole number one
      of that rank; "train" trains the leaf itself, such as a new head; None freezes it.
    """

    NAME = "lora"
    BY_LAYER = True

    rank: int = 8
    alpha: float = 16.0
    rank_stabilized: bool = False
    rules: Rules = ((".*kernel", ADAPT), (".*", None))

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise UserError(f"{self.NAME}: rank {self.rank} must be 1 or more")

    def keeps(self, params: Mapping[str, Any]) -> set[str]:
        return {path for path, rule in self._matched(params).items() if rule == TRAIN}

    def init(self, rng: jax.Array, params: Mapping[str, jax.Array]) -> dict:
        """A and B of each adapted leaf, below the leaf's own path."""
        adapters = {}
        for number, (path, rank) in enumerate(self._ranks(params).items()):
            layers, m, n = as_matrix(path, params[path].shape)
            if rank > min(m, n):
                raise UserError(
                    f"config.adapt: {self.NAME}: rank {rank} is more than {path} ({m} x {n}) has; "
                    f"at most {min(m, n)}, or None to freeze it"
                )
            key = jax.random.fold_in(rng, number)
            a = jax.random.normal(key, (*layers, m, rank), jnp.float32) / math.sqrt(m)
            adapters[f"{path}/a"] = a
            adapters[f"{path}/b"] = jnp.zeros((*layers, rank, n), jnp.float32)
        return traverse_util.unflatten_dict(adapters, sep="/")

    def apply(self, own: Any, params: dict[str, jax.Array], step: jax.Array) -> dict:
        """The leaves with their products added, each in the base's dtype."""
        return self._added(own, params, 1.0)

    def remove(self, own: Any, merged: dict[str, jax.Array]) -> dict[str, jax.Array]:
        """The inverse of `apply`, up to rounding: the base of a merged model (path -> leaf each)."""
        return self._added(own, merged, -1.0)

    def _added(self, own: Any, params: dict[str, jax.Array], sign: float) -> dict[str, jax.Array]:
        adapters, merged = paths(own), dict(params)
        for path in adapted(adapters):
            leaf, a = params[path], adapters[f"{path}/a"]
            product = jnp.matmul(a, adapters[f"{path}/b"], precision="highest")
            added = leaf + sign * self.scale(a.shape[-1]) * product.reshape(leaf.shape)
            merged[path] = added.astype(leaf.dtype)
        return merged

    def scale(self, rank: int) -> float:
        """What the product of A and B is multiplied by."""
        return self.alpha / (math.sqrt(rank) if self.rank_stabilized else rank)

    def _ranks(self, params: Mapping[str, Any]) -> dict[str, int]:
        """Path -> rank, of the adapted leaves."""
        matched = self._matched(params)
        own = {path: self.rank if rule == ADAPT else rule for path, rule in matched.items()}
        return {path: rank for path, rank in own.items() if isinstance(rank, int)}

    def _matched(self, params: Mapping[str, Any]) -> dict[str, Any]:
        matched = match_rules(self.rules, params, what=f"config.adapt: {self.NAME}: rules")
        for path, rule in matched.items():
            whole = isinstance(rule, int) and not isinstance(rule, bool) and rule > 0
            if not (whole or rule in (ADAPT, TRAIN, None)):
                raise UserError(
                    f"config.adapt: {self.NAME}: rules: {rule!r} (for {path}) is none of 'adapt', "
                    "a rank of 1 or more, 'train' and None"
                )
        return matched


@dataclasses.dataclass(frozen=True)
class DoRA(LoRA):
    """m (W + (alpha / r) A B) / ||W + (alpha / r) A B||, a norm and an m for each output (Liu et al. 2024, eq. 5).

    m begins as the norm of W's own columns, so that the model begins as the base. No gradient goes through
    the norm (their section 4.3). Fields as LoRA's.
    """

    NAME = "dora"

    def init(self, rng: jax.Array, params: Mapping[str, jax.Array]) -> dict:
        """A, B and the magnitudes m (n,) of each adapted leaf, below the leaf's own path."""
        own = paths(super().init(rng, params))
        norms = {f"{path}/m": _norms(path, params[path])[..., 0, :] for path in self._ranks(params)}
        return traverse_util.unflatten_dict(own | norms, sep="/")

    def apply(self, own: Any, params: dict[str, jax.Array], step: jax.Array) -> dict:
        """The leaves with directions moved and magnitudes as trained, each in the base's dtype."""
        adapters, merged = paths(own), self._added(own, params, 1.0)
        for path in adapted(adapters):
            layers, m, n = as_matrix(path, merged[path].shape)
            norms = jax.lax.stop_gradient(_norms(path, merged[path]))
            matrix = merged[path].reshape(*layers, m, n) * (
                adapters[f"{path}/m"][..., None, :] / norms
            )
            merged[path] = matrix.reshape(merged[path].shape).astype(merged[path].dtype)
        return merged

    def remove(self, own: Any, merged: dict[str, jax.Array]) -> dict[str, jax.Array]:
        raise UserError("dora: the norms of its base are not kept; merge a copy instead")


def adapted(adapters: Mapping[str, Any]) -> list[str]:
    """Paths of the leaves that these adapters (path -> leaf of theirs) belong to."""
    return [path.removesuffix("/a") for path in adapters if path.endswith("/a")]


def _norms(path: str, leaf: jax.Array) -> jax.Array:
    """float32 (*layers, 1, n): of the columns of a leaf's matrix."""
    layers, m, n = as_matrix(path, leaf.shape)
    matrix = leaf.astype(jnp.float32).reshape(*layers, m, n)
    return jnp.maximum(jnp.linalg.norm(matrix, axis=-2, keepdims=True), 1e-12)
