"""Sequence to sequence: a text in, a text out (translation, summaries). Knows nothing of devices."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from bigjax.core.errors import UserError
from bigjax.core.losses import Pair, softmax_cross_entropy
from bigjax.models.common import choose
from bigjax.models.generate import Sampling, decode
from bigjax.tasks import scores, tokens
from bigjax.tasks.base import Task


@dataclasses.dataclass(frozen=True)
class Seq2Seq(Task):
    """Cross-entropy of logits (B, T, V) at each target token against the next; all weigh the same.

    input: keys of the source, its segments (None: it has none, as of a spectrogram), the target and its
        segments; a target begins with a start token and ends with an end token.
    given: tokens that a target begins with and that are not learned or written; more than the start token
        where the data puts a prompt before its texts.
    scores: what evaluation compares written texts by: "bleu" (Papineni et al. 2002, as sacrebleu),
        "rouge" (Lin 2004, F1 of ROUGE-1, -2 and -L). (): evaluation writes no texts.
    label_smoothing: mass spread evenly over the vocabulary in the training loss; evaluation reports
        the plain cross-entropy.
    """

    MAIN_METRIC: ClassVar[tuple[str, str]] = ("loss", "min")
    TOKENS: ClassVar[tuple[int, ...]] = (0, 2)

    input: Sequence[str | None] = ("source", "source_segments", "target", "target_segments")
    given: int = 1
    scores: Sequence[str] = ("bleu",)
    label_smoothing: float = 0.0

    def __post_init__(self):
        if self.given < 1:
            raise UserError(f"task.given: {self.given} must be at least 1, the start token")
        for name in self.scores:
            choose("task.scores", name, tuple(TEXT_SCORES))

    @property
    def decodes(self) -> bool:
        return bool(self.scores)

    @property
    def writes(self) -> bool:
        return True

    def loss(self, outputs: jax.Array, batch: dict) -> tuple[Pair, dict[str, Pair]]:
        """The cross-entropy pair (nats, tokens), and the accuracy on this batch."""
        labels_BT, mask_BT = self._labels(batch)
        sums = tokens.sums(outputs, labels_BT, mask_BT)
        pair = softmax_cross_entropy(outputs, labels_BT, mask_BT, self.label_smoothing)
        return pair, {"accuracy": sums["accuracy"]}

    def statistics(self, outputs: jax.Array, batch: dict) -> dict:
        """Sums over the target's tokens: loss and hits."""
        return tokens.sums(outputs, *self._labels(batch))

    def collect(self, outputs: jax.Array, batch: dict) -> dict:
        """The target of each row, -1 where there is none."""
        if not self.decodes:
            return {}
        _, _, target_BT, segments_BT = self.inputs(batch)
        return {"reference": jnp.where(segments_BT > 0, target_BT, -1)}

    def decode(self, apply: Callable[..., Any], variables: Any, batch: dict) -> dict:
        """The most likely next token, again and again: ids (B, T - given), -1 after a row's end."""
        end = self._end(batch)
        written = self._written(
            apply, variables, batch, lambda n: Sampling(n, stop=(end,)), jax.random.key(0)
        )
        real = jnp.arange(written["tokens"].shape[1]) < written["length"][:, None]
        return {"written": jnp.where(real, written["tokens"], -1)}

    def rewritten(self, apply, variables, batch, sampling, prompt, key) -> dict:
        """Each source with the target that the model writes: start, text, and the data's end token."""
        end, (_, _, target_BT, segments_BT) = self._end(batch), self.inputs(batch)

        def stopping(length: int) -> Sampling:
            return dataclasses.replace(sampling(length), stop=(end,))

        written, T = self._written(apply, variables, batch, stopping, key), target_BT.shape[1]
        place_T, length_B1 = jnp.arange(T), written["length"][:, None]
        text_BT = jnp.concatenate([target_BT[:, : self.given], written["tokens"]], axis=1)
        text_BT = jnp.where(place_T == length_B1 + self.given, end, text_BT)
        _, _, target, segments = self.input
        real_BT = place_T <= length_B1 + self.given
        return {
            **batch,
            target: jnp.where(real_BT, text_BT, 0).astype(target_BT.dtype),
            segments: real_BT.astype(segments_BT.dtype),
        }

    def check_rewritten(self, features, prompt, stop) -> None:
        if prompt is not None or stop:
            raise UserError(
                "prompt: a target follows its source and ends as the data's do; leave out prompt and stop"
            )

    def _end(self, batch: dict) -> jax.Array:
        """Which token ends a target, as the first row shows."""
        _, _, target_BT, segments_BT = self.inputs(batch)
        return target_BT[0, jnp.sum(segments_BT[0] > 0) - 1]

    def _written(self, apply, variables, batch, sampling, key) -> dict:
        """What `models.generate.decode` gives for each source."""
        source_BS, source_segments_BS, target_BT, _ = self.inputs(batch)
        memory_BSD = apply(variables, source_BS, source_segments_BS, train=False, method="encode")
        T = target_BT.shape[1]

        def enter(cache, tokens_BT):
            logits_B1V, cache = apply(
                {**variables, **cache},
                memory_BSD,
                source_segments_BS,
                tokens_BT,
                jnp.ones_like(tokens_BT),
                train=False,
                cache=T,
                method="decode",
                mutable=["cache"],
            )
            return logits_B1V[:, 0], cache

        def step(cache, token_B):
            return enter(cache, token_B[:, None])

        logits_BV, cache = enter({}, target_BT[:, : self.given])
        return decode(step, cache, logits_BV, sampling(T - self.given), key)

    def present(self, predicted, batch, source, corpus=None) -> dict[str, list]:
        """Texts in place of ids, where the source has a tokenizer; else the ids."""
        tokenizer = getattr(source, "tokenizer", None)
        read = tokenizer.decode if tokenizer else np.ndarray.tolist
        names = {"written": "text" if tokenizer else "tokens", "reference": "reference"}
        return {
            names[key]: [read(row[row >= 0]) for row in column]
            for key, column in predicted.items()
            if key in names
        }

    def summarize(self, statistics: dict, collected: dict) -> dict:
        """Loss in nats per token, its perplexity exp(loss), accuracy; BLEU (0 to 100), ROUGE (0 to 1)."""
        loss = scores.mean(statistics["loss"])
        result = {
            "loss": loss,
            "perplexity": tokens.perplexity(loss),
            "accuracy": scores.mean(statistics["accuracy"]),
        }
        for name in self.scores:
            result.update(TEXT_SCORES[name](collected["text"], collected["reference"]))
        return result

    def distributions(self, outputs: jax.Array, batch: dict) -> tuple[jax.Array, jax.Array]:
        return outputs, self._labels(batch)[1]

    def targets(self, outputs: jax.Array, batch: dict) -> jax.Array:
        return self._labels(batch)[0]

    def predict(self, outputs: jax.Array) -> dict:
        return {}

    def _labels(self, batch: dict) -> tuple[jax.Array, jax.Array]:
        """The token after each one of the target, (B, T), and which of them count, float32 (B, T)."""
        _, _, target_BT, segments_BT = self.inputs(batch)
        # Rolled, not cut: T keeps its length, which a mesh axis may have to divide.
        same_BT = (segments_BT > 0) & (segments_BT == jnp.roll(segments_BT, -1, axis=1))
        mask_BT = same_BT.astype(jnp.float32).at[:, -1].set(0.0).at[:, : self.given - 1].set(0.0)
        mask_BT = mask_BT * batch["mask"][:, None]
        return jnp.roll(target_BT, -1, axis=1), mask_BT


def bleu(texts: list[str], references: list[str]) -> dict[str, float]:
    """Corpus BLEU, 0 to 100 (Papineni et al. 2002; Post 2018)."""
    import sacrebleu

    return {"bleu": float(sacrebleu.corpus_bleu(texts, [references]).score)}


def rouge(texts: list[str], references: list[str]) -> dict[str, float]:
    """The mean F1 of ROUGE-1, ROUGE-2 and ROUGE-L, 0 to 1 (Lin 2004)."""
    from rouge_score.rouge_scorer import RougeScorer

    names = ("rouge1", "rouge2", "rougeL")
    scorer = RougeScorer(names)
    found = [scorer.score(there, here) for here, there in zip(texts, references, strict=True)]
    return {name: float(np.mean([one[name].fmeasure for one in found])) for name in names}


TEXT_SCORES = {"bleu": bleu, "rouge": rouge}
