"""GPT-2: a decoder-only Transformer, pre-norm, learned positions, tied embedding.

Every parameter names its logical axes, every block boundary its activation's; which mesh axis a name
lies on is said elsewhere. Shapes are in the names: B batch, T length, D width, N heads, H width of a
head, V vocabulary.

Parameters: embedding, positions, block_0, block_1, ... (with scan_layers: blocks), norm.
"""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax

from bigjax.models.blocks import (
    check_context,
    last_token,
    layer_norm,
    table,
    unembed,
)
from bigjax.models.transformer import Form, blocks, flops_by_formula, form_of, size, stand
from bigjax.models.units import Units, of_blocks

# Radford et al. 2019, table 2 (124m there says 117M, 350m says 345M), and Brown et al. 2020, table 2.1,
# "GPT-3 XL", with GPT-2's vocabulary and 16 heads of 128 in place of 24: a multiple of what GPUs like.
PRESETS = {
    "2m": dict(vocab=4096, layers=4, width=128, heads=4, context=256),
    "10m": dict(vocab=8192, layers=6, width=320, heads=5, context=256),
    "124m": dict(vocab=50257, layers=12, width=768, heads=12, context=1024),
    "350m": dict(vocab=50257, layers=24, width=1024, heads=16, context=1024),
    "1.3b": dict(vocab=50257, layers=24, width=2048, heads=16, context=1024),
}


class GPT2(nn.Module):
    """Radford et al. 2019: Vaswani et al. 2017, decoder only, with norms before the branches.

    vocab: number of tokens.
    layers, width, heads: number of blocks, their width D, and the heads that share it evenly.
    context: the longest document it can read.
    mlp_width: default 4 D. head_width: H, where the heads do not share the width evenly.
    activation: of the MLP (see `bigjax.models.transformer.ACTIVATIONS`).
    norm_epsilon: of the LayerNorms.
    dropout: after the embedding and on each residual branch.
    attention: which implementation (see `bigjax.models.attention.attend`).
    remat, scan_layers: levers on memory and compile time (see `bigjax.models.blocks`).
    """

    vocab: int
    layers: int
    width: int
    heads: int
    context: int
    mlp_width: int | None = None
    activation: str = "gelu_tanh"
    norm_epsilon: float = 1e-5
    dropout: float = 0.0
    attention: str = "auto"
    remat: str = "none"
    scan_layers: bool = False
    head_width: int | None = None

    MESH_AXES = ("sequence",)
    # Megatron's split (Shoeybi et al. 2019, section 3): heads and the MLP's hidden units over `tensor`.
    TENSOR_RULES = ((".*", "logical"),)
    LOGICAL_RULES = (("vocab", "tensor"), ("heads", "tensor"), ("mlp", "tensor"))

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
          train: whether dropout acts.
          cache: slots of the key-value cache; 0: none. See `bigjax.models.generate`.

        Returns:
          float32 (B, T, V); with a cache (B, 1, V), after the last token of each row.
        """
        T = tokens_BT.shape[1]
        check_context(self.context, max(T, cache))
        form = self._form()
        embedding_VD = table(self, "embedding", self.vocab, "vocab")
        positions_CD = table(self, "positions", self.context, "position")
        where = stand(self, T, segments_BT, cache)
        x_BTD = positions_CD[:T] if where.segments is None else positions_CD[where.at]
        x_BTD = embedding_VD[tokens_BT] + x_BTD
        x_BTD = nn.Dropout(self.dropout, deterministic=not train)(x_BTD)
        x_BTD = blocks(self, form, x_BTD, where, train=train, cache=cache)
        if cache:
            x_BTD = last_token(x_BTD, segments_BT)
        return unembed(layer_norm("norm", self.norm_epsilon)(x_BTD), embedding_VD)

    def _form(self) -> Form:
        return form_of(self, self.head_width, depth=self.layers, implementation=self.attention)

    def prunable(self) -> dict[str, list[Units]]:
        """Heads and hidden units of each block."""
        return of_blocks(self._form(), [f"block_{i}" for i in range(self.layers)])

    def flops(self, params: Any, tokens_BT: Any, *_: Any) -> dict[str, float]:
        """FLOPs of forward and backward by formula (see `flops_by_formula`), of inputs of these shapes."""
        B, T = tokens_BT.shape
        form = self._form()
        attended = self.layers * form.heads * form.head_width * B * T * T
        return flops_by_formula([(size(params, "positions"), B * T)], attended, causal=True)
