"""Environments of gymnax (Lange 2022) as two pure functions, `reset` and `step`, of one environment."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any, NamedTuple

import jax

from bigjax.core.errors import UserError, did_you_mean, needed


class Transition(NamedTuple):
    """What one action leads to.

    observation, state: to go on from: of a new episode where this one is over.
    reward: float32 scalar.
    terminated: whether the episode ended; truncated: whether it ran out of time.
    reached: the observation that the action led to, before any new episode.
    """

    observation: Any
    state: Any
    reward: jax.Array
    terminated: jax.Array
    truncated: jax.Array
    reached: Any


@dataclasses.dataclass(frozen=True)
class Environment:
    """One environment of gymnax with a finite set of actions; `vmap` runs many.

    name: such as "CartPole-v1".

    Raises:
      UserError: gymnax is not installed, has no such environment, or its actions are not a finite set.
    """

    name: str

    def __post_init__(self) -> None:
        environment, _ = _made(self.name)
        if not hasattr(environment.action_space(_made(self.name)[1]), "n"):
            raise UserError(f"environment: the actions of {self.name} are not a finite set")

    @property
    def actions(self) -> int:
        """How many there are."""
        environment, parameters = _made(self.name)
        return int(environment.action_space(parameters).n)

    @property
    def longest(self) -> int:
        """Steps after which an episode runs out of time."""
        return int(_made(self.name)[1].max_steps_in_episode)

    def reset(self, key: jax.Array) -> tuple[jax.Array, Any]:
        """(observation, state) of a new episode."""
        environment, parameters = _made(self.name)
        return _strong(environment.reset(key, parameters))

    def step(self, key: jax.Array, state: Any, action: jax.Array) -> Transition:
        environment, parameters = _made(self.name)
        observation, state, reward, terminated, truncated, info = environment.step(
            key, state, action, parameters
        )
        reward = reward.astype("float32")
        reached = info["final_observation"]
        return _strong(Transition(observation, state, reward, terminated, truncated, reached))


@functools.cache
def _made(name: str) -> tuple[Any, Any]:
    """gymnax's environment of this name, and its parameters."""
    gymnax = needed("gymnax", "environment: needs", "gymnax six")  # with matplotlib: over a second
    if name not in gymnax.registered_envs:
        known = gymnax.registered_envs
        raise UserError(
            f"environment: gymnax has no '{name}'{did_you_mean(name, known)}; it has {', '.join(known)}"
        )
    return gymnax.make(name)


def _strong(tree: Any) -> Any:
    """The arrays with the dtypes that they have: a weak one would be another input of a compiled step."""
    return jax.tree.map(lambda x: jax.lax.convert_element_type(x, jax.numpy.result_type(x)), tree)
