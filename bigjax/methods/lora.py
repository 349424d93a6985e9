"""LoRA: a frozen model, and beside each chosen matrix a product of two thin ones that is trained."""

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
from bigjax.core.rules import Rules, match_rules, paths

ADAPT, TRAIN = "adapt", "train"
STACKED = (
    "blocks"  # leaves below it have a leading axis of layers (see `bigjax.models.blocks.stack`)
)


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
    rules: (regex, what becomes of the leaf): "adapt" gives it an adapter of `rank`, a whole number one
      of that rank; "train" trains the leaf itself, such as a new head; None freezes it.
    """

    NAME = "lora"

    rank: int = 8
    alpha: float = 16.0
    rules: Rules = ((".*kernel", ADAPT), (".*", None))

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise UserError(f"lora: rank {self.rank} must be 1 or more")

    def keeps(self, params: Mapping[str, Any]) -> set[str]:
        return {path for path, rule in self._matched(params).items() if rule == TRAIN}

    def init(self, rng: jax.Array, params: Mapping[str, jax.Array]) -> dict:
        """A and B of each adapted leaf, below the leaf's own path."""
        adapters = {}
        for number, (path, rank) in enumerate(self._ranks(params).items()):
            layers, m, n = as_matrix(path, params[path].shape)
            if rank > min(m, n):
                raise UserError(
                    f"config.adapt: lora: rank {rank} is more than {path} ({m} x {n}) has; "
                    f"at most {min(m, n)}, or None to freeze it"
                )
            key = jax.random.fold_in(rng, number)
            a = jax.random.normal(key, (*layers, m, rank), jnp.float32) / math.sqrt(m)
            adapters[f"{path}/a"] = a
            adapters[f"{path}/b"] = jnp.zeros((*layers, rank, n), jnp.float32)
        return traverse_util.unflatten_dict(adapters, sep="/")

    def apply(self, own: Any, params: dict[str, jax.Array], step: jax.Array) -> dict:
        """The leaves with their products added, each in the base's dtype."""
        adapters, merged = paths(own), dict(params)
        for path, rank in self._ranks(params).items():
            leaf = params[path]
            product = jnp.matmul(adapters[f"{path}/a"], adapters[f"{path}/b"], precision="highest")
            added = leaf + (self.alpha / rank) * product.reshape(leaf.shape)
            merged[path] = added.astype(leaf.dtype)
        return merged

    def _ranks(self, params: Mapping[str, Any]) -> dict[str, int]:
        """Path -> rank, of the adapted leaves."""
        matched = self._matched(params)
        own = {path: self.rank if rule == ADAPT else rule for path, rule in matched.items()}
        return {path: rank for path, rank in own.items() if isinstance(rank, int)}

    def _matched(self, params: Mapping[str, Any]) -> dict[str, Any]:
        matched = match_rules(self.rules, params, what="config.adapt: lora: rules")
        for path, rule in matched.items():
            whole = isinstance(rule, int) and not isinstance(rule, bool) and rule > 0
            if not (whole or rule in (ADAPT, TRAIN, None)):
                raise UserError(
                    f"config.adapt: lora: rules: {rule!r} (for {path}) is none of 'adapt', "
                    "a rank of 1 or more, 'train' and None"
                )
        return matched


def as_matrix(path: str, shape: tuple[int, ...]) -> tuple[tuple[int, ...], int, int]:
    """(leading axes of stacked layers, m, n): the matrix that a leaf is to its adapter.

    Raises:
      UserError: it is none: a bias or a scale.
    """
    count = 1 if STACKED in path.split("/") else 0
    layers, own = shape[:count], shape[count:]
    if len(own) < 2:
        raise UserError(
            f"config.adapt: lora: {path} {shape} is no matrix; say 'train' or None for it"
        )
    cuts = [(math.prod(own[:i]), math.prod(own[i:])) for i in range(1, len(own))]
    return layers, *min(cuts, key=sum)
