"""Pictures and the texts that belong to them: each lies close to its own, far from the batch's others. Pure."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from bigjax.core.errors import UserError
from bigjax.core.losses import Pair, masked_sum, softmax_cross_entropy
from bigjax.tasks import scores
from bigjax.tasks.base import Task

LOSSES = ("softmax", "sigmoid")


@dataclasses.dataclass(frozen=True)
class ImageText(Task):
    """For a model that gives "image", "text" (B, E) and "logits" (B, B), as `two_towers` does.

    kind: "softmax": cross-entropy of each picture over the batch's texts, and of each text over its
        pictures, half and half (Radford et al. 2021, "CLIP", figure 3). "sigmoid": of every picture and
        text by itself whether they are a pair (Zhai et al. 2023, "SigLIP", eq. 1), summed over the texts.
        The others are those of one microbatch, as in `bigjax.tasks.contrastive`.
    image, text, segments: keys of the batch; without segments (None) rows hold no padding.
    """

    kind: str = "softmax"
    image: str = "image"
    text: str = "tokens"
    segments: str | None = "segments"

    COMPARES_EXAMPLES = True

    def __post_init__(self):
        if self.kind not in LOSSES:
            raise UserError(f"task.kind: unknown '{self.kind}'; known: {', '.join(LOSSES)}")

    @property
    def input(self) -> tuple[str | None, ...]:
        return self.image, self.text, self.segments

    def loss(self, outputs: dict, batch: dict) -> tuple[Pair, dict[str, Pair]]:
        """The pair (nats, pairs), and how many pictures and texts found their partner on this batch."""
        sums = self.statistics(outputs, batch)
        return sums.pop("loss"), sums

    def statistics(self, outputs: dict, batch: dict) -> dict:
        """Sums over the pairs: loss; hits of pictures among the texts, and of texts among the pictures."""
        mask = batch["mask"]
        logits_BB = jnp.where((mask[:, None] > 0) & (mask > 0), outputs["logits"], -1e9)
        own_B = jnp.arange(len(mask))
        if self.kind == "softmax":
            ways = [softmax_cross_entropy(x, own_B, mask) for x in (logits_BB, logits_BB.T)]
            loss = ((ways[0][0] + ways[1][0]) / 2, ways[0][1])
        else:
            sign_BB = 2 * jnp.eye(len(mask)) - 1
            loss = masked_sum(jnp.sum(jax.nn.softplus(-sign_BB * logits_BB), axis=1), mask)
        return {
            "loss": loss,
            "accuracy": masked_sum(jnp.argmax(logits_BB, axis=1) == own_B, mask),
            "text_accuracy": masked_sum(jnp.argmax(logits_BB, axis=0) == own_B, mask),
        }

    def summarize(self, statistics: dict, collected: dict) -> dict:
        """The means, among the pairs of a batch."""
        return {name: scores.mean(pair) for name, pair in statistics.items()}

    def predict(self, outputs: dict) -> dict:
        """The embeddings, (B, E)."""
        return {"image_embedding": outputs["image"], "text_embedding": outputs["text"]}

    def distributions(self, outputs: dict, batch: dict) -> tuple[jax.Array, jax.Array]:
        """Of each picture over the texts of the batch: (B, B)."""
        mask = batch["mask"]
        return jnp.where(mask > 0, outputs["logits"], -1e9), mask

    def targets(self, outputs: dict, batch: dict) -> jax.Array:
        return jnp.arange(len(batch["mask"]))
