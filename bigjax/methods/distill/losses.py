"""Distillation losses as pure functions: (teacher, student, mask, ...) -> (sum over units, weight).

A unit is what the task's loss counts: an example or a token. Logits are (*U, ..., K) for a mask (*U,); the
distributions of one unit are summed, its weight is that of the mask. KL(p || q) with a temperature T is that
of softmax(logits / T), without the factor T^2. Everything is computed in float32. The forward KL is
`bigjax.core.losses.kl_divergence`; the reverse is the same with its arguments exchanged.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from bigjax.core.losses import Pair, hide_masked, masked_sum, sum_per_unit

Scalar = float | jax.Array
EPSILON = 1e-8  # of a deviation: a constant vector is correlated with nothing


def jensen_shannon(
    teacher: jax.Array, student: jax.Array, mask: jax.Array, temperature: Scalar, beta: Scalar
) -> Pair:
    """JSD(p || q) = beta KL(p || m) + (1 - beta) KL(q || m) with m = beta p + (1 - beta) q.

    Agarwal et al. 2024, "On-policy distillation of language models" (GKD), section 2: generalised
    Jensen-Shannon divergence; p the teacher's, q the student's, 0 < beta < 1. Divided by beta it becomes
    the forward KL as beta goes to 0, and by 1 - beta the reverse KL as beta goes to 1.
    """
    log_p, log_q = (
        _log_softmax(teacher, mask, temperature),
        _log_softmax(student, mask, temperature),
    )
    log_m = jnp.logaddexp(jnp.log(beta) + log_p, jnp.log1p(-beta) + log_q)
    parts = beta * jnp.exp(log_p) * (log_p - log_m) + (1 - beta) * jnp.exp(log_q) * (log_q - log_m)
    return masked_sum(sum_per_unit(parts, mask), mask)


def logit_matching(teacher: jax.Array, student: jax.Array, mask: jax.Array) -> Pair:
    """|t - s|^2 / 2 (Ba & Caruana 2014, "Do deep nets really need to be deep?", eq. 1)."""
    t, s = hide_masked(teacher, mask), hide_masked(student, mask)
    return masked_sum(sum_per_unit(jnp.square(t - s), mask) / 2, mask)


def decoupled(
    teacher: jax.Array,
    student: jax.Array,
    labels: jax.Array,
    mask: jax.Array,
    temperature: Scalar,
    alpha: Scalar,
    beta: Scalar,
) -> Pair:
    """alpha TCKD + beta NCKD (Zhao et al. 2022, "Decoupled knowledge distillation", section 3).

    TCKD is the KL between the two chances of the labelled class and of all others together, NCKD that
    among the others; TCKD + (1 - p_label) NCKD, p the teacher's, is the plain KL.

    labels: int (*U, ...). One outside [0, K) in an unmasked unit makes the sum NaN, so that it is seen.
    """
    own = labels[..., None] == jnp.arange(teacher.shape[-1])
    (log_p, p_other), (log_q, q_other) = (
        _label_and_others(_log_softmax(x, mask, temperature), own) for x in (teacher, student)
    )
    target = jnp.sum(jnp.exp(log_p) * (log_p - log_q), axis=-1)
    others = jnp.sum(jnp.exp(p_other) * (p_other - q_other), axis=-1)
    known = (labels >= 0) & (labels < teacher.shape[-1])
    values = jnp.where(known, alpha * target + beta * others, jnp.nan)
    return masked_sum(sum_per_unit(hide_masked(values, mask), mask), mask)


def correlation(
    teacher: jax.Array,
    student: jax.Array,
    mask: jax.Array,
    temperature: Scalar,
    beta: Scalar,
    gamma: Scalar,
) -> Pair:
    """beta L_inter + gamma L_intra, with d(u, v) = 1 - Pearson's correlation of probabilities.

    Huang et al. 2022, "Knowledge distillation from a stronger teacher" (DIST), section 3: L_inter is the
    mean of d over the units, each over the classes; L_intra the mean over the classes, each over the
    units of the batch.
    """
    rows = (mask.size, *teacher.shape[mask.ndim :])
    flat = mask.reshape(-1).astype(jnp.float32)
    p, q = (jnp.exp(_log_softmax(x, mask, temperature)).reshape(rows) for x in (teacher, student))
    inter = _uncorrelated(p, q, jnp.ones_like(p), axis=-1)
    weights = jnp.broadcast_to(flat.reshape(-1, *[1] * (p.ndim - 1)), p.shape)
    intra = _uncorrelated(p, q, weights, axis=0)
    total, weight = masked_sum(sum_per_unit(inter, flat), flat)
    return beta * total + gamma * weight * jnp.sum(jnp.mean(intra, axis=-1)), weight


def hard_labels(teacher: jax.Array, student: jax.Array, mask: jax.Array) -> Pair:
    """-log q of the teacher's likeliest class (Touvron et al. 2021, "DeiT", eq. 3, its second term)."""
    chosen = jnp.argmax(teacher, axis=-1)[..., None] == jnp.arange(teacher.shape[-1])
    log_q = _log_softmax(student, mask, 1.0)
    return masked_sum(-sum_per_unit(jnp.where(chosen, log_q, 0.0), mask), mask)


def centred(
    teacher: jax.Array,
    student: jax.Array,
    mask: jax.Array,
    centre: jax.Array,
    teacher_temperature: Scalar,
    student_temperature: Scalar,
) -> Pair:
    """-sum p log q, p = softmax((t - centre) / T_t), q = softmax(s / T_s) (Caron et al. 2021, eq. 1 and
    section 3.1, "Avoiding collapse"). centre (K,).
    """
    p = jnp.exp(_log_softmax(teacher - centre, mask, teacher_temperature))
    log_q = _log_softmax(student, mask, student_temperature)
    return masked_sum(-sum_per_unit(p * log_q, mask), mask)


def _log_softmax(logits: jax.Array, mask: jax.Array, temperature: Scalar) -> jax.Array:
    return jax.nn.log_softmax(hide_masked(logits, mask) / temperature)


def _label_and_others(log_p: jax.Array, own: jax.Array) -> tuple[jax.Array, jax.Array]:
    """(log of (p_label, 1 - p_label), log of p among the others, 0 at the label), (..., 2) and (..., K).

    The chance of the others is a sum, not 1 - p_label, which would be 0 in float32 for a sure teacher.
    """
    label = jnp.sum(jnp.where(own, log_p, 0.0), axis=-1)
    rest = jax.nn.logsumexp(log_p, axis=-1, where=~own)
    return jnp.stack([label, rest], axis=-1), jnp.where(own, 0.0, log_p - rest[..., None])


def _uncorrelated(p: jax.Array, q: jax.Array, weights: jax.Array, axis: int) -> jax.Array:
    """1 - Pearson's correlation of p and q along an axis, over what has a weight of 1."""
    count = jnp.maximum(jnp.sum(weights, axis=axis, keepdims=True), 1.0)
    p, q = (weights * (x - jnp.sum(weights * x, axis=axis, keepdims=True) / count) for x in (p, q))

    def length(x: jax.Array) -> jax.Array:  # the smallest inside the root, for its gradient at 0
        return jnp.sqrt(jnp.maximum(jnp.sum(x * x, axis=axis), EPSILON**2))

    return 1.0 - jnp.sum(p * q, axis=axis) / (length(p) * length(q))
