"""Federated averaging against algorithm 1 by hand in float64, and who the clients are."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bigjax.core.errors import UserError
from bigjax.data.sources import Arrays
from bigjax.methods.federated import FedAvg
from bigjax.tasks.classification import Classification
from tests.contracts.runs import setup_of, steps_of
from tests.methods.test_privacy import MODEL, params_of, scope_of

SIZES = (4, 1, 3)  # examples of the clients, of 4 rows each
METHOD = FedAvg(rows=4, clients=3, local_epochs=1, local_batch=2)


def batch_of():
    rng = np.random.default_rng(0)
    mask = np.zeros((3, 4), np.float32)
    for row, size in zip(mask, SIZES, strict=True):
        row[:size] = 1
    image = rng.normal(size=(12, 5)).astype(np.float32)
    image[mask.ravel() == 0] = 1e3  # what a masked row holds must not matter
    label = rng.integers(0, 3, 12).astype(np.int32)
    return dict(image=image, label=label, mask=mask.ravel())


def scope(rate):
    return scope_of().replace(hyper={"local_rate": jnp.float32(rate)})


def by_hand(batch, rate, epochs, size, order=lambda epoch, rows: rows):
    """The weighted mean of the clients' parameters (6, 3), bias last: McMahan et al., algorithm 1."""
    head = params_of()["head"]
    start = np.concatenate([head["kernel"], head["bias"][None]]).astype(np.float64)
    x = np.concatenate([batch["image"], np.ones((12, 1))], axis=1).astype(np.float64)
    target, mean = np.eye(3)[batch["label"]], 0
    for client, count in enumerate(SIZES):
        w, own = start.copy(), 4 * client + np.arange(count)
        for epoch in range(epochs):
            rows = order(epoch, own)
            for first in range(0, count, size):
                part = rows[first : first + size]
                z = np.exp(x[part] @ w)
                dz = z / z.sum(1, keepdims=True) - target[part]
                w = w - rate * x[part].T @ dz / len(part)
        mean = mean + count / sum(SIZES) * w
    return mean


def averaged(method, batch, rate):
    """The parameters after a server step of rate 1."""
    params = params_of()
    sums = method.gradients(method.loss, params, batch, scope(rate))
    new = jax.tree.map(jnp.subtract, params, method.finish(sums, scope(rate)))["head"]
    return np.concatenate([new["kernel"], new["bias"][None]]), sums


@pytest.mark.parametrize("size", [1, 2, 4])
def test_a_round_equals_algorithm_1_by_hand(size):
    batch = batch_of()
    method = FedAvg(rows=4, clients=3, local_batch=size)
    found, sums = averaged(method, batch, 0.3)
    np.testing.assert_allclose(found, by_hand(batch, 0.3, 1, size), rtol=1e-5, atol=1e-6)
    assert sums.pairs["loss"][1] == sum(SIZES)


def test_whole_local_batches_of_several_epochs_equal_gradient_descent_by_hand():
    batch = batch_of()
    found, sums = averaged(FedAvg(rows=4, clients=3, local_epochs=5), batch, 0.3)
    np.testing.assert_allclose(found, by_hand(batch, 0.3, 5, 4), rtol=1e-5, atol=1e-6)
    assert sums.pairs["loss"][1] == sum(SIZES)  # shown once, however many epochs


def test_a_later_epoch_meets_every_example_once_in_another_order():
    batch, orders = batch_of(), []

    def order(epoch, rows):
        if epoch == 0:
            return rows
        key = jax.random.fold_in(jax.random.fold_in(jax.random.key(0), 0), epoch)
        draws = np.asarray(jax.random.uniform(key, (4,)))[: len(rows)]
        orders.append(np.argsort(draws))
        return rows[np.argsort(draws)]

    found, _ = averaged(FedAvg(rows=4, clients=3, local_epochs=3, local_batch=1), batch, 0.3)
    np.testing.assert_allclose(found, by_hand(batch, 0.3, 3, 1, order), rtol=1e-5, atol=1e-6)
    assert any(list(o) != sorted(o) for o in orders)


def test_one_local_step_of_all_examples_is_a_step_of_sgd():
    # FedSGD (section 2): E = 1, B = infinity, all clients: the gradient of the pooled mean loss.
    batch = batch_of()
    found, _ = averaged(FedAvg(rows=4, clients=3), batch, 0.3)

    def loss(params):
        outputs = MODEL.apply({"params": params}, batch["image"], train=False)
        (total, weight), _ = Classification().loss(outputs, batch)
        return total / weight

    params = params_of()
    new = jax.tree.map(lambda p, g: p - 0.3 * g, params, jax.grad(loss)(params))["head"]
    expected = np.concatenate([new["kernel"], new["bias"][None]])
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


def examples(size=60, classes=4):
    rng = np.random.default_rng(1)
    return Arrays(
        dict(
            image=rng.normal(size=(size, 5)).astype(np.float32),
            label=rng.integers(0, classes, size),
            writer=rng.integers(10, 17, size),
        )
    )


def test_a_column_says_whose_an_example_is():
    source = examples()
    writers = source.read(np.arange(60))["writer"]
    groups = FedAvg(rows=30, column="writer").groups(source)
    assert [set(writers[group]) for group in groups] == [{w} for w in sorted(set(writers))]
    assert sorted(np.concatenate(groups)) == list(range(60))


@pytest.mark.parametrize("concentration", [None, 0.2, 100.0])
def test_every_example_is_dealt_to_one_client(concentration):
    source = examples(4000)
    method = FedAvg(rows=2000, clients=8, concentration=concentration)
    groups = method.groups(source)
    assert sorted(np.concatenate(groups)) == list(range(4000))
    again = FedAvg(rows=9, clients=8, concentration=concentration).groups(source)
    assert all(map(np.array_equal, groups, again))
    labels = source.read(np.arange(4000))["label"]
    shares = [np.bincount(labels[g], minlength=4).max() / len(g) for g in groups]
    unlike = np.mean(shares)  # the share of a client's commonest class; 1/4 where all are alike
    assert unlike > 0.5 if concentration == 0.2 else unlike < 0.35


def test_rounds_draw_clients_without_repeats_and_hold_their_examples():
    source = examples()
    method = FedAvg(rows=15, column="writer")
    writers = source.read(np.arange(60))["writer"]
    order = method.order(source, 5, 45, 100)
    ids, epochs, mask = order(np.arange(100))
    seen = []
    for step in range(100):
        rows, real = ids[step].reshape(3, 15), mask[step].reshape(3, 15) > 0
        own = [set(writers[rows[k][real[k]]]) for k in range(3)]
        assert all(len(one) == 1 for one in own) and len(set.union(*own)) == 3
        for k in range(3):
            mine = np.flatnonzero(writers == min(own[k]))
            assert sorted(rows[k][real[k]]) == list(mine)
        seen += [min(one) for one in own]
    assert min(np.bincount(np.array(seen) - 10)) > 25  # each of 7 about 43 times
    alone, _, _ = order(np.array([70]))
    assert np.array_equal(alone[0], ids[70]) and np.all(epochs[70] == 70)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (dict(rows=4), "either column"),
        (dict(rows=4, clients=3, column="a"), "either column"),
        (dict(rows=4, clients=3, local_batch=3), "does not divide"),
        (dict(rows=4, column="a", concentration=1.0), "concentration"),
        (dict(rows=0, clients=3), "rows: 0"),
    ],
)
def test_fields_that_do_not_go_together_are_refused(fields, message):
    with pytest.raises(UserError, match=message):
        FedAvg(**fields)


def test_clients_that_do_not_fit_are_refused():
    source = examples()
    with pytest.raises(UserError, match="the largest client has"):
        FedAvg(rows=3, column="writer").order(source, 0, 9, 5)
    with pytest.raises(UserError, match=r"no column 'writter'.*'writer'"):
        FedAvg(rows=3, column="writter").order(source, 0, 9, 5)
    with pytest.raises(UserError, match="rows for 8 clients a round; there are 7"):
        FedAvg(rows=15, column="writer").order(source, 0, 120, 5)


def test_clients_that_no_device_can_have_whole_are_refused():
    message = "80 is no multiple of the 20 rows of a client x 8 devices"
    with pytest.raises(UserError, match=message):
        setup_of("fedavg", "train.batch_size=80", "method.rows=20", mesh=dict(data=8))


@pytest.mark.slow
def test_other_shares_of_the_clients_give_the_same_round():
    one, state = steps_of(setup_of("fedavg", mesh=dict(data=1), devices=1), 3)
    shard_map = ("sharding.mode=shard_map", "sharding.rules=(('.*', 'replicate'),)")
    for overrides, mesh, devices in (
        (("train.accumulate=4",), dict(data=1), 1),
        ((), dict(data=8), 8),
        (shard_map, dict(data=8), 8),
    ):
        losses, other = steps_of(setup_of("fedavg", *overrides, mesh=mesh, devices=devices), 3)
        np.testing.assert_allclose(losses, one, rtol=1e-5)
        for x, y in zip(jax.tree.leaves(other.params), jax.tree.leaves(state.params), strict=True):
            np.testing.assert_allclose(x, y, atol=1e-5)
