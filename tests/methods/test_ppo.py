"""PPO against loops in float64 and hand computation; its environments; its refusals."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bigjax.core.errors import UserError
from bigjax.core.method import Scope
from bigjax.loop.open import open_run
from bigjax.loop.train import Stopped, train
from bigjax.methods.environments import Environment
from bigjax.methods.ppo import PPO, advantages, clipped, standardized
from bigjax.models.actor_critic import ActorCritic as Model
from bigjax.tasks.actor_critic import ActorCritic
from tests.contracts.methods import METHODS
from tests.small import small

RNG = np.random.default_rng(0)


def tiny(*overrides, **changes):
    return small(*overrides, **{**METHODS["ppo"], **changes})


def test_advantages_equal_their_definition_in_float64():
    """Schulman et al. 2016, eq. 16, as the sum of (discount lambda)^l d_{t+l} within an episode."""
    T, B, discount, gae_lambda = 23, 4, 0.97, 0.9
    reward, value, next_value = RNG.standard_normal((3, T, B))
    ended = (RNG.random((T, B)) < 0.2).astype(float)
    terminated = ended * (RNG.random((T, B)) < 0.5)
    assert ended.sum() > terminated.sum() > 0
    expected = np.zeros((T, B))
    for b in range(B):
        for t in range(T):
            factor = 1.0
            for s in range(t, T):
                following = 0.0 if terminated[s, b] else next_value[s, b]
                error = reward[s, b] + discount * following - value[s, b]
                expected[t, b] += factor * error
                if ended[s, b]:
                    break
                factor *= discount * gae_lambda
    found = advantages(reward, value, next_value, terminated, ended, discount, gae_lambda)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


def test_with_lambda_one_the_advantage_is_the_return_less_the_value():
    reward, value = np.ones((5, 1)), np.full((5, 1), 2.0)
    ended = np.array([[0.0], [0], [0], [0], [1]])
    found = advantages(reward, value, np.full((5, 1), 9.0), ended, ended, 1.0, 1.0)
    # The values of the states between cancel only where they are those of `value`.
    consistent = advantages(reward, value, value, ended, ended, 1.0, 1.0)
    np.testing.assert_allclose(consistent[:, 0], [3, 2, 1, 0, -1])
    assert not np.allclose(found, consistent)


@pytest.mark.parametrize(
    ("ratio", "advantage", "expected"),
    [
        (1.5, 2.0, 2.4),  # (1 + 0.2) A: no more is to be gained
        (0.5, 2.0, 1.0),
        (1.5, -2.0, -3.0),  # the worse of the two
        (0.5, -2.0, -1.6),  # (1 - 0.2) A
        (1.1, -2.0, -2.2),
    ],
)
def test_the_clipped_objective_by_hand(ratio, advantage, expected):
    assert clipped(jnp.float32(ratio), jnp.float32(advantage), 0.2) == pytest.approx(expected)
    slope = jax.grad(clipped)(jnp.float32(ratio), jnp.float32(advantage), 0.2)
    free = expected == pytest.approx(ratio * advantage)
    assert slope == pytest.approx(advantage if free else 0.0)


def scope_of(params, **changes):
    model = Model(widths=(5,), actions=2)
    task, keys = ActorCritic(), ("clip", "value_weight", "entropy_weight", "discount", "gae_lambda")
    own = PPO("CartPole-v1")
    return Scope(
        model=model,
        task=task,
        rng=jax.random.key(3),
        step=jnp.int32(0),
        collections={},
        ema=None,
        memory=None,
        frozen={},
        hyper={key: jnp.float32(getattr(own, key)) for key in keys},
    ).replace(**changes)


@functools.cache
def params_of(seed=0):
    init = jax.jit(functools.partial(Model(widths=(5,), actions=2).init, train=False))
    return init(jax.random.key(seed), jnp.zeros((1, 4)))


def test_the_loss_is_equation_9_by_hand():
    params = params_of()["params"]
    rows = 6
    batch = {
        "observation": RNG.standard_normal((rows, 4)).astype(np.float32),
        "action": RNG.integers(0, 2, rows),
        "log_probability": np.log(RNG.uniform(0.2, 0.9, rows)).astype(np.float32),
        "advantage": RNG.standard_normal(rows).astype(np.float32),
        "target": RNG.standard_normal(rows).astype(np.float32),
        "return": np.ones(rows, np.float32),
        "ended": np.array([1, 0, 0, 1, 0, 0], np.float32),
        "mask": np.array([1, 1, 1, 1, 0, 1], np.float32),
    }
    found = jax.jit(lambda p: PPO("CartPole-v1").loss(p, batch, scope_of(p)))(params)

    def mlp(tree, x):
        tree = jax.tree.map(lambda p: np.asarray(p, np.float64), tree)
        h = np.tanh(x @ tree["dense_0"]["kernel"] + tree["dense_0"]["bias"])
        return h @ tree["head"]["kernel"] + tree["head"]["bias"]

    x = batch["observation"].astype(np.float64)
    logits, value = mlp(params["policy"], x), mlp(params["value"], x)[:, 0]
    log_p = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    ratio = np.exp(log_p[np.arange(rows), batch["action"]] - batch["log_probability"])
    A = batch["advantage"].astype(np.float64)
    policy = np.minimum(ratio * A, np.clip(ratio, 0.8, 1.2) * A)
    entropy = -(np.exp(log_p) * log_p).sum(1)
    each = -policy + 0.5 * (value - batch["target"]) ** 2 - 0.01 * entropy
    assert np.any(np.abs(ratio - 1) > 0.2)
    np.testing.assert_allclose(found.sum, (batch["mask"] * each).sum(), rtol=1e-5)
    assert found.weight == 5
    np.testing.assert_allclose(found.metrics["return"], (2.0, 2.0))


def test_a_rollout_follows_the_environment_and_goes_on_where_it_stopped():
    """One environment by hand, from the actions that were drawn: rewards, ends, and the memory."""
    method, params = PPO("CartPole-v1", rollout=40), params_of()["params"]
    memory = method.init(jax.random.key(1), None, 3)
    scope = scope_of(params, memory=memory)
    mask = jnp.array([1.0, 1.0, 0.0])

    @jax.jit
    def prepare(memory, mask):
        return method.prepare(params, {"mask": mask}, scope.replace(memory=memory))

    batch, after = prepare(memory, mask)
    assert all(len(x) == 3 * 40 for x in batch.values())
    np.testing.assert_array_equal(batch["mask"].reshape(3, 40)[:, 0], mask)

    step = jax.jit(Environment("CartPole-v1").step)
    state = jax.tree.map(lambda x: x[1], memory["rows"]["state"])
    ends, total, seen = batch["ended"].reshape(3, 40)[1], 0.0, []
    for t in range(40):
        observation = batch["observation"].reshape(3, 40, 4)[1, t]
        np.testing.assert_allclose(
            observation, [state.x, state.x_dot, state.theta, state.theta_dot], rtol=1e-5, atol=1e-6
        )
        key = jax.random.fold_in(jax.random.fold_in(scope.rng, t), 1)
        action = batch["action"].reshape(3, 40)[1, t]
        found = step(jax.random.split(key)[1], state, action)
        assert bool(found.terminated | found.truncated) == bool(ends[t])
        total += 1.0
        seen.append(total)
        total, state = (0.0 if ends[t] else total), found.state
    assert ends.sum() > 0
    np.testing.assert_allclose(batch["return"].reshape(3, 40)[1], seen)
    np.testing.assert_allclose(after["rows"]["return"][1], total)
    np.testing.assert_allclose(after["rows"]["state"].x[1], state.x, rtol=1e-5)

    # Of another number of environments the first ones do the same.
    two = jax.tree.map(lambda x: x[:2], memory)
    fewer, _ = prepare(two, mask[:2])
    np.testing.assert_array_equal(
        fewer["action"].reshape(2, 40), batch["action"].reshape(3, 40)[:2]
    )


def test_an_episode_that_runs_out_of_time_is_worth_what_follows():
    """CartPole ends by time at 500 steps: the last advantage has the value of the state reached."""
    environment = Environment("CartPole-v1")
    _, state = environment.reset(jax.random.key(0))
    late = dataclasses.replace(state, time=jnp.int32(environment.longest - 1))
    found = environment.step(jax.random.key(1), late, jnp.int32(0))
    assert found.truncated and not found.terminated
    assert found.state.time == 0  # the next episode's
    np.testing.assert_allclose(found.reached[0], state.x + 0.02 * state.x_dot, rtol=1e-5)
    assert not np.allclose(found.reached, found.observation)


def test_standardized_leaves_out_what_is_masked():
    x, mask = jnp.array([1.0, 3.0, 50.0, 5.0]), jnp.array([1.0, 1.0, 0.0, 1.0])
    found = standardized(x, mask)[np.array([0, 1, 3])]
    np.testing.assert_allclose(found, (np.array([1, 3, 5]) - 3) / np.std([1, 3, 5]), rtol=1e-5)


@pytest.mark.slow
def test_a_resume_between_two_evaluations_is_bitwise_and_episodes_are_measured(tmp_path):
    evaluators = dict(greedy=dict(type="episodes", episodes=5, every=6))
    config = tiny(evaluators=evaluators)
    whole, asked = train(config, tmp_path / "whole"), iter([False] * 5)
    with pytest.raises(Stopped):
        train(config, tmp_path / "run", stop=lambda: next(asked, True))
    again = train(config, tmp_path / "run")
    assert again["fingerprint"] == whole["fingerprint"]
    assert again["metrics"] == whole["metrics"]
    assert 5 <= whole["metrics"]["eval/greedy/return_least"] <= 500
    rows = open_run(tmp_path / "run").state.memory["rows"]
    for leaf in jax.tree.leaves(rows):  # an environment lives where its row of the batch does
        assert len(leaf.sharding.device_set) == 8 and leaf.sharding.shard_shape(leaf.shape)[0] == 5


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(model=dict(type="actor_critic", widths=(8,), actions=3)), "model.actions=2"),
        (dict(task=dict(type="classification", input="observation")), "the task actor_critic"),
        (dict(method=dict(type="ppo", environment="CartPol-v1")), "did you mean 'CartPole-v1'"),
        (dict(method=dict(type="ppo", environment="Pendulum-v1")), "not a finite set"),
        (dict(method=dict(type="ppo", environment="CartPole-v1", rollout=3)), "do not divide"),
        (dict(method=dict(type="supervised")), "no feature|no 'observation'"),
        (
            dict(evaluators=dict(pictures=dict(type="samples"))),
            "config.evaluators.pictures: samples are drawn from a flow",
        ),
    ],
)
def test_what_does_not_go_together_is_refused_by_name(changes, message, tmp_path):
    with pytest.raises(UserError, match=message):
        train(tiny(**changes), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_without_gymnax_the_command_that_installs_it_is_named(monkeypatch, tmp_path):
    from bigjax.methods import environments

    monkeypatch.setitem(__import__("sys").modules, "gymnax", None)
    environments._made.cache_clear()
    with pytest.raises(UserError, match=r"config.method.environment: .*-m pip install gymnax six"):
        PPO("CartPole-v1").init(jax.random.key(0), None, 2)
