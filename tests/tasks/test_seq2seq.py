"""Sequence to sequence: sums by hand, generation against the model read whole, BLEU and ROUGE by hand."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from bigjax.models.t5 import T5
from bigjax.tasks.seq2seq import Seq2Seq

RNG = np.random.default_rng(0)
TARGET = np.array([[9, 4, 5, 6, 7, 1], [9, 3, 1, 0, 0, 0], [9, 2, 2, 1, 0, 0]], np.int32)
TARGET_SEGMENTS = (TARGET > 0).astype(np.int32)
SOURCE = np.array([[3, 4, 5, 6], [3, 0, 0, 0], [5, 5, 0, 0]], np.int32)
BATCH = {
    "source": SOURCE,
    "source_segments": (SOURCE > 0).astype(np.int32),
    "target": TARGET,
    "target_segments": TARGET_SEGMENTS,
    "mask": np.array([1, 1, 0], np.float32),
}
LOGITS = RNG.standard_normal((3, 6, 10)).astype(np.float32)


def nats(row, t):
    logits = LOGITS[row, t].astype(np.float64)
    return np.log(np.exp(logits).sum()) - logits[TARGET[row, t + 1]]


def test_loss_is_the_sum_over_the_tokens_after_the_start_of_real_rows():
    (loss, weight), _ = Seq2Seq().loss(jnp.asarray(LOGITS), BATCH)
    predicted = [(0, t) for t in range(5)] + [(1, 0), (1, 1)]
    assert float(weight) == len(predicted)
    assert float(loss) == pytest.approx(sum(nats(*place) for place in predicted), rel=1e-6)


def test_in_a_packed_row_no_text_predicts_the_next_texts_start():
    segments = np.array([[1, 1, 1, 2, 2, 2]] * 3)
    (_, weight), _ = Seq2Seq().loss(jnp.asarray(LOGITS), {**BATCH, "target_segments": segments})
    assert float(weight) == 2 * 4


@pytest.mark.parametrize(("positions", "scan_layers"), [("relative", True), ("sinusoidal", False)])
def test_each_written_token_is_the_most_likely_after_those_before(positions, scan_layers):
    model = T5(
        10, 2, 16, 2, positions=positions, scan_layers=scan_layers, buckets=8, max_distance=8
    )
    inputs = Seq2Seq().inputs(BATCH)
    variables = nn.unbox(jax.jit(lambda: model.init(jax.random.key(2), *inputs, train=False))())
    decode = jax.jit(lambda v, batch: Seq2Seq().decode(model.apply, v, batch)["written"])
    unstopped = np.asarray(decode(variables, BATCH))
    end = int(unstopped[0, 2])  # so that the first row stops before its place 3
    target = TARGET.copy()
    target[0, -1] = end
    written = np.asarray(decode(variables, {**BATCH, "target": target}))
    lengths = (written >= 0).sum(1)
    assert written.shape == (3, 5) and lengths[0] == unstopped[0].tolist().index(end)

    whole = jax.jit(lambda v, target: model.apply(
        v, *inputs[:2], target, jnp.ones_like(target), train=False
    ))  # fmt: skip
    read = np.concatenate([TARGET[:, :1], np.maximum(written, 0)], axis=1)
    likely = np.asarray(jnp.argmax(whole(variables, read), axis=-1))
    for row, length in enumerate(lengths):
        assert written[row, :length].tolist() == likely[row, :length].tolist()
        assert length == 5 or likely[row, length] == end  # stopped by the end token
        assert (written[row, length:] == -1).all()


def test_scores_compare_the_written_texts_with_the_targets():
    words = ["-", "the", "cat", "sat", "on", "mat", "a", "dog"]
    source = SimpleNamespace(
        tokenizer=SimpleNamespace(decode=lambda ids: " ".join(words[i] for i in ids))
    )
    columns = {
        "written": np.array([[1, 2, 3, 4, 1, 5], [6, 7, -1, -1, -1, -1]]),
        "reference": np.array([[1, 2, 3, 4, 1, 5], [1, 7, 3, -1, -1, -1]]),
    }
    texts = Seq2Seq().present(columns, {}, source)
    assert texts["text"] == ["the cat sat on the mat", "a dog"]
    assert texts["reference"] == ["the cat sat on the mat", "the dog sat"]
    statistics = {"loss": (6.0, 3.0), "accuracy": (1.0, 4.0)}
    result = Seq2Seq(scores=("bleu", "rouge")).summarize(statistics, texts)
    # n-grams found: 7 of 8, 5 of 6, 4 of 4, 3 of 3; 8 words against 9 (Papineni et al. 2002, eq. 3).
    bleu = 100 * np.exp(1 - 9 / 8) * (7 / 8 * 5 / 6) ** 0.25
    assert result["bleu"] == pytest.approx(bleu)
    # Second text: one word of 2 and of 3 in common, no pair of words.
    assert result["rouge1"] == pytest.approx((1 + 2 * (1 / 2 * 1 / 3) / (1 / 2 + 1 / 3)) / 2)
    assert result["rouge2"] == pytest.approx((1 + 0) / 2)
    assert result["rougeL"] == pytest.approx(result["rouge1"])
    assert result["perplexity"] == pytest.approx(np.exp(2))


def test_without_scores_nothing_is_written():
    task = Seq2Seq(scores=())
    assert not task.decodes and task.collect(LOGITS, BATCH) == {}
