"""Flow matching along straight lines from noise to data (Lipman et al. 2023; Liu et al. 2023).

The model learns the velocity v(x_t, t, y) of x_t = (1 - t) x_0 + t x_1, where x_0 is Gaussian noise
at t = 0 and x_1 an example at t = 1: Lipman et al. 2023, eq. 23 with sigma_min = 0, which is the
rectified flow of Liu et al. 2023, eq. 1. `sample` follows the velocity from noise to a new example.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp

from bigjax.core.errors import UserError
from bigjax.core.marks import Traced
from bigjax.core.method import Batch, Method, Scope
from bigjax.core.transforms import example_keys
from bigjax.tasks.scores import field

UNCONDITIONAL = -1  # the class of an example whose label is dropped
POSITION, TIME, CONDITION, VELOCITY = "position", "time", "condition", "velocity"

Velocity = Callable[[jax.Array, jax.Array, jax.Array], jax.Array]


@dataclasses.dataclass(frozen=True)
class FlowMatching(Method):
    """|v(x_t, t, y) - (x_1 - x_0)|^2 at a uniform t, one t and one x_0 for each example of a step.

    The batch gets "position" x_t, "time" t (B,), "condition" y, int32 (B,), and the target "velocity".
    What is drawn for an example depends on the step, its epoch and its id, and on no neighbour.

    input: the batch's key of x_1, float (B, ...), about as large as the noise: pixels in [-1, 1].
    label: the key of its class, int (B,); None learns without classes.
    label_dropout: probability that y is `UNCONDITIONAL` in training, so that one model learns both
      velocities that guidance needs (Ho & Salimans 2022, algorithm 1).
    """

    input: str = "image"
    label: str | None = "label"
    label_dropout: Traced = 0.1

    def __post_init__(self) -> None:
        if not 0 <= self.label_dropout <= 1:
            raise UserError(f"label_dropout: {self.label_dropout} must lie between 0 and 1")

    def view(self, batch: Batch, rng: jax.Array) -> Batch:
        """Noise and time of one draw for each example, every label kept."""
        return self._on_the_way(batch, rng, 0.0)

    def prepare(self, params, batch: Batch, scope: Scope):
        return self._on_the_way(batch, scope.rng, scope.hyper["label_dropout"]), scope.memory

    def _on_the_way(self, batch: Batch, rng: jax.Array, dropout: jax.Array | float) -> Batch:
        x_1 = field(batch, self.input, "config.method.input").astype(jnp.float32)
        labels = jnp.full(len(x_1), UNCONDITIONAL, jnp.int32)
        if self.label is not None:
            labels = field(batch, self.label, "config.method.label").astype(jnp.int32)

        def one(key: jax.Array, x_1: jax.Array, label: jax.Array):
            noise_key, time_key, drop_key = jax.random.split(key, 3)
            x_0 = jax.random.normal(noise_key, x_1.shape)
            t = jax.random.uniform(time_key)
            label = jnp.where(jax.random.bernoulli(drop_key, dropout), UNCONDITIONAL, label)
            return between(x_0, x_1, t), t, label, x_1 - x_0

        found = jax.vmap(one)(example_keys(batch, rng), x_1, labels)
        kept = {name: x for name, x in batch.items() if name != self.input}
        return {**kept, **dict(zip((POSITION, TIME, CONDITION, VELOCITY), found, strict=True))}


def between(x_0: jax.Array, x_1: jax.Array, t: jax.Array) -> jax.Array:
    """(1 - t) x_0 + t x_1."""
    return (1 - t) * x_0 + t * x_1


def guided(velocity: Velocity, guidance: float) -> Velocity:
    """(1 + w) v(x, t, y) - w v(x, t): classifier-free guidance (Ho & Salimans 2022, eq. 6), w >= 0."""
    if guidance == 0:
        return velocity

    def of_both(x: jax.Array, t: jax.Array, labels: jax.Array) -> jax.Array:
        both = jnp.concatenate([labels, jnp.full_like(labels, UNCONDITIONAL)])
        found = velocity(jnp.concatenate([x, x]), jnp.concatenate([t, t]), both)
        conditional, unconditional = jnp.split(found, 2)
        return (1 + guidance) * conditional - guidance * unconditional

    return of_both


def sample(velocity: Velocity, noise: jax.Array, labels: jax.Array, steps: int) -> jax.Array:
    """Examples: dx/dt = v(x, t, y) from noise at t = 0 to t = 1, in `steps` of the midpoint rule.

    noise (B, ...); labels int32 (B,). Each step calls the velocity twice.
    """
    width = 1.0 / steps

    def step(x: jax.Array, number: jax.Array) -> tuple[jax.Array, None]:
        t = jnp.full(len(x), number * width)
        middle = x + width / 2 * velocity(x, t, labels)
        return x + width * velocity(middle, t + width / 2, labels), None

    return jax.lax.scan(step, noise, jnp.arange(steps))[0]
