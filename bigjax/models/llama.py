"""Llama and its kin: decoders with RMSNorm, rotary positions, grouped queries and a gated MLP.

With their choices the one class is Qwen 2 and 3, Mistral, Gemma 2 and 3, Phi-3, OLMo 2, SmolLM 3, and
with experts Mixtral and Qwen 3 MoE (which choices: the table in `bigjax.pretrained.decoders`). Shapes are in
the names: B batch, T length, D width, H width of a head, F pairs of a head, L layers, V vocabulary.

Parameters: embedding, block_0, block_1, ... (with scan_layers: blocks), norm, and unembedding where
the embedding is not tied.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from bigjax.core.errors import UserError
from bigjax.models.blocks import check_context, head_width, last_token, table, unembed
from bigjax.models.experts import Routing
from bigjax.models.layer_kinds import layers_of, seen_keys
from bigjax.models.transformer import (
    Form,
    blocks,
    flops_by_formula,
    norm,
    size,
    stand,
)
from bigjax.models.units import Units, of_blocks

# "smollm2_135m": Ben Allal et al. 2025, "SmolLM2"; "1b": Zhang et al. 2024, "TinyLlama", table 1, the
# Llama 2 layout at 1.1 billion; "7b" and "70b": Llama 2's own (Touvron et al. 2023, "LLaMA", table 2, and
# "Llama 2", table 1; what they leave out, the MLP's width and the groups, is of the published config.json).
PRESETS = {
    "3m": dict(
        vocab=4096, layers=4, width=128, heads=4, kv_heads=2, mlp_width=352, context=256, tied=True
    ),
    "smollm2_135m": dict(
        vocab=49152,
        layers=30,
        width=576,
        heads=9,
        kv_heads=3,
        mlp_width=1536,
        context=8192,
        rope_theta=100000.0,
        tied=True,
    ),
    "1b": dict(
        vocab=32000, layers=22, width=2048, heads=32, kv_heads=4, mlp_width=5632, context=2048
    ),
    "7b": dict(
        vocab=32000, layers=32, width=4096, heads=32, kv_heads=32, mlp_width=11008, context=4096
    ),
    "70b": dict(
        vocab=32000, layers=80, width=8192, heads=64, kv_heads=8, mlp_width=28672, context=4096
    ),
}


class Llama(nn.Module):
    """Touvron et al. 2023, with the grouped queries of Ainslie et al. 2023.

    vocab: number of tokens.
    layers, width, heads: number of blocks, their width D, and the query heads.
    kv_heads: key and value heads; heads is a multiple of it.
    head_width: H, even; default: the heads share the width evenly.
    mlp_width: F.
    context: the longest document it can read.
    rope_theta, rope_scaling: of the rotary positions (see `bigjax.models.rotary.frequencies`).
    rope_width: how much of a head turns; default: all.
    layer_kinds: of the layers in turn, from the first on again and again: "full" attention, "local"
        attention over the last `window` tokens, or full attention with "no_rope", without positions.
    window: tokens a local layer sees, the query's own among them.
    local_rope_theta: of local layers, which are then not scaled; default: as the others.
    norm: "rms", or "rms_from_one"; norm_places, activation, biases, qk_norm: see
        `bigjax.models.transformer.Form`. norm_epsilon: added to the mean square.
    query_width: scores are products over its square root; default H.
    softcap, logit_softcap: caps on scores and on logits, c tanh(x / c); None: none.
    scaled_embedding: whether embeddings are multiplied by sqrt(D).
    tied: whether the logits are products with the embedding, or with a table of their own.
    experts: of each layer, in place of its one MLP, F then the width of one; None: no experts.
    experts_used, renormalized_gates, expert_capacity, balance_loss, router_z_loss: see
        `bigjax.models.experts.Routing`.
    attention: which implementation (see `bigjax.models.attention.attend`).
    remat, scan_layers: levers on memory and compile time (see `bigjax.models.blocks`).
    """

    vocab: int
    layers: int
    width: int
    heads: int
    kv_heads: int
    mlp_width: int
    context: int
    head_width: int | None = None
    rope_theta: float = 10000.0
    rope_scaling: Mapping[str, Any] | None = None
    norm_epsilon: float = 1e-5
    tied: bool = False
    rope_width: int | None = None
    layer_kinds: Sequence[str] = ("full",)
    window: int | None = None
    local_rope_theta: float | None = None
    norm: str = "rms"
    norm_places: str = "before"
    activation: str = "silu"
    biases: Sequence[str] = ()
    qk_norm: str = "none"
    query_width: int | None = None
    softcap: float | None = None
    logit_softcap: float | None = None
    scaled_embedding: bool = False
    experts: int | None = None
    experts_used: int = 2
    renormalized_gates: bool = True
    expert_capacity: float | None = None
    balance_loss: float = 0.01
    router_z_loss: float = 0.001
    attention: str = "auto"
    remat: str = "none"
    scan_layers: bool = False

    MESH_AXES = ("sequence",)
    # Megatron's split (Shoeybi et al. 2019, section 3): heads and the MLP's hidden units over `tensor`.
    TENSOR_RULES = ((".*", "logical"),)
    LOGICAL_RULES = (
        ("vocab", "tensor"),
        ("heads", "tensor"),
        ("kv_heads", "tensor"),
        ("mlp", "tensor"),
        ("experts", "expert"),
        ("group", ("dcn", "data", "fsdp")),  # the batch, where `expert` splits the experts instead
    )

    @nn.compact
    def __call__(
        self,
        tokens_BT: jax.Array,
        segments_BT: jax.Array | None = None,
        *,
        train: bool,
        cache: int = 0,
    ) -> jax.Array:
        """Logits of the token that follows.

        Args:
          tokens_BT: int, T <= context.
          segments_BT: int, 0 = padding, 1, 2, ... = which document of the row; None: one document.
          train: changes nothing: there is no dropout.
          cache: slots of the key-value cache; 0: none. See `bigjax.models.generate`.

        Returns:
          float32 (B, T, V); with a cache (B, 1, V), after the last token of each row.
        """
        T = tokens_BT.shape[1]
        check_context(self.context, max(T, cache))
        form = self._form()
        embedding_VD = table(self, "embedding", self.vocab, "vocab")
        where = stand(self, T, segments_BT, cache)
        x_BTD = embedding_VD[tokens_BT]
        if self.scaled_embedding:
            x_BTD = x_BTD * jnp.asarray(self.width**0.5, x_BTD.dtype)
        x_BTD = blocks(
            self,
            form,
            x_BTD,
            where,
            train=train,
            cache=cache,
            each=layers_of(
                self,
                self.rope_width or form.head_width,
                self.rope_scaling,
                jnp.max(where.at) + 1,
            ),
        )
        if cache:
            x_BTD = last_token(x_BTD, segments_BT)
        x_BTD = norm(form, "norm")(x_BTD)
        if not self.tied:
            embedding_VD = table(self, "unembedding", self.vocab, "vocab")
        logits_BTV = unembed(x_BTD, embedding_VD)
        cap = self.logit_softcap
        return logits_BTV if cap is None else cap * jnp.tanh(logits_BTV / cap)

    def _form(self) -> Form:
        """What the blocks are; UserError where heads do not fit."""
        H = self.head_width or head_width(self.width, self.heads)
        turning = self.rope_width or H
        if turning % 2 or turning > H:
            raise UserError(
                f"model.heads: {self.heads} heads of width {H} of which {turning} turn; "
                "rotary positions turn pairs and need an even width"
            )
        if self.heads % self.kv_heads:
            raise UserError(
                f"model.kv_heads: {self.kv_heads} key heads do not serve {self.heads} heads evenly"
            )
        return Form(
            heads=self.heads,
            kv_heads=self.kv_heads,
            head_width=H,
            mlp_width=self.mlp_width,
            norm=self.norm,
            norm_epsilon=self.norm_epsilon,
            norm_places=self.norm_places,
            activation=self.activation,
            gated=True,
            biases=self.biases,
            qk_norm=self.qk_norm,
            scale=None if self.query_width is None else self.query_width**-0.5,
            softcap=self.softcap,
            depth=self.layers,
            implementation=self.attention,
            routing=self._routing(),
        )

    def _routing(self) -> Routing | None:
        if self.experts is None:
            return None
        if "mlp" in self.biases:
            raise UserError("model.biases: experts have none; leave 'mlp' out")
        return Routing(
            experts=self.experts,
            used=self.experts_used,
            renormalized=self.renormalized_gates,
            capacity=self.expert_capacity,
            balance_loss=self.balance_loss,
            router_z_loss=self.router_z_loss,
        )

    def flops(self, params: Any, tokens_BT: Any, *_: Any) -> dict[str, float]:
        """FLOPs of forward and backward by formula (see `flops_by_formula`), of inputs of these shapes."""
        B, T = tokens_BT.shape
        keys = seen_keys(self, T, self.window)
        attended = self.heads * self._form().head_width * B * T * keys
        multiplied = size(params) if self.tied else size(params, "embedding")
        if self.experts:  # of which a token is multiplied by a few
            idle = self.experts - self.experts_used
            multiplied -= 3 * self.layers * idle * self.width * self.mlp_width
        return flops_by_formula([(multiplied, B * T)], attended, causal=True)

    def prunable(self) -> dict[str, list[Units]]:
        """Key heads, each with the queries that share it, and hidden units of each block."""
        return of_blocks(self._form(), [f"block_{i}" for i in range(self.layers)])
