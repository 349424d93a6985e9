"""A mixture of experts in a block's place for an MLP: a router sends each token to a few of many MLPs.

Everything is decided row by row of a batch (which tokens an expert has no room for, how evenly the
experts are used), so that the numbers are the same in any microbatches and on any mesh. Shapes are in the
names: B batch, T length, D width, E experts, K of them that a token goes to, C tokens that an expert has
room for in a row, F width of an expert.

Parameters: router/kernel (D, E), experts/up and experts/gate (E, D, F), experts/down (E, F, D).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from bigjax.core.errors import UserError
from bigjax.core.layout import constrain
from bigjax.core.losses import AUXILIARY, Auxiliary
from bigjax.models.blocks import named, normal

Activation = Callable[[jax.Array], jax.Array]


class Weights(NamedTuple):
    """Of the experts: gate and up (E, D, F), down (E, F, D)."""

    gate: jax.Array
    up: jax.Array
    down: jax.Array


@dataclasses.dataclass(frozen=True)
class Routing:
    """Where tokens go.

    experts: E. used: K, the most probable ones.
    renormalized: whether the K gates of a token are divided by their sum (Mixtral), or are probabilities.
    capacity: in training an expert has room for capacity K T / E tokens of a row, of which it takes the
        first; the others pass it by (Lepikhin et al. 2021, section 2.2, which ranks likewise). None: for all.
    balance_loss, router_z_loss: factors of the losses (see `MixtureOfExperts`).
    """

    experts: int
    used: int = 2
    renormalized: bool = True
    capacity: float | None = None
    balance_loss: float = 0.01
    router_z_loss: float = 0.001

    def __post_init__(self) -> None:
        if not 1 <= self.used <= self.experts:
            raise UserError(
                f"model.experts_used: {self.used} must be from 1 to the {self.experts} experts"
            )
        if self.capacity is not None and self.capacity <= 0:
            raise UserError(f"model.expert_capacity: {self.capacity} must be more than 0")

    def room(self, length: int) -> int:
        """C, at most T: no row sends an expert more."""
        return min(length, math.ceil(self.capacity * self.used * length / self.experts))


class MixtureOfExperts(nn.Module):
    """sum_k g_k MLP_k(x) over the K experts of the largest probabilities p = softmax(x R), in float32.

    Sown in training, per row of n real tokens (see `bigjax.core.losses.with_auxiliary`):
      balance_loss: n E sum_e f_e mean(p_e), f_e the share of the tokens' choices that expert e got: Fedus et
        al. 2021, "Switch Transformers", eq. 4 to 6, of a row in place of a batch; n if all are used alike.
      router_z_loss: the sum over tokens of logsumexp(x R)^2: Zoph et al. 2022, "ST-MoE", eq. 5.
      busiest_expert: n E max_e f_e, and dropped_tokens, of n K choices: shown alone.

    routing: see `Routing`. width: F. activation: of the gate. layers: of the model, see `blocks.normal`.
    train: whether room is limited, as `routing.capacity` says.
    """

    routing: Routing
    width: int
    activation: Activation
    layers: int | None
    train: bool

    @nn.compact
    def __call__(self, x_BTD: jax.Array, segments_BT: jax.Array | None = None) -> jax.Array:
        routing, E = self.routing, self.routing.experts
        router = nn.Dense(
            E,
            use_bias=False,
            precision="highest",
            kernel_init=named(normal(), "embed", None),
            name="router",
        )
        logits_BTE = router(x_BTD.astype(jnp.float32))
        p_BTE = jax.nn.softmax(logits_BTE)
        gates_BTK, which_BTK = jax.lax.top_k(p_BTE, routing.used)
        if routing.renormalized:
            gates_BTK = gates_BTK / jnp.sum(gates_BTK, axis=-1, keepdims=True)
        real_BT = jnp.ones(x_BTD.shape[:2]) if segments_BT is None else segments_BT > 0
        # Padding goes nowhere and takes nobody's room.
        chosen_BTKE = jax.nn.one_hot(which_BTK, E) * real_BT[..., None, None]
        weights = Experts(E, self.width, self.layers, name="experts")(x_BTD.shape[-1])
        if self.train and routing.capacity is not None:
            slot_BTKC = slots(chosen_BTKE, routing.room(x_BTD.shape[1]))
            y_BTD = dispatched(weights, self.activation, x_BTD, gates_BTK, chosen_BTKE, slot_BTKC)
            dropped_B = jnp.sum(chosen_BTKE, (1, 2, 3)) - jnp.sum(slot_BTKC, (1, 2, 3))
        else:
            gates_BTE = jnp.einsum("BTK,BTKE->BTE", gates_BTK, chosen_BTKE)
            y_BTD = dropless(weights, self.activation, x_BTD, gates_BTE)
            dropped_B = jnp.zeros(len(x_BTD))
        if self.train:
            self._sow(logits_BTE, p_BTE, chosen_BTKE, real_BT, dropped_B)
        return y_BTD

    def _sow(self, logits_BTE, p_BTE, chosen_BTKE, real_BT, dropped_B) -> None:
        if not self.is_mutable_collection(AUXILIARY):
            raise UserError(
                "model.experts: the losses of their router would be lost here: nothing collects them "
                "from the blocks of a pipeline (config.mesh.pipeline); split the experts by mesh.expert"
            )
        routing, E = self.routing, self.routing.experts
        real_BT = real_BT.astype(jnp.float32)
        n_B = jnp.sum(real_BT, axis=1)
        some_B1 = jnp.maximum(n_B, 1.0)[:, None]
        share_BE = jnp.sum(chosen_BTKE, axis=(1, 2)) / (some_B1 * routing.used)
        mean_BE = jnp.sum(p_BTE * real_BT[..., None], axis=1) / some_B1
        z_BT = jnp.square(jax.nn.logsumexp(logits_BTE, axis=-1))
        balance_B = n_B * E * jnp.sum(share_BE * mean_BE, axis=1)
        for name, sums_B, weights_B, factor in (
            ("balance_loss", balance_B, n_B, routing.balance_loss),
            ("router_z_loss", jnp.sum(z_BT * real_BT, axis=1), n_B, routing.router_z_loss),
            ("busiest_expert", n_B * E * jnp.max(share_BE, axis=1), n_B, 0.0),
            ("dropped_tokens", dropped_B, n_B * routing.used, 0.0),
        ):
            pair = Auxiliary(sums_B, weights_B, jnp.float32(factor))
            self.sow(AUXILIARY, name, pair, reduce_fn=lambda _, new: new, init_fn=lambda: None)


class Experts(nn.Module):
    """The weights of E gated MLPs (act(x G) * x U) W of one shape, over the mesh axis `expert`."""

    count: int
    width: int
    layers: int | None

    @nn.compact
    def __call__(self, model_width: int) -> Weights:
        E, D, F = self.count, model_width, self.width
        into = named(normal(), "experts", "embed", "mlp")
        out_of = named(normal(self.layers), "experts", "mlp", "embed")
        return Weights(
            self.param("gate", into, (E, D, F)),
            self.param("up", into, (E, D, F)),
            self.param("down", out_of, (E, F, D)),
        )


def slots(chosen_BTKE: jax.Array, room: int) -> jax.Array:
    """(B, T, K, C): in which of its expert's C places a choice stands, one-hot; nowhere once they are taken.

    Places go to the tokens in their order, and so no token's numbers hang on later ones.
    """
    B, T, K, E = chosen_BTKE.shape
    in_turn = chosen_BTKE.reshape(B, T * K, E)
    before = jnp.cumsum(in_turn, axis=1) - in_turn
    place = jnp.sum(before * in_turn, axis=-1).reshape(B, T, K).astype(jnp.int32)
    return jax.nn.one_hot(place, room) * jnp.sum(chosen_BTKE, axis=-1, keepdims=True)


def dispatched(
    weights: Weights,
    act: Activation,
    x_BTD: jax.Array,
    gates_BTK: jax.Array,
    chosen_BTKE: jax.Array,
    slot_BTKC: jax.Array,
) -> jax.Array:
    """The sum over experts, each of which sees the tokens that have a place; float32.

    Products with zeros and ones lay the tokens out by expert (Lepikhin et al. 2021, "GShard", algorithm 2).
    Where experts are split over devices so is the batch, and what goes from the one layout to the other
    and back is an all-to-all.
    """
    gate_EDF, up_EDF, down_EFD = weights
    to_BTEC = jnp.einsum("BTKE,BTKC->BTEC", chosen_BTKE, slot_BTKC).astype(up_EDF.dtype)
    x_EBCD = jnp.einsum("BTEC,BTD->EBCD", to_BTEC, x_BTD.astype(up_EDF.dtype))
    x_EBCD = constrain(x_EBCD, "experts", "group", None, None)
    h_EBCF = act(jnp.einsum("EBCD,EDF->EBCF", x_EBCD, gate_EDF))
    h_EBCF = h_EBCF * jnp.einsum("EBCD,EDF->EBCF", x_EBCD, up_EDF)
    y_EBCD = constrain(
        jnp.einsum("EBCF,EFD->EBCD", h_EBCF, down_EFD), "experts", "group", None, None
    )
    y_EBCD = constrain(y_EBCD, None, "batch", None, None)
    from_BTEC = jnp.einsum("BTK,BTKE,BTKC->BTEC", gates_BTK, chosen_BTKE, slot_BTKC)
    return jnp.einsum("BTEC,EBCD->BTD", from_BTEC, y_EBCD.astype(jnp.float32))


def dropless(
    weights: Weights, act: Activation, x_BTD: jax.Array, gates_BTE: jax.Array
) -> jax.Array:
    """The sum over experts, each of which computes every token, and counts by its gate, mostly 0.

    E / K times the work of the experts that are asked, and no token is ever in another's way.
    """
    gate_EDF, up_EDF, down_EFD = weights
    x_BTD = constrain(x_BTD.astype(up_EDF.dtype), "group", None, None)
    h_EBTF = act(jnp.einsum("BTD,EDF->EBTF", x_BTD, gate_EDF))
    h_EBTF = h_EBTF * jnp.einsum("BTD,EDF->EBTF", x_BTD, up_EDF)
    h_EBTF = h_EBTF * jnp.moveaxis(gates_BTE, -1, 0)[..., None]  # float32, as the gates are
    h_EBTF = constrain(h_EBTF.astype(up_EDF.dtype), "experts", "group", None, "mlp")
    y_BTD = jnp.einsum("EBTF,EFD->BTD", h_EBTF, down_EFD)
    return constrain(y_BTD, "batch", "length", None)
