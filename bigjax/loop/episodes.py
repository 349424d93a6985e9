"""The evaluator of a policy: whole episodes of the likeliest actions."""

from __future__ import annotations

import dataclasses
import functools
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bigjax.build.assemble import Setup
from bigjax.core.errors import UserError
from bigjax.loop.evaluators import Evaluator, Seen
from bigjax.mesh import distributed
from bigjax.methods.environments import Environment
from bigjax.methods.ppo import PPO


@dataclasses.dataclass(frozen=True)
class Episodes(Evaluator):
    """The mean, least and deviation of the return: the undiscounted sum of an episode's rewards.

    episodes: how many, each from a start of its own.
    """

    episodes: int = 100

    def __post_init__(self) -> None:
        if self.episodes < 1:
            raise UserError(f"episodes: {self.episodes} must be at least 1")

    def check(self, setup: Setup, folder: Path) -> None:
        super().check(setup, folder)
        if not isinstance(setup.program.method, PPO):
            raise UserError(
                f"episodes need an environment: config.method.type must be ppo, not "
                f"{type(setup.program.method).__name__}"
            )

    def evaluate(self, seen: Seen) -> dict[str, Any]:
        program = seen.setup.program
        environment = Environment(program.method.environment)
        keys = jax.random.split(seen.rng, self.episodes)
        found = _returns(program.model, program.task, environment, seen.variables, keys)
        found = distributed.whole(found).astype(np.float64)
        return {
            "return": float(found.mean()),
            "return_least": float(found.min()),
            "return_deviation": float(found.std()),
        }


@functools.partial(jax.jit, static_argnames=("model", "task", "environment"))
def _returns(
    model: Any, task: Any, environment: Environment, variables: Any, keys: jax.Array
) -> jax.Array:
    """The return of one episode for each key, float32 (N,)."""

    def act(rows: tuple, number: jax.Array) -> tuple[tuple, None]:
        observation, state, total, alive = rows
        outputs = model.apply(variables, *task.inputs({"observation": observation}), train=False)
        step_keys = jax.vmap(lambda key: jax.random.fold_in(key, number))(keys)
        action = task.predict(outputs)["action"]
        found = jax.vmap(environment.step)(step_keys, state, action)
        total = total + alive * found.reward
        alive = alive * ~(found.terminated | found.truncated)
        return (found.observation, found.state, total, alive), None

    observation, state = jax.vmap(environment.reset)(keys)
    start = observation, state, jnp.zeros(len(keys)), jnp.ones(len(keys))
    return jax.lax.scan(act, start, jnp.arange(environment.longest))[0][2]
