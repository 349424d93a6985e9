"""Proximal policy optimization (Schulman et al. 2017), the environments inside the step.

Each row of a batch is one environment. A step lets every one of them run for `rollout` actions of the
policy as it stands, then makes `passes` x `minibatches` updates from what happened (algorithm 1).
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from bigjax.core.errors import UserError
from bigjax.core.losses import Loss, masked_sum
from bigjax.core.marks import Traced
from bigjax.core.method import Batch, Facts, Method, Scope, Updates
from bigjax.core.transforms import example_keys
from bigjax.mesh.sharding import batch_devices
from bigjax.methods.environments import Environment
from bigjax.tasks.actor_critic import ActorCritic


@dataclasses.dataclass(frozen=True)
class PPO(Method):
    """-L_CLIP + value_weight (V - target)^2 - entropy_weight H: eq. 9, L_CLIP being eq. 7.

    Advantages are those of `advantages`, to mean 0 and deviation 1 over the whole rollout; the
    target is the advantage before that plus the value of then. What an environment does depends on
    the step and its row alone.

    environment: of gymnax, with a finite set of actions. `train.batch_size` of them run.
    rollout: actions of each environment in a step.
    passes, minibatches: over all that happened in a step, and in how many parts each.
    discount, gae_lambda: see `advantages`.
    clip: epsilon of eq. 7.
    """

    environment: str
    rollout: int = 128
    passes: int = 4
    minibatches: int = 4
    discount: Traced = 0.99
    gae_lambda: Traced = 0.95
    clip: Traced = 0.2
    value_weight: Traced = 0.5
    entropy_weight: Traced = 0.01

    def __post_init__(self) -> None:
        for field in ("rollout", "passes", "minibatches"):
            if getattr(self, field) < 1:
                raise UserError(f"{field}: {getattr(self, field)} must be at least 1")
        for field in ("discount", "gae_lambda"):
            if not 0 <= getattr(self, field) <= 1:
                raise UserError(f"{field}: {getattr(self, field)} must lie between 0 and 1")
        if self.clip <= 0:
            raise UserError(f"clip: {self.clip} must be more than 0")

    @property
    def updates(self) -> Updates:
        return Updates(self.passes, self.minibatches)

    def check(self, facts: Facts) -> None:
        if not isinstance(facts.task, ActorCritic):
            raise UserError(
                "config.task.type: ppo needs a policy and a value, so the task actor_critic, not "
                f"{type(facts.task).__name__}"
            )
        environment = self._environment()
        outputs = jax.eval_shape(
            lambda variables, batch: facts.model.apply(
                variables, *facts.task.inputs(self.view(batch, jax.random.key(0))), train=False
            ),
            facts.variables,
            {"sample": jnp.zeros(1, jnp.int32), "epoch": jnp.zeros(1, jnp.int32)},
        )
        facts.task.check_actions(outputs, environment.actions)
        devices = batch_devices(facts.mesh)
        unit = self.minibatches * facts.train.accumulate * devices
        rows = facts.train.batch_size * self.rollout
        if rows % unit:
            raise UserError(
                f"config.method.rollout: {facts.train.batch_size} environments x {self.rollout} "
                f"actions do not divide into {self.minibatches} minibatches x "
                f"{facts.train.accumulate} microbatches x {devices} devices"
            )

    def init(self, rng: jax.Array, variables: Any, rows: int) -> Any:
        """All environments at the start of an episode; "return" is the sum of its rewards so far."""
        observation, state = jax.vmap(self._environment().reset)(_row_keys(rng, rows))
        zeros = jnp.zeros((rows,), jnp.float32)
        return {"rows": {"observation": observation, "state": state, "return": zeros}}

    def view(self, batch: Batch, rng: jax.Array) -> Batch:
        """The first observation of an episode for each row."""
        observation, _ = jax.vmap(self._environment().reset)(example_keys(batch, rng))
        return {**batch, "observation": observation}

    def prepare(self, params: Any, batch: Batch, scope: Scope) -> tuple[Batch, Any]:
        """What happened, (B rollout) rows, those of an environment together."""
        rows, seen = self._run(params, scope)
        reached = seen.pop("reached")
        flat = {"observation": reached.reshape(-1, *reached.shape[2:])}
        next_value = scope.task.value(scope.apply(params, flat, train=False)[0])
        advantage = advantages(
            seen.pop("reward"),
            seen["value"],
            next_value.reshape(reached.shape[:2]),
            seen.pop("terminated"),
            seen["ended"],
            scope.hyper["discount"],
            scope.hyper["gae_lambda"],
        )
        seen["target"] = advantage + seen.pop("value")
        seen["mask"] = jnp.broadcast_to(batch["mask"], advantage.shape)
        seen["advantage"] = standardized(advantage, seen["mask"])
        joined = {k: x.swapaxes(0, 1).reshape(-1, *x.shape[2:]) for k, x in seen.items()}
        return joined, {"rows": rows}

    def loss(self, params: Any, batch: Batch, scope: Scope) -> Loss:
        outputs, collections = scope.apply(params, batch)
        task, hyper, mask = scope.task, scope.hyper, batch["mask"]
        new = task.log_probability(outputs, batch["action"])
        ratio = jnp.exp(new - batch["log_probability"])
        policy = masked_sum(-clipped(ratio, batch["advantage"], hyper["clip"]), mask)
        value = masked_sum(jnp.square(task.value(outputs) - batch["target"]), mask)
        entropy = masked_sum(task.entropy(outputs), mask)
        total = policy[0] + hyper["value_weight"] * value[0] - hyper["entropy_weight"] * entropy[0]
        outside = jnp.abs(ratio - 1) > hyper["clip"]
        metrics = {
            "policy_loss": policy,
            "value_loss": value,
            "entropy": entropy,
            "clipped": masked_sum(outside.astype(jnp.float32), mask),
            "return": masked_sum(batch["return"], mask * batch["ended"]),
        }
        return Loss(total, policy[1], metrics, collections)

    def _environment(self) -> Environment:
        try:
            return Environment(self.environment)
        except UserError as error:
            raise UserError(f"config.method.{error}") from None

    def _run(self, params: Any, scope: Scope) -> tuple[dict[str, Any], dict[str, jax.Array]]:
        """(the environments after the rollout, what happened: arrays (rollout, B, ...))."""
        environment, task = self._environment(), scope.task

        def act(rows: dict[str, Any], number: jax.Array):
            outputs, _ = scope.apply(params, rows, train=False)
            keys = _row_keys(jax.random.fold_in(scope.rng, number), len(rows["return"]))
            action_keys, step_keys = jax.vmap(jax.random.split, out_axes=1)(keys)
            action = jax.vmap(task.sample)(outputs, action_keys)
            found = jax.vmap(environment.step)(step_keys, rows["state"], action)
            ended = found.terminated | found.truncated
            total = rows["return"] + found.reward
            seen = {
                "observation": rows["observation"],
                "action": action,
                "log_probability": task.log_probability(outputs, action),
                "value": task.value(outputs),
                "reward": found.reward,
                "terminated": found.terminated.astype(jnp.float32),
                "ended": ended.astype(jnp.float32),
                "reached": found.reached,
                "return": total,
            }
            after = {"observation": found.observation, "state": found.state}
            return {**after, "return": jnp.where(ended, 0.0, total)}, seen

        return jax.lax.scan(act, scope.memory["rows"], jnp.arange(self.rollout))


def advantages(
    reward: jax.Array,
    value: jax.Array,
    next_value: jax.Array,
    terminated: jax.Array,
    ended: jax.Array,
    discount: jax.Array | float,
    gae_lambda: jax.Array | float,
) -> jax.Array:
    """Generalized advantages (Schulman et al. 2016, eq. 16), all arrays (T, B).

    A_t = d_t + discount lambda A_{t+1}, d_t = r_t + discount V(s_{t+1}) - V(s_t) (eq. 9). V(s_{t+1}) is
    0 where the episode terminated there; where it ran out of time it is not (Pardo et al. 2018,
    eq. 6). No sum goes beyond an episode's end.

    next_value: V of the state that action t led to, before any new episode.
    terminated, ended: 0 or 1; ended also where the time ran out.
    """
    error = reward + discount * (1 - terminated) * next_value - value
    kept = discount * gae_lambda * (1 - ended)

    def back(later: jax.Array, now: tuple[jax.Array, jax.Array]):
        advantage = now[0] + now[1] * later
        return advantage, advantage

    return jax.lax.scan(back, jnp.zeros_like(error[0]), (error, kept), reverse=True)[1]


def clipped(ratio: jax.Array, advantage: jax.Array, epsilon: jax.Array | float) -> jax.Array:
    """min(r A, clip(r, 1 - epsilon, 1 + epsilon) A) (Schulman et al. 2017, eq. 7), to be made large."""
    return jnp.minimum(ratio * advantage, jnp.clip(ratio, 1 - epsilon, 1 + epsilon) * advantage)


def standardized(x: jax.Array, mask: jax.Array) -> jax.Array:
    """(x - mean) / deviation, over the entries of mask 1."""
    count = jnp.maximum(jnp.sum(mask), 1.0)
    centred = x - jnp.sum(mask * x) / count
    return centred / (jnp.sqrt(jnp.sum(mask * centred**2) / count) + 1e-8)


def _row_keys(key: jax.Array, rows: int) -> jax.Array:
    """One key a row, (B,); a row's does not depend on how many there are."""
    return jax.vmap(lambda row: jax.random.fold_in(key, row))(jnp.arange(rows))
