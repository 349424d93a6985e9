"""Numbers that several tasks report: additive counts on the device, scores from them on the host.

The device side (jax.numpy) must stay a plain sum over examples; the host side works in float64.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from bigjax.core.errors import UserError, did_you_mean
from bigjax.core.losses import hide_masked

CALIBRATION_BINS = 15


# Of the metrics that `summarize` gives, by their first letters: "top_5", "f1_macro", "rouge1".
MORE_IS_BETTER = ("accuracy", "label_accuracy", "top_", "precision", "recall", "f1", "roc_auc")
MORE_IS_BETTER += ("bleu", "rouge", "r2", "spearman", "value", "return")
LESS_IS_BETTER = ("loss", "errors", "mse", "rmse", "mae", "perplexity", "bits_per_", "ece")


def mode(name: str) -> Literal["max", "min"] | None:
    """Whether more or less of one of bigjax's own metrics is better; None of any other."""
    if name.startswith(MORE_IS_BETTER):
        return "max"
    return "min" if name.startswith(LESS_IS_BETTER) else None


def width(source: Any, key: str) -> int | None:
    """Numbers in an example's `key`, such as its targets; None if the source has no such feature."""
    return math.prod(source.features[key][0]) if key in source.features else None


def field(batch: Mapping[str, jax.Array], key: str, of: str) -> jax.Array:
    """batch[key], or a UserError that names the setting `of` and what the batch holds."""
    if key not in batch:
        hint = did_you_mean(key, batch)
        raise UserError(f"{of}: the batch holds no '{key}'{hint}; it holds {', '.join(batch)}")
    return batch[key]


def inputs(
    batch: Mapping[str, jax.Array], keys: str | Sequence[str | None]
) -> tuple[jax.Array | None, ...]:
    """What the model is called with: the batch's entry, or entries, that `task.input` names.

    None among the names is None to the model: an input that it can do without.
    """
    keys = (keys,) if isinstance(keys, str) else keys
    return tuple(None if key is None else field(batch, key, "task.input") for key in keys)


def calibration(confidence: jax.Array, correct: jax.Array, mask: jax.Array) -> dict:
    """Counts per bin of confidence, ((m - 1) / M, m / M] for m = 1..M; inputs (B,), outputs (M,)."""
    place = jnp.ceil(hide_masked(confidence, mask) * CALIBRATION_BINS).astype(jnp.int32) - 1
    place = jnp.clip(place, 0, CALIBRATION_BINS - 1)
    inside = (place[:, None] == jnp.arange(CALIBRATION_BINS)) & (mask > 0)[:, None]
    return {
        "count": jnp.sum(inside, axis=0, dtype=jnp.int32),
        "correct": jnp.sum(inside & correct[:, None], axis=0, dtype=jnp.int32),
        "confidence": jnp.sum(jnp.where(inside, confidence[:, None], 0.0), axis=0),
    }


def calibration_error(bins: Mapping[str, np.ndarray]) -> float:
    """Expected calibration error, sum_m |B_m| / n |acc(B_m) - conf(B_m)| (Guo et al. 2017, eq. 3)."""
    gap = np.abs(np.float64(bins["correct"]) - np.float64(bins["confidence"]))
    return float(gap.sum() / bins["count"].sum())


def confusion_matrix(true: jax.Array, predicted: jax.Array, mask: jax.Array, classes: int):
    """int32 (K + 1, K), [true][predicted]; the last row counts the labels outside [0, K), all wrong.

    A product of one-hot rows rather than a scatter: over a sharded batch it is one all-reduce.
    """
    row = jnp.where((true >= 0) & (true < classes), true, classes)
    row = jax.nn.one_hot(row, classes + 1) * (mask > 0)[:, None]
    return jnp.einsum("bi,bj->ij", row, jax.nn.one_hot(predicted, classes)).astype(jnp.int32)


def precision_recall_f1(
    hits: np.ndarray, predicted: np.ndarray, actual: np.ndarray, counted: Any = slice(None)
) -> dict:
    """Scores from counts per class (K,); 0 where the denominator is 0. Macro: mean over those `counted`.

    precision = hits / predicted, recall = hits / actual, F1 = 2 hits / (predicted + actual).
    """
    scores = {}
    for name, above, below in (
        ("precision", hits, predicted),
        ("recall", hits, actual),
        ("f1", 2 * hits, predicted + actual),
    ):
        per_class = np.where(below > 0, above / np.maximum(below, 1), 0.0)
        scores[f"{name}_macro"] = float(per_class[counted].mean())
        scores[f"{name}_per_class"] = per_class.tolist()
    return scores


def confusion_scores(confusion: np.ndarray) -> dict:
    """Accuracy, errors, precision, recall, F1 and the matrix itself (K, K), as plain numbers and lists.

    As scikit-learn's, the means over the classes are over those that are there, true or predicted.

    confusion: (K + 1, K) as `confusion_matrix` counts. Labels that the model has no output for are
        errors, and told of as "labels_outside" where there are any.
    """
    inside, outside = confusion[:-1], int(confusion[-1].sum())
    hits, predicted, actual = np.diag(inside), confusion.sum(axis=0), inside.sum(axis=1)
    return {
        "accuracy": float(hits.sum() / confusion.sum()),
        "errors": float(confusion.sum() - hits.sum()),
        **({"labels_outside": outside} if outside else {}),
        **precision_recall_f1(hits, predicted, actual, counted=predicted + actual > 0),
        "confusion_matrix": inside.tolist(),
    }


def two_classes(logits):
    """Logits (...) of sigmoids as logits (..., 2) of softmaxes with the same probabilities."""
    return jnp.stack([jnp.zeros_like(logits), logits], axis=-1)


def mean(pair) -> float:
    """sum / weight of a pair, in float64."""
    return float(np.float64(pair[0]) / np.float64(pair[1]))


def roc_auc(label: np.ndarray, score: np.ndarray) -> float:
    """Area under the ROC curve of 0/1 labels (N,); NaN if only one of the two occurs or a score is not finite."""
    if len(np.unique(label)) < 2 or not np.isfinite(score).all():
        return float("nan")
    from sklearn.metrics import roc_auc_score  # takes a second to import, and only here

    return float(roc_auc_score(label, score))
