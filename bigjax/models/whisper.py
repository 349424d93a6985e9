"""Whisper: an encoder that listens and a decoder that writes what was said.

Both are stacks of the one `Block`; the decoder's blocks also attend to what the encoder heard. Shapes are in
the names: B batch, S frames of the encoder (two of the spectrogram's each), M mel bands, T length of a
text, D width, V vocabulary.

Parameters: encoder (conv_0, conv_1, block_0, ..., norm), decoder (embedding, positions, block_0, ...,
norm); with scan_layers: blocks. The logits are products with the embedding.
"""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from bigjax.core.errors import UserError
from bigjax.models.blocks import Tower, check_context, last_token, layer_norm, named, table, unembed
from bigjax.models.transformer import (
    ACTIVATIONS,
    Where,
    blocks,
    flops_by_formula,
    form_of,
    size,
    stand,
)

# Radford et al. 2022, table 1.
PRESETS = {
    "tiny": dict(layers=4, width=384, heads=6),
    "base": dict(layers=6, width=512, heads=8),
    "small": dict(layers=12, width=768, heads=12),
}
BIASES = ("qv", "out", "mlp")


class Whisper(nn.Module):
    """Radford et al. 2022, "Robust speech recognition via large-scale weak supervision", section 2.2.

    vocab: number of tokens.
    layers, width, heads: blocks of the encoder, their width D, and the heads that share it evenly.
    decoder_layers: default as many as the encoder's.
    mlp_width, decoder_mlp_width: default 4 D.
    mel: M, bands of the spectrogram. frames: S; a spectrogram has twice as many (3000 of Whisper's own).
    context: the longest text it can write.
    activation: of both (see `bigjax.models.transformer.ACTIVATIONS`).
    dropout: after the positions and on each residual branch.
    remat, scan_layers: levers on memory and compile time (see `bigjax.models.blocks`).
    """

    vocab: int
    layers: int
    width: int
    heads: int
    decoder_layers: int | None = None
    decoder_heads: int | None = None
    mlp_width: int | None = None
    decoder_mlp_width: int | None = None
    mel: int = 80
    frames: int = 1500
    context: int = 448
    activation: str = "gelu"
    norm_epsilon: float = 1e-5
    dropout: float = 0.0
    remat: str = "none"
    scan_layers: bool = False

    # Megatron's split (Shoeybi et al. 2019, section 3): heads and the MLP's hidden units over `tensor`.
    TENSOR_RULES = ((".*", "logical"),)
    LOGICAL_RULES = (("vocab", "tensor"), ("heads", "tensor"), ("mlp", "tensor"))

    def setup(self):
        both = dict(
            width=self.width,
            activation=self.activation,
            norm_epsilon=self.norm_epsilon,
            dropout=self.dropout,
            remat=self.remat,
            scan_layers=self.scan_layers,
        )
        self.encoder = Encoder(
            mel=self.mel,
            frames=self.frames,
            layers=self.layers,
            heads=self.heads,
            mlp_width=self.mlp_width,
            **both,
        )
        self.decoder = Decoder(
            vocab=self.vocab,
            context=self.context,
            layers=self.decoder_layers or self.layers,
            heads=self.decoder_heads or self.heads,
            mlp_width=self.decoder_mlp_width,
            **both,
        )

    def __call__(
        self,
        sound_BFM: jax.Array,
        segments: jax.Array | None,
        target_BT: jax.Array,
        target_segments_BT: jax.Array | None = None,
        *,
        train: bool,
    ) -> jax.Array:
        """Float32 logits (B, T, V) of the token after each one of the target.

        sound: log-mel spectrograms (B, 2 S, M), float; segments: None, silence is heard as well. target and
        its segments (0 = padding) int (B, T), one text a row.
        """
        memory_BSD = self.encode(sound_BFM, segments, train=train)
        return self.decode(memory_BSD, segments, target_BT, target_segments_BT, train=train)

    def encode(self, sound_BFM: jax.Array, segments: Any = None, *, train: bool) -> jax.Array:
        """What the decoder reads, (B, S, D)."""
        return self.encoder(sound_BFM, train=train)

    def decode(
        self,
        memory_BSD: jax.Array,
        segments: Any,
        target_BT: jax.Array,
        target_segments_BT: jax.Array | None = None,
        *,
        train: bool,
        cache: int = 0,
    ) -> jax.Array:
        """As `__call__`, after `encode`; with a cache of so many slots (see `bigjax.models.generate`) logits
        (B, 1, V) after the last token of each row."""
        return self.decoder(target_BT, target_segments_BT, memory_BSD, train=train, cache=cache)

    def flops(self, params: Any, sound_BFM: Any, _: Any, target_BT: Any, *__: Any) -> dict:
        """FLOPs of forward and backward by formula (see `flops_by_formula`), of inputs of these shapes."""
        (B, T), S = target_BT.shape, self.frames
        convs = ("conv_0", "conv_1")
        multiplied = [
            (size({name: params["encoder"][name]["kernel"] for name in convs[:1]}), 2 * B * S),
            (size(params["encoder"], convs[0]), B * S),
            (size(params["decoder"], "positions"), B * T),
        ]
        decoder = (self.decoder_layers or self.layers) * (T * T + T * S)
        return flops_by_formula(multiplied, self.width * B * (self.layers * S * S + decoder))


class Encoder(Tower):
    """Two convolutions over time, the second of stride 2; positions, blocks, norm."""

    mel: int
    frames: int

    @nn.compact
    def __call__(self, sound_BFM: jax.Array, *, train: bool) -> jax.Array:
        if sound_BFM.shape[1:] != (2 * self.frames, self.mel):
            raise UserError(
                f"model.frames, model.mel: spectrograms are ({2 * self.frames}, {self.mel}), those of the "
                f"data {sound_BFM.shape[1:]}"
            )
        x_BSD, act = sound_BFM, ACTIVATIONS["gelu"]  # whatever the blocks have
        for i, names in enumerate((("window", "mel", "embed"), ("window", "pooled", "embed"))):
            conv = nn.Conv(
                self.width,
                (3,),
                strides=1 + i,
                padding=1,
                kernel_init=named(nn.initializers.lecun_normal(), *names),
                bias_init=named(nn.initializers.zeros, "embed"),
                name=f"conv_{i}",
            )
            x_BSD = act(conv(x_BSD))
        x_BSD = x_BSD + jnp.asarray(sinusoids(self.frames, self.width), x_BSD.dtype)
        x_BSD = nn.Dropout(self.dropout, deterministic=not train)(x_BSD)
        form = form_of(self, causal=False, biases=BIASES)
        x_BSD = blocks(self, form, x_BSD, Where(), train=train)
        return layer_norm("norm", self.norm_epsilon)(x_BSD)


class Decoder(Tower):
    """Tokens and learned positions, blocks that also attend to the memory, norm, logits."""

    vocab: int
    context: int

    @nn.compact
    def __call__(
        self,
        tokens_BT: jax.Array,
        segments_BT: jax.Array | None,
        memory_BSD: jax.Array,
        *,
        train: bool,
        cache: int = 0,
    ) -> jax.Array:
        T = tokens_BT.shape[1]
        check_context(self.context, max(T, cache))
        embedding_VD = table(self, "embedding", self.vocab, "vocab")
        positions_CD = table(self, "positions", self.context, "position")
        where = stand(self, T, segments_BT, cache)
        x_BTD = embedding_VD[tokens_BT] + positions_CD[where.at]
        x_BTD = nn.Dropout(self.dropout, deterministic=not train)(x_BTD)
        form = form_of(self, biases=BIASES, reads_memory=True)
        where = where._replace(memory=memory_BSD)
        x_BTD = blocks(self, form, x_BTD, where, train=train, cache=cache)
        if cache:
            x_BTD = last_token(x_BTD, segments_BT)
        return unembed(layer_norm("norm", self.norm_epsilon)(x_BTD), embedding_VD)


def sinusoids(length: int, width: int) -> np.ndarray:
    """Positions (length, width), float32: sines, then cosines, of place * 10000^(-i / (n - 1)), i < n = width / 2.

    As published; Vaswani et al. 2017 (section 3.5) divide by n. UserError where the width is odd or below 4.
    """
    if width % 2 or width < 4:
        raise UserError(f"model.width: {width} must be even, and at least 4")
    frequency = np.exp(-np.log(10000.0) / (width // 2 - 1) * np.arange(width // 2))
    angle = np.arange(length)[:, None] * frequency
    return np.concatenate([np.sin(angle), np.cos(angle)], axis=1).astype(np.float32)
