"""DP-SGD: what the parameters tell of any one example is bounded, and the bound is counted."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bigjax.core.errors import UserError
from bigjax.core.layout import unlaid
from bigjax.core.marks import Traced
from bigjax.core.method import (
    Batch,
    Facts,
    Method,
    Scope,
    Sums,
    check_own_rows,
    of_the_mean,
    summed_gradients,
)
from bigjax.core.optimizers import global_norm
from bigjax.core.order import sample_ids, uniforms

# Weight of a batch of no examples: noise is added for it too (lost in any other's sum).
EMPTY = 1e-6


@dataclasses.dataclass(frozen=True)
class DPSGD(Method):
    """Abadi et al. 2016, "Deep learning with differential privacy", algorithm 1.

    Each step draws each of the N examples with probability q = lot / N, by itself (section 3.1,
    "lots"); clips the gradient of each one's mean loss to norm C; adds noise N(0, (noise_multiplier
    C)^2) to their sum, and divides by the lot size L that was meant, not the one drawn:

        g = (sum_i min(1, C / |g_i|) g_i + N(0, (sigma C)^2 I)) / L

    The guarantee is (epsilon, delta) against adding or removing one example, and holds for the
    parameters alone: training losses are read off the data, and the sampling and the noise follow
    from `config.seed`, so who is not to know the examples must not learn the seed. Statistics that
    transforms are fitted to, and evaluations on private splits, are outside of it, as is a step that
    `check.policy` "skip" leaves out. An example whose gradient is not finite counts as 0.

    lot: L, the mean number of examples a step. `train.batch_size` is the most that a step can hold: a
      run in which some step would draw more is refused at its start.
    clip: C. noise_multiplier: sigma.
    delta: of the epsilon that is reported as privacy/epsilon (dp-accounting's PLD accountant).
    """

    lot: int
    clip: Traced = 1.0
    noise_multiplier: Traced = 1.0
    delta: float = 1e-5

    def __post_init__(self) -> None:
        if self.lot < 1:
            raise UserError(f"lot: {self.lot} must be 1 or more")
        if self.clip <= 0 or self.noise_multiplier < 0:
            raise UserError(
                f"clip {self.clip} must be above 0, noise_multiplier {self.noise_multiplier} 0 or more"
            )
        if not 0 < self.delta < 1:
            raise UserError(f"delta: {self.delta} must lie between 0 and 1")

    def check(self, facts: Facts) -> None:
        check_own_rows(facts, "dp_sgd")
        accounting()
        if mixing := [name for name in facts.variables if name != "params"]:
            raise UserError(
                "config.method: dp_sgd clips the gradient of each example, which must depend on no "
                f"other; {', '.join(mixing)} (BatchNorm) mixes them: use a model without"
            )
        if facts.task.COMPARES_EXAMPLES:
            raise UserError(
                "config.method: dp_sgd clips the gradient of each example, which must depend on no "
                f"other; the loss of {type(facts.task).__name__} compares them"
            )
        if mixing := [type(t).__name__ for t in facts.transforms if getattr(t, "batch_level", 0)]:
            raise UserError(
                f"config.data.augment: {', '.join(mixing)} mixes examples, each of which would then "
                "move two gradients; dp_sgd bounds one"
            )
        if facts.precision.policy == "float16":
            raise UserError(
                "config.precision.policy: dp_sgd counts an example that overflows as 0, so float16's "
                "loss scale would never fall; use bfloat16 or float32"
            )
        if self.lot > len(facts.source):
            raise UserError(
                f"config.method.lot: {self.lot} is more than the {len(facts.source)} examples"
            )

    def order(
        self, source: Any, seed: int, batch_size: int, total_steps: int
    ) -> Callable[[np.ndarray], tuple[np.ndarray, np.ndarray, np.ndarray]]:
        """Poisson sampling: how many is binomial, and which, the head of the step's permutation."""
        size, rows = len(source), np.arange(batch_size)
        most = int(lot_sizes(seed, np.arange(total_steps), self.lot, size).max())
        if most > batch_size:
            raise UserError(
                f"config.train.batch_size: {batch_size} rows do not hold the largest of this run's "
                f"lots (mean {self.lot}), {most} examples; give at least as many rows"
            )

        def rows_of(steps: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
            drawn = lot_sizes(seed, steps, self.lot, size)[:, None]
            positions = steps[:, None] * size + np.minimum(rows, size - 1)
            ids, epochs = sample_ids(seed, positions, size)
            return ids, epochs, (rows < drawn).astype(np.float32)

        return rows_of

    def gradients(
        self, loss: Callable[[Any, Batch, Scope], Any], trained: Any, batch: Batch, scope: Scope
    ) -> Sums:
        """Sums of clipped gradients; `train.accumulate` bounds how many are held at once."""
        clip = scope.hyper["clip"]

        def of_one(row: Batch, views: Any, key: jax.Array) -> Sums:
            own = scope.replace(views=views, rng=key)
            found = summed_gradients(loss, trained, row, own)
            gradient = of_the_mean(found.gradients, found.pairs)
            norm = global_norm(gradient)
            kept = jnp.isfinite(norm) & (row["mask"][0] > 0)
            shrunk = jnp.minimum(1.0, clip / jnp.maximum(norm, 1e-30))
            clipped = jax.tree.map(lambda g: jnp.where(kept, g * shrunk, 0), gradient)
            share = (jnp.where(kept, norm > clip, 0).astype(jnp.float32), row["mask"][0])
            return found._replace(gradients=clipped, pairs=found.pairs | {"clipped": share})

        rows, views = jax.tree.map(lambda x: x[:, None], (batch, dict(scope.views)))
        with unlaid():  # an example's arrays are its own
            each = jax.vmap(of_one)(rows, views, jax.random.split(scope.rng, len(batch["mask"])))
        gradients, pairs = jax.tree.map(lambda x: jnp.sum(x, axis=0), (each.gradients, each.pairs))
        total, weight = pairs["loss"]
        pairs["loss"] = (total, weight + EMPTY)
        return Sums(gradients, pairs, scope.collections, scope.memory)

    def finish(self, sums: Sums, scope: Scope) -> Any:
        deviation = scope.hyper["noise_multiplier"] * scope.hyper["clip"]
        leaves, tree = jax.tree.flatten(sums.gradients)
        keys = jax.random.split(jax.random.fold_in(scope.rng, 0x401), len(leaves))
        noisy = [
            (leaf + deviation * jax.random.normal(key, leaf.shape, jnp.float32)) / self.lot
            for leaf, key in zip(leaves, keys, strict=True)
        ]
        return tree.unflatten(noisy)

    def measure(self, step: int, source: Any) -> dict[str, float]:
        rate = self.lot / len(source)
        return {
            "privacy/epsilon": epsilon(rate, self.noise_multiplier, step, self.delta),
            "privacy/delta": self.delta,
        }


def lot_sizes(seed: int, steps: np.ndarray, lot: int, size: int) -> np.ndarray:
    """How many examples some steps draw: Binomial(size, lot / size), a pure function of seed and step."""
    from scipy.stats import binom

    return binom.ppf(uniforms(seed, steps), size, lot / size).astype(np.int64)


def epsilon(rate: float, noise_multiplier: float, steps: int, delta: float) -> float:
    """The epsilon that goes with delta after some steps of Poisson-sampled Gaussian noise.

    Adding or removing one example; privacy loss distributions (Koskela et al. 2020; Doroshenko et
    al. 2022), an upper bound.
    """
    if noise_multiplier == 0:
        return float("inf")
    dp = accounting()
    event = dp.PoissonSampledDpEvent(rate, dp.GaussianDpEvent(noise_multiplier))
    accountant = dp.pld.PLDAccountant()
    return float(accountant.compose(event, steps).get_epsilon(delta))


def accounting() -> Any:
    """The library that counts the privacy that is spent; imported only here."""
    try:
        import dp_accounting
        import dp_accounting.pld
    except ImportError:
        raise UserError(
            "config.method: dp_sgd needs dp-accounting: pip install mpmath==1.3.0 && "
            "pip install --no-deps dp-accounting==0.6.0"
        ) from None
    return dp_accounting
