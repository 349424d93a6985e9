"""Federated averaging: clients train on their own examples, and their models are averaged."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bigjax.core.errors import UserError, did_you_mean
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
from bigjax.core.order import sample_ids, uniforms
from bigjax.mesh.sharding import batch_devices


@dataclasses.dataclass(frozen=True)
class FedAvg(Method):
    """McMahan et al. 2017, "Communication-efficient learning", algorithm 1: a step is a round.

    Of all clients some are drawn, each trains by plain SGD on its own examples from the common
    parameters w, and the server gets the mean of what they end with, weighted by their examples n_k.
    As a gradient, that is w - sum_k (n_k / n) w_k: with `optimizer` sgd of learning rate 1 the new
    parameters are the paper's, and with Adam they are those of Reddi et al. 2021 (algorithm 2).

    A client has `rows` rows of the batch, those beyond its examples masked, so `train.batch_size / rows`
    clients take part in a round. A local step that has no example (such as the last of a small
    client's) changes nothing. The loss that is shown is that of the first local epoch.

    rows: at least the examples of the largest client.
    local_rate: eta of local SGD.
    local_epochs: E. local_batch: B; None: all of a client's examples in one step.
    column: the feature that says whose an example is.
    clients: in place of it, how many clients the examples are dealt out to at random, ...
    concentration: ... and unevenly, each class by shares from a symmetric Dirichlet distribution
      (Yurochkin et al. 2019, section 4); the less, the more unlike the clients. None: evenly.
    label: the feature with the class.
    partition_seed: of the dealing; the same clients for every `config.seed`.
    """

    rows: int
    local_rate: Traced = 0.1
    local_epochs: int = 1
    local_batch: int | None = None
    column: str | None = None
    clients: int | None = None
    concentration: float | None = None
    label: str = "label"
    partition_seed: int = 0

    def __post_init__(self) -> None:
        if (self.column is None) == (self.clients is None):
            raise UserError("give either column, whose values are the clients, or how many clients")
        for name in ("rows", "local_epochs", "local_batch", "clients", "concentration"):
            value = getattr(self, name)
            if value is not None and value <= 0:
                raise UserError(f"{name}: {value} must be more than 0")
        if self.column is not None and self.concentration is not None:
            raise UserError("concentration: deals examples out to `clients`; `column` says whose")
        if self.rows % (self.local_batch or self.rows):
            raise UserError(
                f"local_batch: {self.local_batch} does not divide the rows ({self.rows})"
            )

    def check(self, facts: Facts) -> None:
        check_own_rows(facts, "fedavg")
        if own := [name for name in facts.variables if name != "params"]:
            raise UserError(
                f"config.method: fedavg averages parameters; the clients' {', '.join(own)} (BatchNorm) "
                "would differ: use a model without"
            )
        shares = facts.train.accumulate * batch_devices(facts.mesh)
        if facts.train.batch_size % (self.rows * shares):
            raise UserError(
                f"config.train.batch_size: {facts.train.batch_size} is no multiple of the "
                f"{self.rows} rows of a client x {shares} devices and microbatches, which share "
                "the clients out whole"
            )

    @property
    def unit(self) -> int:
        return self.rows

    def order(
        self, source: Any, seed: int, batch_size: int, total_steps: int
    ) -> Callable[[np.ndarray], tuple[np.ndarray, np.ndarray, np.ndarray]]:
        """Client after client: its examples in an order of this round, then masked rows."""
        groups, drawn = self.groups(source), batch_size // self.rows
        largest = max(map(len, groups))
        if largest > self.rows:
            raise UserError(
                f"config.method.rows: {self.rows}, but the largest client has {largest} examples"
            )
        if drawn > len(groups):
            raise UserError(
                f"config.train.batch_size: has rows for {drawn} clients a round; there are {len(groups)}"
            )

        def rows_of(steps: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
            ids = np.zeros((len(steps), drawn, self.rows), np.int64)
            mask = np.zeros(ids.shape, np.float32)
            positions = steps[:, None] * len(groups) + np.arange(drawn)
            chosen, _ = sample_ids(seed, positions, len(groups))
            for at, place in np.ndindex(chosen.shape):
                own = groups[chosen[at, place]]
                keys = uniforms(seed, int(steps[at]) * len(source) + own)
                ids[at, place, : len(own)] = own[np.argsort(keys, kind="stable")]
                mask[at, place, : len(own)] = 1
            flat = (len(steps), batch_size)
            epochs = np.repeat(steps[:, None], batch_size, axis=1)
            return ids.reshape(flat), epochs, mask.reshape(flat)

        return rows_of

    def gradients(
        self, loss: Callable[[Any, Batch, Scope], Any], trained: Any, batch: Batch, scope: Scope
    ) -> Sums:
        """sum_k n_k (w - w_k), the clients side by side."""
        count = len(batch["mask"]) // self.rows
        data = jax.tree.map(
            lambda x: x.reshape(count, self.rows, *x.shape[1:]), (batch, dict(scope.views))
        )

        def train_client(data: Any, key: jax.Array) -> tuple[Any, Any]:
            return self._train_client(loss, trained, data, scope.replace(rng=key))

        with unlaid():  # a client's arrays are its own
            moved, pairs = jax.vmap(train_client)(data, jax.random.split(scope.rng, count))
        moved, pairs = jax.tree.map(lambda x: jnp.sum(x, axis=0), (moved, pairs))
        return Sums(moved, pairs, scope.collections, scope.memory)

    def _train_client(
        self, loss: Callable[[Any, Batch, Scope], Any], trained: Any, data: Any, scope: Scope
    ) -> tuple[Any, Any]:
        """(n_k (w - w_k), the pairs of the first epoch) of one client's rows."""
        batch_size = self.local_batch or self.rows
        turns, real = self.rows // batch_size, data[0]["mask"] > 0

        def local_step(params: Any, number: jax.Array) -> tuple[Any, Any]:
            # Rows lie in a random order already; a later epoch's is another, real examples first.
            epoch, turn = number // turns, number % turns
            key = jax.random.fold_in(jax.random.fold_in(jax.random.key(0), scope.step), epoch)
            turned = jnp.argsort(jnp.where(real, jax.random.uniform(key, real.shape), 2.0))
            rows = jnp.where(epoch == 0, jnp.arange(self.rows), turned)
            rows = jax.lax.dynamic_slice_in_dim(rows, turn * batch_size, batch_size)
            batch, views = jax.tree.map(lambda x: x[rows], data)
            own = scope.replace(views=views, rng=jax.random.fold_in(scope.rng, number))
            sums = summed_gradients(loss, params, batch, own)
            mean = of_the_mean(sums.gradients, sums.pairs)
            rate = scope.hyper["local_rate"]
            params = jax.tree.map(lambda p, g: p - rate * g, params, mean)
            return params, jax.tree.map(lambda x: jnp.where(epoch == 0, x, 0), sums.pairs)

        begun = jax.tree.map(lambda p: p.astype(jnp.promote_types(p.dtype, jnp.float32)), trained)
        numbers = jnp.arange(self.local_epochs * turns)
        ended, pairs = jax.lax.scan(local_step, begun, numbers)
        pairs = jax.tree.map(lambda x: jnp.sum(x, axis=0), pairs)
        weight = pairs["loss"][1]
        return jax.tree.map(lambda w, w_k: weight * (w - w_k), begun, ended), pairs

    def groups(self, source: Any) -> list[np.ndarray]:
        """The ids of each client's examples, every client with at least one."""
        everyone, key = np.arange(len(source)), self.column
        if key is None and self.concentration is None:
            shuffled = np.argsort(uniforms(self.partition_seed, everyone), kind="stable")
            return np.array_split(shuffled, self.clients)
        name = key or self.label
        if name not in source.features or source.features[name][0] != ():
            raise UserError(
                f"config.method.{'column' if key else 'label'}: the data has no column '{name}' of "
                f"one number an example{did_you_mean(name, source.features)}"
            )
        values = source.read(everyone)[name]
        if key is not None:
            return [np.flatnonzero(values == value) for value in np.unique(values)]
        return self._dirichlet(values)

    def _dirichlet(self, labels: np.ndarray) -> list[np.ndarray]:
        """Each class cut by shares g_k / sum g of Gamma(concentration, 1) numbers g: a Dirichlet draw."""
        from scipy.special import gammaincinv

        owners = np.zeros(len(labels), np.int64)
        for number, label in enumerate(np.unique(labels)):
            own = np.flatnonzero(labels == label)
            own = own[np.argsort(uniforms(self.partition_seed, own), kind="stable")]
            draws = uniforms(
                self.partition_seed + 1, number * self.clients + np.arange(self.clients)
            )
            shares = np.maximum(gammaincinv(self.concentration, draws), 1e-300)
            ends = np.cumsum(shares) / shares.sum() * len(own)
            owners[own] = np.searchsorted(np.round(ends[:-1]), np.arange(len(own)), side="right")
        groups = [np.flatnonzero(owners == client) for client in range(self.clients)]
        return [group for group in groups if len(group)]
