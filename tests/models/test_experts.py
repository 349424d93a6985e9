"""A mixture of experts: against loops in float64, row by row, on any mesh and in any microbatches."""

import functools

import flax.linen as nn
import jax
import numpy as np
import pytest

from bigjax.build.parts import key_data, traced_hyper
from bigjax.build.program import build_program
from bigjax.config.resolve import resolve
from bigjax.core import settings
from bigjax.core.errors import UserError
from bigjax.core.losses import AUXILIARY, Auxiliary, Loss, with_auxiliary
from bigjax.core.rules import paths
from bigjax.data import pipeline
from bigjax.data.sources import Arrays
from bigjax.mesh import sharding
from bigjax.models.experts import MixtureOfExperts, Routing
from bigjax.plan import sharding_report

RNG = np.random.default_rng(0)
D, F, E, K, T = 6, 10, 5, 2, 8
X = RNG.standard_normal((3, T, D)).astype(np.float32)
SEGMENTS = np.array([[1] * 8, [1, 1, 1, 2, 2, 0, 0, 0], [0] * 8], np.int32)


@functools.cache
def variables():
    module = MixtureOfExperts(Routing(E, K), F, nn.silu, None, False)
    made = nn.unbox(module.init(jax.random.key(0), X)["params"])
    return jax.tree.map(lambda x: 10 * np.asarray(x), made)


def by_hand(x, real, capacity, renormalized=True):
    """(outputs, sums of each shown loss) of a row, token after token, in float64."""
    params = jax.tree.map(lambda leaf: leaf.astype(np.float64), variables())
    weights = params["experts"]
    room = np.inf if capacity is None else min(T, int(np.ceil(capacity * K * T / E)))
    taken, dropped, z = np.zeros(E), 0, 0.0
    y, asked, mean = np.zeros((T, D)), np.zeros(E), np.zeros(E)
    for t in np.flatnonzero(real):
        logits = x[t].astype(np.float64) @ params["router"]["kernel"]
        p = np.exp(logits) / np.exp(logits).sum()
        mean += p / real.sum()
        z += np.log(np.exp(logits).sum()) ** 2
        best = np.argsort(-p, kind="stable")[:K]
        gates = p[best] / (p[best].sum() if renormalized else 1)
        for e, gate in zip(best, gates, strict=True):
            asked[e] += 1
            if taken[e] == room:
                dropped += 1
                continue
            taken[e] += 1
            h = x[t] @ weights["gate"][e]
            h = h / (1 + np.exp(-h)) * (x[t] @ weights["up"][e])
            y[t] += gate * (h @ weights["down"][e])
    n = real.sum()
    share = asked / max(1, n * K)
    return y, dict(
        balance_loss=n * E * (share * mean).sum(),
        router_z_loss=z,
        busiest_expert=n * E * share.max(),
        dropped_tokens=dropped,
    )


@pytest.mark.parametrize(("capacity", "renormalized"), [(None, False), (0.7, True)])
def test_tokens_go_to_their_experts_as_by_hand(capacity, renormalized):
    routing = Routing(E, K, renormalized, capacity, 0.5, 0.25)
    module = MixtureOfExperts(routing, F, nn.silu, None, True)
    apply = jax.jit(lambda p: module.apply({"params": p}, X, SEGMENTS, mutable=[AUXILIARY]))
    got, sown = apply(variables())
    for row in range(3):
        y, sums = by_hand(X[row], SEGMENTS[row] > 0, capacity, renormalized)
        np.testing.assert_allclose(got[row], y, rtol=2e-5, atol=2e-6)
        for name, expected in sums.items():
            own = sown[AUXILIARY][name]
            np.testing.assert_allclose(own.sums[row], expected, rtol=1e-5, atol=1e-6)
            n = (SEGMENTS[row] > 0).sum() * (K if name == "dropped_tokens" else 1)
            assert own.weights[row] == n
    assert sown[AUXILIARY]["balance_loss"].factor == 0.5
    assert (capacity == 0.7) == bool(sown[AUXILIARY]["dropped_tokens"].sums.any())
    uncounted = MixtureOfExperts(routing, F, nn.silu, None, False)
    outside = jax.jit(lambda p: uncounted.apply({"params": p}, X))(variables())
    np.testing.assert_allclose(outside[0], by_hand(X[0], np.ones(T), None, renormalized)[0],
                               rtol=2e-5, atol=2e-6)  # fmt: skip


def test_training_without_the_routers_losses_is_refused():
    module = MixtureOfExperts(Routing(E, K), F, nn.silu, None, True)
    with pytest.raises(UserError, match="the losses of their router would be lost"):
        module.apply({"params": variables()}, X)


def test_losses_of_layers_join_the_loss_row_by_row_and_masked_rows_count_for_nothing():
    rows = RNG.standard_normal((2, 6)).astype(np.float32)  # layers, rows
    mask = np.array([1, 0, 1, 1, 1, 0], np.float32)
    rows[:, 1] = np.nan

    def joined(which):
        pair = Auxiliary(rows[:, which], 2 * np.ones((2, len(which))), np.full(2, 0.5))
        alone = Auxiliary(rows[0, which], np.ones(len(which)), 0.0)
        sown = {"blocks": {"mlp": {"balance": pair}}, "last": {"load": alone}}
        collections = {AUXILIARY: sown, "batch_stats": "kept"}
        loss = Loss(np.float32(len(which)), np.float32(7), {"accuracy": (1.0, 2.0)}, collections)
        return with_auxiliary(loss, mask[which])

    whole, parts = joined(np.arange(6)), [joined(np.arange(3)), joined(np.arange(3, 6))]
    real = mask > 0
    expected = rows[:, real].astype(np.float64).sum()
    np.testing.assert_allclose(whole.sum, 6 + 0.5 * expected, rtol=1e-6)
    np.testing.assert_allclose(whole.sum, sum(part.sum for part in parts), rtol=1e-6)
    np.testing.assert_allclose(whole.metrics["balance"], (expected, 2 * 2 * 4), rtol=1e-6)
    np.testing.assert_allclose(whole.metrics["load"], (rows[0, real].sum(), 4), rtol=1e-6)
    assert whole.metrics["task_loss"] == (6, 7) and whole.metrics["accuracy"] == (1.0, 2.0)
    assert whole.weight == 7 and whole.collections == {"batch_stats": "kept"}
    plain = Loss(np.float32(1), np.float32(2), {}, {})
    assert with_auxiliary(plain, mask) == plain


TOKENS = RNG.integers(0, 16, (64, 8)).astype(np.int32)
BATCH = 16
MODEL = dict(type="llama", vocab=16, layers=2, width=16, heads=4, kv_heads=2, mlp_width=24)
MODEL |= dict(context=8, experts=4, balance_loss=0.1, router_z_loss=0.05, scan_layers=True)


def program_of(mesh, devices, *overrides, **model):
    raw = dict(
        train=dict(steps=3, batch_size=BATCH),
        data=dict(source=dict(type="npz", directory="unused"), splits=dict(train="train")),
        model={**MODEL, **model},
        task=dict(type="language_model"),
        optimizer=dict(type="momentum", learning_rate=0.1),
        sharding=dict(rules=((".*", "tensor + fsdp"),)),
    )
    config, source = resolve(raw, overrides), Arrays({"tokens": TOKENS})
    grid = sharding.make_mesh(settings.Mesh(**mesh), jax.devices()[:devices])
    return build_program(config, source, mesh=grid), config, source


@functools.cache
def first_state(capacity):
    program, config, _ = program_of(dict(data=1), 1, expert_capacity=capacity)
    return jax.device_get(program.init(key_data(0), traced_hyper(config))[0])


def step_of(mesh, devices, *overrides, capacity=None):
    """(metrics of a step with some rows of padding, the gradient: momentum's first trace)."""
    program, _, source = program_of(mesh, devices, *overrides, expert_capacity=capacity)
    layout = jax.tree.map(lambda x: x.sharding, program.state)
    state = jax.device_put(first_state(capacity), layout)
    batches = pipeline.train_batches(
        source,
        batch_size=BATCH,
        seed=0,
        start_step=0,
        sharding=sharding.batch_sharding(program.mesh),
        leave_out=frozenset({(0, 3), (0, 17), (0, 21), (0, 22), (0, 40)}),
    )
    batch = next(batches)
    batches.close()
    assert 0 < np.sum(batch["mask"]) < BATCH
    state, metrics = program.train_step(state, batch, {})
    trace = {path: x for path, x in paths(state.opt_state).items() if "trace/" in path}
    return jax.device_get((metrics, trace))


one_device = functools.cache(lambda capacity: step_of(dict(data=1), 1, capacity=capacity))

CASES = {
    "expert 4 x data 2": (dict(data=2, expert=4), None),
    "fsdp 2 x expert 4, capacity": (dict(data=1, fsdp=2, expert=4), 0.75),
    "tensor 2 x expert 4, capacity": (dict(data=1, tensor=2, expert=4), 0.75),
    "fsdp 2 x tensor 2 x expert 2": (dict(data=1, fsdp=2, tensor=2, expert=2), None),
    "accumulate 4, capacity": (dict(data=1), 0.75),
}


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_any_mesh_and_any_microbatches_give_the_numbers_of_one_device(case):
    mesh, capacity = CASES[case]
    split = case.startswith("accumulate")
    overrides = ["train.accumulate=4"] if split else []
    metrics, trace = step_of(mesh, 1 if split else 8, *overrides, capacity=capacity)
    expected_metrics, expected = one_device(capacity)
    assert (expected_metrics["dropped_tokens"][0] > 0) == (capacity is not None)
    for name in ("loss", "task_loss", "balance_loss", "router_z_loss", "dropped_tokens"):
        np.testing.assert_allclose(metrics[name], expected_metrics[name], rtol=2e-6, err_msg=name)
    loss, task = (expected_metrics[name] for name in ("loss", "task_loss"))
    more = 0.1 * expected_metrics["balance_loss"][0] + 0.05 * expected_metrics["router_z_loss"][0]
    np.testing.assert_allclose(loss[0], task[0] + more, rtol=1e-5)
    assert len(trace) == len(expected) > 3
    for path, gradient in expected.items():
        error = np.linalg.norm(trace[path] - gradient)
        assert error <= 1e-5 * np.linalg.norm(gradient) + 1e-7, path


GOLDEN = {
    ("all-gather", "fsdp"): 44,
    ("all-gather", "fsdp x expert"): 2,
    ("all-reduce", "fsdp x expert"): 3,
    ("all-reduce", "fsdp"): 3,
    ("all-reduce", "expert"): 3,
    ("all-to-all", "expert"): 8,
}


@pytest.mark.slow
def test_experts_lie_over_their_axis_and_tokens_go_there_and_back_by_all_to_all():
    program, _, source = program_of(dict(data=1, fsdp=2, expert=4), 8, expert_capacity=1.25)
    spec = {path: placed.spec for path, placed in program.placed.items()}
    assert spec["blocks/mlp/experts/up"][1] == "expert"
    report = sharding_report.report(program, source.features, BATCH)
    sent = {(one["kind"], one["axes"]): one["count"] for one in report["collectives"]}
    assert ("all-to-all", "expert") in sent and "all-to-all" in sharding_report.text(report)
    assert ("all-gather", "expert") not in sent  # no expert's weights leave their devices
    if jax.__version__ == "0.10.2":  # another compiler may choose others
        assert sent == GOLDEN


def test_a_mesh_without_use_and_experts_that_do_not_divide_are_refused():
    with pytest.raises(UserError, match=r"config.mesh.expert: nothing in Llama"):
        program_of(dict(data=1, expert=8), 8, experts=None)
    with pytest.raises(UserError, match="expert 8 does not divide dimension 4"):
        program_of(dict(data=1, expert=8), 8)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (dict(experts_used=5), "experts_used: 5 must be from 1 to the 4"),
        (dict(expert_capacity=0.0), "expert_capacity: 0.0 must be more than 0"),
        (dict(biases=("mlp",)), "experts have none"),
    ],
)
def test_what_no_router_can_do_is_refused(changes, said):
    with pytest.raises(UserError, match=said):
        program_of(dict(data=1), 1, **changes)
