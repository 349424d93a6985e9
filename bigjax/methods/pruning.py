"""Pruning as parametrizations: which weights are zero, when, and that they stay so.

A pruned weight is a zero in the trained leaf itself: it is saved, restored, averaged, evaluated and
exported with no mask beside it, and `project` keeps it zero after every update.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import traverse_util

from bigjax.core.adapt import Parametrization
from bigjax.core.errors import UserError
from bigjax.core.matrices import as_matrix
from bigjax.core.rules import Rules, first_value, match_rules, paths

PRUNE = "prune"


@dataclasses.dataclass(frozen=True)
class _Scheduled(Parametrization):
    """Chosen leaves, and how sparse they are after each step.

    sparsity: the share of zeros at the end.
    begin, end: steps. Between them the share rises from `initial` to `sparsity` by Zhu & Gupta 2017,
      eq. 1: s_f + (s_i - s_f) (1 - (t - begin) / (end - begin))^3; at once where they are equal.
    rules: (regex, "prune" or None).
    """

    sparsity: float = 0.5
    initial: float = 0.0
    begin: int = 0
    end: int = 0
    rules: Rules = ((".*kernel", PRUNE), (".*", None))

    def __post_init__(self) -> None:
        if not 0 <= self.initial <= self.sparsity < 1:
            raise UserError(
                f"{self.NAME}: initial {self.initial} and sparsity {self.sparsity}: from 0 to below 1, "
                "and the first not above the second"
            )
        if not 0 <= self.begin <= self.end:
            raise UserError(f"{self.NAME}: begin {self.begin} and end {self.end} must be in order")

    def check(self, total_steps: int) -> None:
        if self.end > total_steps:
            raise UserError(
                f"config.adapt: {self.NAME}: step {self.end}, at which its sparsity is reached, lies after the "
                f"last of {total_steps}: lower begin and end, or train longer"
            )

    def keeps(self, params: Mapping[str, Any]) -> set[str]:
        self.chosen(params)
        return set(params)

    def chosen(self, params: Mapping[str, Any]) -> list[str]:
        """Paths of the leaves that are pruned.

        Raises:
          UserError: a rule matches no leaf, or says something else.
        """
        where = f"config.adapt: {self.NAME}: rules"
        matched = match_rules(self.rules, params, what=where)
        for path, rule in matched.items():
            if rule not in (PRUNE, None):
                raise UserError(f"{where}: {rule!r} (for {path}) is neither 'prune' nor None")
        return [path for path, rule in matched.items() if rule == PRUNE]

    def share(self, step: jax.Array) -> jax.Array:
        """The share of zeros after so many updates."""
        passed = (step - self.begin) / max(1, self.end - self.begin)
        left = 1 - jnp.clip(passed, 0.0, 1.0) if self.end > self.begin else 0.0
        risen = self.sparsity + (self.initial - self.sparsity) * left**3
        return jnp.where(step >= self.begin, risen, 0.0)


@dataclasses.dataclass(frozen=True)
class Prune(_Scheduled):
    """The smallest weights are zero (Han et al. 2015), gradually (Zhu & Gupta 2017) or at once.

    A pruned weight never returns: training goes on with the others. A leaf that is all zeros when
    pruning begins, as some heads are at first, stays so: leave it out, or begin later.

    every: steps between two prunings, until `end`.
    scope: "leaf" prunes each leaf to the same share, "global" all of them together.
    pattern: "2:4" keeps the two largest of every four inputs of an output in place of all this
      (Mishra et al. 2021), at `begin`.
    """

    NAME = "prune"

    every: int = 1
    scope: Literal["leaf", "global"] = "leaf"
    pattern: Literal["2:4"] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.every < 1:
            raise UserError(f"prune: every {self.every} must be 1 or more")

    def chosen(self, params: Mapping[str, Any]) -> list[str]:
        found = super().chosen(params)
        for path in found if self.pattern else ():
            _, inputs, _ = as_matrix(path, params[path].shape)
            if inputs % 4:
                raise UserError(
                    f"config.adapt: prune: pattern 2:4: {path} has {inputs} inputs, not a multiple "
                    "of 4; give it None"
                )
        return found

    def hold(self, base: dict[str, jax.Array], params: Mapping[str, jax.Array]) -> dict:
        for path in self.chosen(params):
            if path in base:
                raise UserError(
                    f"config.adapt: prune: {path} is frozen by another of the list: give it None, or "
                    "prune first and adapt that run"
                )
        return base

    def project(
        self, params: dict[str, jax.Array], before: Mapping[str, jax.Array], step: jax.Array
    ) -> dict:
        leaves = {p: x for p, x in params.items() if first_value(self.rules, p) == PRUNE}
        # What was zero stays so: momentum and moving averages would bring it back.
        begun = step > self.begin
        kept = {p: jnp.where(begun & (before[p] == 0), 0, x) for p, x in leaves.items()}
        last = self.begin if self.pattern else self.end
        in_turn = (step - self.begin) % self.every == 0
        due = (step >= self.begin) & (step <= last) & (in_turn | (step == last))
        return params | jax.lax.cond(due, self._pruned, lambda leaves, _: leaves, kept, step)

    def _pruned(self, leaves: dict[str, jax.Array], step: jax.Array) -> dict[str, jax.Array]:
        if self.pattern:
            return {path: two_of_four(path, leaf) for path, leaf in leaves.items()}
        found = {}
        for part in [list(leaves)] if self.scope == "global" else [[path] for path in leaves]:
            sizes = [jnp.abs(leaves[path]) for path in part]
            limit = threshold(sizes, self.share(step))
            for path, size in zip(part, sizes, strict=True):
                found[path] = jnp.where(size > limit, leaves[path], 0)
        return found


@dataclasses.dataclass(frozen=True)
class Movement(_Scheduled):
    """Weights that move away from zero stay (Sanh et al. 2020, section 4): scores are learned beside them.

    In each leaf the weights of the highest scores are seen, the others are zero. A score's gradient is
    that of the mask, straight through: the weight times the gradient of what is seen; so it grows
    while the weight does. The scores begin at zero: give the share some steps to rise.
    """

    NAME = "movement"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.end == self.begin or self.initial:
            raise UserError("movement: end must be after begin, and initial 0: scores begin equal")

    def init(self, rng: jax.Array, params: Mapping[str, jax.Array]) -> Any:
        scores = {path: jnp.zeros(params[path].shape, jnp.float32) for path in self.chosen(params)}
        return traverse_util.unflatten_dict(scores, sep="/")

    def apply(self, own: Any, params: dict[str, jax.Array], step: jax.Array) -> dict:
        seen = {}
        for path, score in paths(own).items():
            limit = threshold([jax.lax.stop_gradient(score)], self.share(step))
            mask = jax.lax.stop_gradient((score > limit) - score) + score
            seen[path] = (params[path] * mask).astype(params[path].dtype)
        return params | seen


def threshold(sizes: Sequence[jax.Array], share: jax.Array) -> jax.Array:
    """The largest of the `share` least numbers of all arrays; below all of them where it is none."""
    ordered = jnp.sort(jnp.concatenate([size.astype(jnp.float32).ravel() for size in sizes]))
    count = jnp.round(share * len(ordered)).astype(jnp.int32)
    return jnp.where(count > 0, ordered[jnp.maximum(count - 1, 0)], -jnp.inf)


def two_of_four(path: str, leaf: jax.Array) -> jax.Array:
    """The leaf with the two smallest of every four inputs of an output set to zero."""
    layers, m, n = as_matrix(path, leaf.shape)
    fours = leaf.reshape(*layers, m // 4, 4, n)
    ranks = jnp.argsort(jnp.argsort(-jnp.abs(fours), axis=-2), axis=-2)
    return jnp.where(ranks < 2, fours, 0).reshape(leaf.shape)
