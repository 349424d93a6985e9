"""Causal language modelling: at every position, the next token. Pure; knows nothing of devices."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from bigjax.config.signature import bind, parameters
from bigjax.core.errors import UserError
from bigjax.core.losses import Pair
from bigjax.models.blocks import last_token
from bigjax.models.generate import Sampling, generate
from bigjax.tasks import scores, tokens
from bigjax.tasks.base import Task


@dataclasses.dataclass(frozen=True)
class LanguageModel(Task):
    """Cross-entropy of logits (B, T, V) at position t against token t + 1; every token weighs the same.

    input: key of the batch that holds the tokens, int (B, T); or two, of the tokens and their segments
        (0 = padding, 1, 2, ... = which document): no token is predicted from another document.
    token_mask: key that holds, (B, T), 1 for a token to be predicted and 0 for one that is only read
        (a prompt); None: all are predicted but the first of each document.
    bytes: key of how many UTF-8 bytes the predicted tokens of a row stand for, (B,); where the batch
        has it, evaluation gives bits per byte too.
    generate: what `predict` writes after each row: keywords of `bigjax.models.generate.Sampling`, such as
        dict(max_new_tokens=100, temperature=0.7, stop=(2,)). None: it gives the most likely next token.
    """

    MAIN_METRIC: ClassVar[tuple[str, str]] = ("loss", "min")
    TOKENS: ClassVar[tuple[int, ...]] = (0,)

    input: str | Sequence[str] = "tokens"
    token_mask: str | None = None
    bytes: str = "bytes"
    generate: dict[str, Any] | None = None

    def __post_init__(self):
        if self.generate is not None:
            self.sampling  # noqa: B018 (a wrong keyword is told of before anything runs)

    @property
    def sampling(self) -> Sampling:
        keywords = bind("config.task.generate", "generate", parameters(Sampling), self.generate)
        return Sampling(**keywords)

    def loss(self, outputs: jax.Array, batch: dict) -> tuple[Pair, dict[str, Pair]]:
        """The cross-entropy pair (nats, tokens), and the accuracy on this batch."""
        sums = tokens.sums(outputs, *self._labels(outputs, batch))
        return sums.pop("loss"), sums

    def statistics(self, outputs: jax.Array, batch: dict) -> dict:
        """Sums over the predicted tokens: loss and hits; and their bytes, where these are known."""
        sums = tokens.sums(outputs, *self._labels(outputs, batch))
        if self.bytes in batch and self.token_mask is None:
            sums["bytes"] = jnp.sum(batch[self.bytes] * batch["mask"])
        return sums

    def summarize(self, statistics: dict, collected: dict) -> dict:
        """Loss in nats per token, its perplexity exp(loss), bits per token and per byte, accuracy."""
        result = tokens.summary(statistics)
        if statistics.get("bytes", 0) > 0:
            bits = float(statistics["loss"][0]) / math.log(2)
            result["bits_per_byte"] = bits / float(statistics["bytes"])
        return result

    def distributions(self, outputs: jax.Array, batch: dict) -> tuple[jax.Array, jax.Array]:
        return outputs, self._labels(outputs, batch)[1]

    def targets(self, outputs: jax.Array, batch: dict) -> jax.Array:
        return self._labels(outputs, batch)[0]

    @property
    def writes(self) -> bool:
        return self.generate is not None

    def predict(self, outputs: jax.Array) -> dict:
        return {}

    def decode(self, apply: Callable[..., Any], variables: Any, batch: dict) -> dict:
        """What follows each row.

        Returns:
          with `generate`, "written" int32 (B, max_new_tokens), -1 after a row's end; else the most
          likely "token" int32 (B,) and its "probability" (B,).
        """
        tokens_BT, *segments = self.inputs(batch)
        segments_BT = segments[0] if segments else jnp.ones_like(tokens_BT)
        if self.generate is None:
            logits_BTV = apply(variables, tokens_BT, *segments, train=False)
            probabilities_BV = jax.nn.softmax(last_token(logits_BTV, segments_BT)[:, 0])
            return {
                "token": jnp.argmax(probabilities_BV, axis=-1).astype(jnp.int32),
                "probability": jnp.max(probabilities_BV, axis=-1),
            }
        sampling = self.sampling
        # Another batch, other draws.
        key = jax.random.fold_in(jax.random.key(sampling.seed), batch["sample"][0])
        found = generate(apply, variables, tokens_BT, segments_BT, sampling, key)
        real_BL = jnp.arange(sampling.max_new_tokens) < found["length"][:, None]
        return {"written": jnp.where(real_BL, found["tokens"], -1)}

    def check_rewritten(self, features, prompt, stop) -> None:
        keys = (self.input,) if isinstance(self.input, str) else self.input
        length = features.get(keys[0], ((0,),))[0][0]
        if prompt is None or not 0 < prompt < length:
            raise UserError(
                f"prompt: {prompt} must be at least 1 and less than the {length} tokens of a row"
            )
        if stop and len(keys) < 2:
            raise UserError("stop: needs segments in config.task.input")

    def rewritten(self, apply, variables, batch, sampling, prompt, key) -> dict:
        """The first `prompt` tokens of each row (of its first document) and what follows; with a
        `token_mask` what follows alone is predicted. A row that stopped has the first stop token there."""
        tokens_BT, *segments = self.inputs(batch)
        T, new = tokens_BT.shape[1], tokens_BT.shape[1] - prompt
        segments_BT = segments[0] if segments else jnp.ones_like(tokens_BT)
        # A row of padding has a prompt of one token, which counts nowhere.
        own_BP = (segments_BT[:, :prompt] == segments_BT[:, :1]).at[:, 0].set(True)
        prompt_BP = tokens_BT[:, :prompt]
        found = generate(apply, variables, prompt_BP, own_BP, sampling(new), key)
        length_B1, stop = found["length"][:, None], sampling(new).stop
        written_BL = found["tokens"]
        if stop:
            written_BL = jnp.where(jnp.arange(new) == length_B1, stop[0], written_BL)
        real_BL = jnp.arange(new) < length_B1 + bool(stop)
        # The prompt ends where the written text begins: a shorter one is moved there.
        shift_B = prompt - jnp.sum(own_BP, axis=1)
        moved_BP = jax.vmap(jnp.roll)(prompt_BP, shift_B)
        first_BP = jnp.arange(prompt) >= shift_B[:, None]
        names = (self.input,) if isinstance(self.input, str) else tuple(self.input)
        text = {names[0]: jnp.concatenate([moved_BP, written_BL], axis=1).astype(tokens_BT.dtype)}
        if segments:
            kept_BT = jnp.concatenate([first_BP, real_BL], axis=1)
            text[names[1]] = kept_BT.astype(segments_BT.dtype)
        if self.token_mask is not None:
            given = batch[self.token_mask]
            after_BT = jnp.broadcast_to(jnp.arange(T) >= prompt, tokens_BT.shape)
            text[self.token_mask] = after_BT.astype(given.dtype)
        return {**batch, **text}

    def present(self, predicted, batch, source, corpus=None) -> dict[str, Any]:
        """Text in place of ids, where the source has a tokenizer."""
        tokenizer = getattr(source, "tokenizer", None)
        if "written" in predicted:
            written = predicted["written"]
            if tokenizer is None:
                return {"tokens": [row[row >= 0].tolist() for row in written]}
            return {"text": [tokenizer.decode(row[row >= 0]) for row in written]}
        shown = {name: predicted[name] for name in ("token", "probability")}
        if tokenizer is not None:
            shown["text"] = [tokenizer.decode([token]) for token in predicted["token"]]
        return shown

    def _labels(self, outputs: jax.Array, batch: dict) -> tuple[jax.Array, jax.Array]:
        """The token that follows each position, (B, T), and which of them count, float32 (B, T)."""
        tokens_BT, *segments = self.inputs(batch)
        if outputs.shape[:-1] != tokens_BT.shape:
            raise UserError(
                f"language modelling needs logits (B, T, V) for tokens {tokens_BT.shape}; "
                f"the model gives {outputs.shape}"
            )
        # Rolled, not cut: T keeps its length, which a mesh axis may have to divide.
        mask_BT = jnp.ones(tokens_BT.shape, jnp.float32)
        if segments:
            (segments_BT,) = segments
            mask_BT = (segments_BT > 0) & (segments_BT == jnp.roll(segments_BT, -1, axis=1))
        if self.token_mask is not None:
            given_BT = scores.field(batch, self.token_mask, "task.token_mask")
            mask_BT = mask_BT * jnp.roll(given_BT.astype(jnp.float32), -1, axis=1)
        mask_BT = mask_BT.astype(jnp.float32).at[:, -1].set(0.0) * batch["mask"][:, None]
        return jnp.roll(tokens_BT, -1, axis=1), mask_BT
