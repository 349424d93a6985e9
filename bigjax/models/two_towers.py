"""CLIP and SigLIP: a picture and a text as two vectors that lie close where the two belong together.

The image tower is a ViT without its head, the text tower the same blocks over tokens. Shapes are in the
names: B pairs, T length, D width of a tower, E width of the embeddings.

Parameters: image_tower (a ViT's), text_tower (embedding, positions, block_0, block_1, ..., norm), image_projection,
text_projection, logit_scale; of SigLIP no image_projection, and logit_bias.
"""

from __future__ import annotations

import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from bigjax.core.errors import UserError
from bigjax.models.attention import positions
from bigjax.models.blocks import Tower, check_context, dense, last_token, table
from bigjax.models.common import choose, of_length_one
from bigjax.models.transformer import (
    Where,
    blocks,
    flops_by_formula,
    form_of,
    norm,
    size,
)
from bigjax.models.vit import ViT

FORMS = ("clip", "siglip")


class TwoTowers(nn.Module):
    """Radford et al. 2021, "CLIP"; or, by `form`, Zhai et al. 2023, "SigLIP".

    form: "clip": the image tower has a cls token and norms before and after its blocks; the text tower is
        causal and read at a text's last token. "siglip": the patches are pooled by attention; the text
        tower sees both ways and is read at the last place of a row, padding like any other token.
    image, patch: side of an image, and of a patch, in pixels.
    image_layers, image_width, image_heads, image_mlp_width: of the image tower; the last default 4 D.
    vocab, context, text_layers, text_width, text_heads, text_mlp_width: of the text tower.
    embedding: E; of SigLIP the image tower's width.
    activation, norm_epsilon: of both towers' blocks.
    dropout: as in `bigjax.models.vit.ViT`, of both.
    remat, scan_layers: levers on memory and compile time (see `bigjax.models.blocks`).
    """

    image: int
    patch: int
    image_layers: int
    image_width: int
    image_heads: int
    vocab: int
    context: int
    text_layers: int
    text_width: int
    text_heads: int
    embedding: int
    form: str = "clip"
    image_mlp_width: int | None = None
    text_mlp_width: int | None = None
    activation: str = "quick_gelu"
    norm_epsilon: float = 1e-5
    dropout: float = 0.0
    remat: str = "none"
    scan_layers: bool = False

    # Megatron's split (Shoeybi et al. 2019, section 3): heads and the MLP's hidden units over `tensor`.
    TENSOR_RULES = ((".*", "logical"),)
    LOGICAL_RULES = (("vocab", "tensor"), ("heads", "tensor"), ("mlp", "tensor"))

    def setup(self):
        clip = choose("model.form", self.form, FORMS) == "clip"
        if not clip and self.embedding != self.image_width:
            raise UserError(
                f"model.embedding: a SigLIP's is its image_width, {self.image_width}, not {self.embedding}"
            )
        both = dict(
            activation=self.activation,
            norm_epsilon=self.norm_epsilon,
            dropout=self.dropout,
            remat=self.remat,
            scan_layers=self.scan_layers,
        )
        self.image_tower = ViT(
            outputs=None,
            image=self.image,
            patch=self.patch,
            layers=self.image_layers,
            width=self.image_width,
            heads=self.image_heads,
            mlp_width=self.image_mlp_width,
            pool="cls" if clip else "map",
            pre_norm=clip,
            **both,
        )
        self.text_tower = TextTower(
            vocab=self.vocab,
            context=self.context,
            layers=self.text_layers,
            width=self.text_width,
            heads=self.text_heads,
            mlp_width=self.text_mlp_width,
            causal=clip,
            **both,
        )
        if clip:
            self.image_projection = dense(None, self.embedding, "embed", "pooled", bias=False)
        self.text_projection = dense(None, self.embedding, "embed", "pooled", bias=not clip)
        # Section 2.5 of CLIP; section 3.2 of SigLIP.
        scale = math.log(1 / 0.07) if clip else math.log(10)
        self.logit_scale = self.param("logit_scale", nn.initializers.constant(scale), ())
        if not clip:
            self.logit_bias = self.param("logit_bias", nn.initializers.constant(-10.0), ())

    def __call__(
        self,
        x: jax.Array,
        tokens_BT: jax.Array,
        segments_BT: jax.Array | None = None,
        *,
        train: bool,
    ) -> dict[str, jax.Array]:
        """x (B, image, image, channels); tokens and segments (0 = padding) int (B, T), one text a row.

        Returns "image" and "text" (B, E), of length 1, and "logits" float32 (B, B): of image i (row) and
        text j. Pictures and texts may differ in number.
        """
        image_BE = self.embed_images(x, train=train)
        text_BE = self.embed_texts(tokens_BT, segments_BT, train=train)
        scale = jnp.exp(self.logit_scale.astype(jnp.float32))
        logits_BB = scale * jnp.einsum("IE,JE->IJ", image_BE, text_BE, precision="highest")
        if self.form == "siglip":
            logits_BB = logits_BB + self.logit_bias.astype(jnp.float32)
        return {"image": image_BE, "text": text_BE, "logits": logits_BB}

    def embed_images(self, x: jax.Array, *, train: bool = False) -> jax.Array:
        """Float32 (B, E), of length 1."""
        x_BD = self.image_tower(x, train=train)
        return of_length_one(self.image_projection(x_BD) if self.form == "clip" else x_BD)

    def embed_texts(
        self, tokens_BT: jax.Array, segments_BT: jax.Array | None = None, *, train: bool = False
    ) -> jax.Array:
        """Float32 (B, E), of length 1."""
        if self.form == "siglip":
            segments_BT = None
        return of_length_one(
            self.text_projection(self.text_tower(tokens_BT, segments_BT, train=train))
        )

    def flops(self, params: Any, x: Any, tokens_BT: Any, *_: Any) -> dict[str, float]:
        """FLOPs of forward and backward by formula (see `flops_by_formula`), of inputs of these shapes."""
        (B, T), P = tokens_BT.shape, (self.image // self.patch) ** 2 + (self.form == "clip")
        image, text = params["image_tower"], params["text_tower"]
        multiplied = [
            (size(image, "positions"), x.shape[0] * P),
            (size(text, "embedding", "positions"), B * T),
            (size(params, "image_tower", "text_tower"), B),
        ]
        of_images = self.image_layers * self.image_width * x.shape[0] * P * P
        return flops_by_formula(
            multiplied, of_images + self.text_layers * self.text_width * B * T * T
        )


class TextTower(Tower):
    """Tokens and learned positions -> blocks -> norm -> the last token, (B, D)."""

    vocab: int
    context: int
    causal: bool

    @nn.compact
    def __call__(
        self, tokens_BT: jax.Array, segments_BT: jax.Array | None, *, train: bool
    ) -> jax.Array:
        T = tokens_BT.shape[1]
        check_context(self.context, T)
        form = form_of(self, causal=self.causal)
        embedding_VD = table(self, "embedding", self.vocab, "vocab")
        positions_CD = table(self, "positions", self.context, "position")
        at = jnp.arange(T) if segments_BT is None else positions(segments_BT)
        x_BTD = embedding_VD[tokens_BT] + positions_CD[at]
        x_BTD = nn.Dropout(self.dropout, deterministic=not train)(x_BTD)
        x_BTD = blocks(
            self, form, x_BTD, Where(segments=segments_BT, keys=segments_BT), train=train
        )
        last_B1D = x_BTD[:, -1:] if segments_BT is None else last_token(x_BTD, segments_BT)
        return norm(form, "norm")(last_B1D)[:, 0]
