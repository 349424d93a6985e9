"""Pure losses: each returns the pair (sum over examples, weight), divided once, at the very end.

So microbatches, padding, ragged last batches and any mesh give the same number. Everything is
computed in float32, whatever the dtype of the logits. Nothing here knows of models, devices or
configs, and no label is looked up in a batch: that is the tasks' work.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

Pair = tuple[jax.Array, jax.Array]
"""(sum, weight), two float32 scalars; the mean is sum / weight."""


AUXILIARY = "auxiliary"  # the collection in which a model sows losses of its own


class Auxiliary(NamedTuple):
    """A loss of a layer's own, such as the balance of its experts: joins the loss by `with_auxiliary`.

    sums, weights: (B,), what it adds up to over each row of the batch, and how much that weighs.
    factor: the sum counts so often in the loss; sum / weight is shown. 0: it is shown alone.
    """

    sums: jax.Array
    weights: jax.Array
    factor: jax.Array | float


class Loss(NamedTuple):
    """What a method's `loss` returns.

    sum, weight: the loss as a pair; the gradient is taken of `sum` and divided by `weight`.
    metrics: name -> pair, shown during training.
    collections: the model's mutable collections after this step, such as {"batch_stats": ...}.
    memory: the method's memory after this step; None: it is as it was.
    """

    sum: jax.Array
    weight: jax.Array
    metrics: dict[str, Pair]
    collections: dict
    memory: Any = None


def with_auxiliary(loss: Loss, mask: jax.Array) -> Loss:
    """The loss with what the model's layers sowed into `AUXILIARY`, over rows of `mask` (B,) above 0.

    The sum grows by factor x sum of each; its weight stays, so that all is divided once, by that of
    the task: microbatches and devices add up to the same number. Each is shown by its name, the mean
    over the layers that have one, and the loss without any as "task_loss".
    """
    collections = dict(loss.collections)
    sown = collections.pop(AUXILIARY, {})
    total, metrics = loss.sum, dict(loss.metrics)
    if sown:
        metrics["task_loss"] = (loss.sum, loss.weight)
    leaves = jax.tree_util.tree_leaves_with_path(sown, is_leaf=lambda x: isinstance(x, Auxiliary))
    for path, (sums, weights, factor) in leaves:
        name = path[-1].key
        rows = (hide_masked(x.reshape(-1, len(mask)).T, mask) for x in (sums, weights))
        own = tuple(jnp.sum(x) for x in rows)
        total = total + jnp.max(factor) * own[0]
        before = metrics.get(name, (0.0, 0.0))
        metrics[name] = (before[0] + own[0], before[1] + own[1])
    return loss._replace(sum=total, metrics=metrics, collections=collections)


def hide_masked(values: jax.Array, mask: jax.Array) -> jax.Array:
    """Returns float32 `values` (B, ...) with the rows whose `mask` (B,) is 0 set to 0.

    Applied before any arithmetic: a product with the mask afterwards would keep the NaN and
    infinities of padding rows, in the value and in the gradient.
    """
    real = (mask > 0).reshape(mask.shape + (1,) * (values.ndim - mask.ndim))
    return jnp.where(real, values.astype(jnp.float32), 0.0)


def is_probability(labels: jax.Array) -> jax.Array:
    """Whether each label lies in [0, 1], but for the rounding of a mixture such as mixup's."""
    return (labels >= -1e-6) & (labels <= 1 + 1e-6)


def masked_sum(values: jax.Array, mask: jax.Array) -> Pair:
    """Returns (sum of mask * values, sum of mask) for `values` and `mask` of the same shape (B,)."""
    if values.shape != mask.shape:
        raise ValueError(f"values have shape {values.shape}, their mask {mask.shape}")
    mask = mask.astype(jnp.float32)
    return jnp.sum(mask * hide_masked(values, mask)), jnp.sum(mask)


def sum_per_unit(values: jax.Array, mask: jax.Array) -> jax.Array:
    """(*U, ...) -> (*U,), the sum over what is one unit of `mask` (*U,)."""
    return jnp.sum(values, axis=tuple(range(mask.ndim, values.ndim)))


def softmax_cross_entropy(
    logits: jax.Array,
    labels: jax.Array,
    mask: jax.Array,
    label_smoothing: float | jax.Array = 0.0,
) -> Pair:
    """Cross-entropy of softmax(logits) against `labels`, in nats.

    loss = -sum_k q_k log p_k with q = (1 - e) y + e / K (label smoothing e: Szegedy et al. 2016,
    "Rethinking the Inception architecture", section 7).

    logits (..., K); labels (...) integers or (..., K) probabilities; mask (...).
    An integer label outside [0, K) in an unmasked row makes the sum NaN, so that it is seen.
    """
    classes = logits.shape[-1]
    log_p = jax.nn.log_softmax(hide_masked(logits, mask))
    if labels.ndim == logits.ndim:
        if labels.shape != logits.shape:
            raise ValueError(f"labels {labels.shape} do not fit logits {logits.shape}")
        of_labels = jnp.sum(hide_masked(labels, mask) * log_p, axis=-1)
    else:
        # A comparison instead of a gather: it also partitions where the classes are sharded.
        chosen = labels[..., None] == jnp.arange(classes)
        of_labels = jnp.sum(jnp.where(chosen, log_p, 0.0), axis=-1)
        of_labels = jnp.where((labels >= 0) & (labels < classes), of_labels, jnp.nan)
    loss = -(1.0 - label_smoothing) * of_labels - label_smoothing * jnp.mean(log_p, axis=-1)
    return masked_sum(loss, mask)


def sigmoid_cross_entropy(logits: jax.Array, labels: jax.Array, mask: jax.Array) -> Pair:
    """Cross-entropy of independent sigmoids, in nats; with several labels, their mean per example.

    loss = max(x, 0) - x y + log(1 + exp(-|x|)): -y log s(x) - (1 - y) log(1 - s(x)) without overflow.

    logits (B,) or (B, K); labels of the same shape, in [0, 1]; mask (B,).
    A label outside [0, 1] in an unmasked row makes the sum NaN, so that it is seen.
    """
    logits, labels = _same_shape(logits, labels, mask)
    labels = jnp.where(is_probability(labels), labels, jnp.nan)
    loss = jax.nn.relu(logits) - logits * labels + jnp.log1p(jnp.exp(-jnp.abs(logits)))
    return masked_sum(_mean_per_example(loss), mask)


def squared_error(predictions: jax.Array, targets: jax.Array, mask: jax.Array) -> Pair:
    """(prediction - target)^2, averaged over the outputs of an example. (B,) or (B, K); mask (B,)."""
    predictions, targets = _same_shape(predictions, targets, mask)
    return masked_sum(_mean_per_example(jnp.square(predictions - targets)), mask)


def absolute_error(predictions: jax.Array, targets: jax.Array, mask: jax.Array) -> Pair:
    """|prediction - target|, averaged over the outputs of an example. (B,) or (B, K); mask (B,)."""
    predictions, targets = _same_shape(predictions, targets, mask)
    return masked_sum(_mean_per_example(jnp.abs(predictions - targets)), mask)


def kl_divergence(
    teacher_logits: jax.Array,
    student_logits: jax.Array,
    mask: jax.Array,
    temperature: float | jax.Array = 1.0,
) -> Pair:
    """KL(softmax(t / T) || softmax(s / T)) in nats, the soft-target term of distillation.

    Hinton, Vinyals & Dean 2015, "Distilling the knowledge in a neural network", section 2. Their
    factor T^2, which keeps the gradient's size when T changes, is left to the caller.

    teacher_logits, student_logits (*U, ..., K); mask (*U,): the distributions of a unit are summed.
    """
    if teacher_logits.shape != student_logits.shape:
        raise ValueError(
            f"teacher {teacher_logits.shape} and student {student_logits.shape} differ"
        )
    log_t = jax.nn.log_softmax(hide_masked(teacher_logits, mask) / temperature)
    log_s = jax.nn.log_softmax(hide_masked(student_logits, mask) / temperature)
    return masked_sum(sum_per_unit(jnp.exp(log_t) * (log_t - log_s), mask), mask)


def scaled_similarity(
    a: jax.Array, b: jax.Array, mask: jax.Array, temperature: float | jax.Array
) -> jax.Array:
    """Logits of InfoNCE, cos(a_i, b_j) / temperature: the cross-entropy against i is the loss.

    van den Oord et al. 2018, "Representation learning with contrastive predictive coding", eq. 4.

    a, b (B, D); mask (B,): a masked b is no one's partner. Returns float32 (B, B).
    """

    def unit(x):
        x = hide_masked(x, mask)
        return x * jax.lax.rsqrt(jnp.maximum(jnp.sum(x * x, axis=-1, keepdims=True), 1e-24))

    cosine = jnp.einsum("id,jd->ij", unit(a), unit(b), precision="highest")
    return jnp.where(mask > 0, cosine / temperature, -1e9)


def _same_shape(outputs: jax.Array, labels: jax.Array, mask: jax.Array):
    """Both in float32 without their masked rows; (B, 1) against (B,) would broadcast to (B, B)."""
    if outputs.shape != labels.shape:
        raise ValueError(f"labels {labels.shape} do not fit outputs {outputs.shape}")
    return hide_masked(outputs, mask), hide_masked(labels, mask)


def _mean_per_example(values: jax.Array) -> jax.Array:
    return jnp.mean(values.reshape(values.shape[0], -1), axis=1)
