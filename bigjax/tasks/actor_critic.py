"""A policy over a finite set of actions, and the value of a state. Pure; knows nothing of devices."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from bigjax.core.errors import UserError
from bigjax.core.losses import Pair, masked_sum
from bigjax.tasks import scores
from bigjax.tasks.base import Task

Outputs = tuple[jax.Array, jax.Array]
"""Logits of the actions (B, A), values (B,)."""


@dataclasses.dataclass(frozen=True)
class ActorCritic(Task):
    """The model's outputs are `Outputs`; the method, such as ppo, knows what to learn from them.

    Over a split, the metrics are the mean value and the mean entropy of the policy. The return of
    whole episodes is measured by the evaluator "episodes".
    """

    MAIN_METRIC: ClassVar[tuple[str, str]] = ("value", "max")

    input: str = "observation"

    def sample(self, outputs: Outputs, key: jax.Array) -> jax.Array:
        """An action, int32 (...), drawn from the policy of logits (..., A)."""
        return jax.random.categorical(key, outputs[0])

    def log_probability(self, outputs: Outputs, action: jax.Array) -> jax.Array:
        """log pi(action), (B,)."""
        log_p = jax.nn.log_softmax(outputs[0])
        return jnp.take_along_axis(log_p, action[:, None], axis=-1)[:, 0]

    def entropy(self, outputs: Outputs) -> jax.Array:
        """-sum_a pi(a) log pi(a), (B,), in nats."""
        log_p = jax.nn.log_softmax(outputs[0])
        return -jnp.sum(jnp.exp(log_p) * log_p, axis=-1)

    def value(self, outputs: Outputs) -> jax.Array:
        return outputs[1]

    def check_actions(self, outputs: Any, actions: int) -> None:
        """Refuses a model that is no policy over so many actions; outputs: their shapes."""
        shapes = [leaf.shape[1:] for leaf in jax.tree.leaves(outputs)]
        if shapes != [(actions,), ()]:
            raise UserError(
                f"config.model: gives outputs of shapes {shapes} for an observation; needed are logits "
                f"of {actions} actions and a value, as of actor_critic with model.actions={actions}"
            )

    def loss(self, outputs: Outputs, batch: dict) -> tuple[Pair, dict[str, Pair]]:
        raise UserError("config.method.type: the task actor_critic has no loss of its own; use ppo")

    def statistics(self, outputs: Outputs, batch: dict) -> dict[str, Pair]:
        mask = batch["mask"]
        return {
            "value": masked_sum(self.value(outputs), mask),
            "entropy": masked_sum(self.entropy(outputs), mask),
        }

    def summarize(self, statistics: Any, collected: dict[str, Any]) -> dict[str, Any]:
        return {name: scores.mean(pair) for name, pair in statistics.items()}

    def predict(self, outputs: Outputs) -> dict[str, jax.Array]:
        """The likeliest action, all probabilities, and the value."""
        return {
            "action": jnp.argmax(outputs[0], axis=-1),
            "probabilities": jax.nn.softmax(outputs[0]),
            "value": self.value(outputs),
        }
