"""Chosen matrices as products of two thin ones, begun as their truncated SVD."""

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
from bigjax.core.matrices import as_matrix, stacked_axes
from bigjax.core.rules import Rules, match_rules, paths


@dataclasses.dataclass(frozen=True)
class LowRank(Parametrization):
    """W is A B, with A (m, r) and B (r, n) trained in its place (Denton et al. 2014, section 3.2).

    They begin as the product nearest to W (Eckart & Young 1936), the singular values shared between
    them by their roots. Fewer numbers are held and trained if r (m + n) < m n; the product is made in
    each step, so that the FLOPs do not fall.

    rules: (regex, r or None).
    """

    NAME = "low_rank"

    rules: Rules = ((".*kernel", 8), (".*", None))

    def ranks(self, params: Mapping[str, Any]) -> dict[str, int]:
        """Path -> rank, of the leaves that have one.

        Raises:
          UserError: a rule matches no leaf, is no rank, or one that its matrix does not have.
        """
        where = "config.adapt: low_rank: rules"
        found = match_rules(self.rules, params, what=where)
        found = {path: rank for path, rank in found.items() if rank is not None}
        for path, rank in found.items():
            if not isinstance(rank, int) or isinstance(rank, bool) or rank < 1:
                raise UserError(f"{where}: {rank!r} (for {path}) is no rank of 1 or more, nor None")
            _, m, n = as_matrix(path, params[path].shape)
            if rank > min(m, n):
                raise UserError(
                    f"{where}: rank {rank} is more than {path} ({m} x {n}) has; at most {min(m, n)}"
                )
        return found

    def keeps(self, params: Mapping[str, Any]) -> set[str]:
        return set(params) - set(self.ranks(params))

    def hold(self, base: dict[str, jax.Array], params: Mapping[str, jax.Array]) -> dict:
        return {path: leaf for path, leaf in base.items() if path not in self.ranks(params)}

    def init(self, rng: jax.Array, params: Mapping[str, jax.Array]) -> Any:
        own = {}
        for path, rank in self.ranks(params).items():
            layers, m, n = as_matrix(path, params[path].shape)
            matrix = params[path].astype(jnp.float32).reshape(*layers, m, n)
            left, values, right = jnp.linalg.svd(matrix, full_matrices=False)
            roots = jnp.sqrt(values[..., :rank])
            cut = _inputs(params[path].shape[len(layers) :], m) + len(layers)
            a, b = (
                left[..., :, :rank] * roots[..., None, :],
                roots[..., :, None] * right[..., :rank, :],
            )
            own[f"{path}/a"] = a.reshape(*params[path].shape[:cut], rank)
            own[f"{path}/b"] = b.reshape(*layers, rank, *params[path].shape[cut:])
        return traverse_util.unflatten_dict(own, sep="/")

    def apply(self, own: Any, params: dict[str, jax.Array], step: jax.Array) -> dict:
        factors, made = paths(own), {}
        for path in {name.rpartition("/")[0] for name in factors}:
            a, b = factors[f"{path}/a"], factors[f"{path}/b"]
            count = stacked_axes(path)
            layers, rank = a.shape[:count], a.shape[-1]
            left, right = a.reshape(*layers, -1, rank), b.reshape(*layers, rank, -1)
            product = jnp.matmul(left, right, precision="highest")
            made[path] = product.reshape(*a.shape[:-1], *b.shape[count + 1 :])
        return params | made


def _inputs(shape: tuple[int, ...], m: int) -> int:
    """How many of a leaf's axes are its inputs', which are m in all."""
    return next(i for i in range(1, len(shape)) if math.prod(shape[:i]) == m)
