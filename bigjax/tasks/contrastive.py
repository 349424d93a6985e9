"""Contrastive sentence embedding: the two texts of a pair lie close, those of other pairs far apart.

Knows nothing of devices.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from bigjax.core.errors import UserError
from bigjax.core.losses import (
    Pair,
    hide_masked,
    masked_sum,
    scaled_similarity,
    softmax_cross_entropy,
)
from bigjax.tasks import scores
from bigjax.tasks.base import Task


@dataclasses.dataclass(frozen=True)
class Contrastive(Task):
    """InfoNCE over the batch: each first text must find its second among all second texts.

    van den Oord et al. 2018, eq. 4; with `b` None the two are one text under two draws of dropout
    (Gao et al. 2021, SimCSE, eq. 4). The model reads both texts of all pairs as one batch of 2 B rows, and
    gives embeddings (2 B, D). The negatives are those of one microbatch: `train.accumulate` and
    `sharding.mode="shard_map"` mean fewer of them.

    a, b: keys of the texts' tokens; their segments are under the same keys with "_segments".
    label: key of a score of how alike the two are; evaluation then gives Spearman's correlation.
    temperature: cosines are divided by it.
    corpus: a text file; `predict` then gives the `nearest` of its lines in place of embeddings.
    """

    a: str = "a"
    b: str | None = "b"
    label: str | None = None
    temperature: float = 0.05
    corpus: str | None = None
    nearest: int = 5

    COMPARES_EXAMPLES = True

    def __post_init__(self):
        if self.temperature <= 0:
            raise UserError(f"task.temperature must be above 0, not {self.temperature}")
        if self.nearest < 1:
            raise UserError(f"task.nearest must be at least 1, not {self.nearest}")

    @property
    def input(self) -> tuple[str, str]:
        return self.a, f"{self.a}_segments"

    def inputs(self, batch: dict) -> tuple:
        """Tokens and segments (2 B, T): first and second text of each pair in turn."""
        first = scores.inputs(batch, self.input)
        second = first
        if self.b is not None:
            second = scores.inputs(batch, (self.b, f"{self.b}_segments"))
        return tuple(_in_turn(x, y) for x, y in zip(first, second, strict=True))

    def loss(self, outputs: jax.Array, batch: dict) -> tuple[Pair, dict[str, Pair]]:
        """The InfoNCE pair (nats, texts), and how many found their partner on this batch."""
        sums = self.statistics(outputs, batch)
        return sums["loss"], {"accuracy": sums["accuracy"]}

    def statistics(self, outputs: jax.Array, batch: dict) -> dict:
        """Sums over the pairs: loss and hits among the texts of the batch."""
        mask = batch["mask"]
        a_BD, b_BD = _pairs(outputs)
        logits_BB = scaled_similarity(a_BD, b_BD, mask, self.temperature)
        own_B = jnp.arange(len(mask))
        return {
            "loss": softmax_cross_entropy(logits_BB, own_B, mask),
            "accuracy": masked_sum(jnp.argmax(logits_BB, axis=-1) == own_B, mask),
        }

    def collect(self, outputs: jax.Array, batch: dict) -> dict:
        """Cosine and given score of each pair."""
        if self.label is None:
            return {}
        a_BD, b_BD = _pairs(hide_masked(outputs, jnp.repeat(batch["mask"], 2)))
        return {
            "cosine": jnp.sum(a_BD * b_BD, axis=-1),
            "label": scores.field(batch, self.label, "task.label"),
        }

    def summarize(self, statistics: dict, collected: dict) -> dict:
        """Loss and accuracy among the texts of a batch; Spearman's correlation where there are scores."""
        result = {
            "loss": scores.mean(statistics["loss"]),
            "accuracy": scores.mean(statistics["accuracy"]),
        }
        if self.label is not None:
            from scipy.stats import spearmanr

            result["spearman"] = float(spearmanr(collected["cosine"], collected["label"])[0])
        return result

    def distributions(self, outputs: jax.Array, batch: dict) -> tuple[jax.Array, jax.Array]:
        """Of each first text over the second texts of the batch: (B, B)."""
        mask = batch["mask"]
        return scaled_similarity(*_pairs(outputs), mask, self.temperature), mask

    def targets(self, outputs: jax.Array, batch: dict) -> jax.Array:
        return jnp.arange(len(batch["mask"]))

    def predict(self, outputs: jax.Array) -> dict:
        """The embedding of each first text, (B, D)."""
        return {"embedding": _pairs(outputs)[0]}

    def present(self, predicted, batch, source, corpus=None) -> dict[str, list]:
        """The embeddings, or the nearest lines of the corpus and their cosines.

        corpus: the lines, and what `predict` gives of them.
        """
        embedding_BD = predicted["embedding"]
        if corpus is None:
            return {"embedding": embedding_BD}
        lines, found = corpus
        cosine_BN = embedding_BD @ found["embedding"].T
        best_BK = np.argsort(-cosine_BN, axis=1, kind="stable")[:, : self.nearest]
        return {
            "nearest": [
                [{"text": lines[i], "cosine": round(float(row[i]), 4)} for i in best]
                for row, best in zip(cosine_BN, best_BK, strict=True)
            ]
        }


def _in_turn(x_BT: jax.Array, y_BT: jax.Array) -> jax.Array:
    """(2 B, T): x_0, y_0, x_1, y_1, ... In turn, so that a pair stays on the device that holds it."""
    return jnp.stack([x_BT, y_BT], axis=1).reshape(-1, x_BT.shape[1])


def _pairs(outputs: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The way back: embeddings (2 B, D) -> (B, D) of first and of second texts."""
    if outputs.ndim != 2:
        raise UserError(
            f"contrastive learning needs one embedding a text, (2 B, D); the model gives {outputs.shape}"
        )
    return outputs[0::2], outputs[1::2]
