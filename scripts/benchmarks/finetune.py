"""Samples a second of fine-tuning a BERT of MiniLM's shape, against transformers on PyTorch.

    .venv/bin/python -m scripts.benchmarks.finetune [--rounds=7] [--out=FILE] [--busy]

6 layers, 384 wide, 12 heads, 30,522 tokens, two classes; batch 32, length 128, AdamW, dropout 0.1 in
the same places, float32. Every contestant is a process of its own that takes a step when told to, and the
rounds go round in turn, so that all see the same machine. bigjax takes its own train step, with
all that it does beside the gradient: checks, metrics, decay rules. The figure is the median over rounds
of (bigjax's samples a second / the peer's); target: at least 1.0.
With --busy: see `measure.steps_in_turn`.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from scripts.benchmarks.measure import bigjax_step, steps_in_turn, torch_step

VOCAB, RATE, DECAY = 30522, 2e-5, 0.01


def examples(batch: int, length: int) -> dict[str, np.ndarray]:
    """Random tokens of texts between half and full length, and labels."""
    generator = np.random.default_rng(0)
    real = np.arange(length) < generator.integers(length // 2, length + 1, (batch, 1))
    tokens = generator.integers(1, VOCAB, (batch, length)) * real
    zeros = np.zeros((batch, length), np.int32)
    return dict(
        tokens=tokens.astype(np.int32),
        segments=real.astype(np.int32),
        types=zeros,
        label=generator.integers(0, 2, batch).astype(np.int32),
    )


def bigjax_round(batch: int, length: int) -> Callable[[], None]:
    from bigjax.models.bert import PRESETS

    model = dict(type="bert", vocab=VOCAB, head="sequence", outputs=2, dropout=0.1)
    config = dict(
        train=dict(steps=1000, batch_size=batch),
        model={**model, **PRESETS["minilm"]},
        task=dict(type="classification", input=("tokens", "segments", "types")),
        optimizer=dict(type="adamw", learning_rate=RATE, weight_decay=DECAY),
    )
    return bigjax_step(config, examples(batch, length))


def torch_round(batch: int, length: int, compiled: bool) -> Callable[[], None]:
    import torch
    import transformers

    config = transformers.BertConfig(
        vocab_size=VOCAB,
        num_hidden_layers=6,
        hidden_size=384,
        num_attention_heads=12,
        intermediate_size=1536,
        attention_probs_dropout_prob=0.0,
    )
    model = transformers.BertForSequenceClassification(config).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, weight_decay=DECAY)
    rows = {key: torch.from_numpy(value).long() for key, value in examples(batch, length).items()}
    names = dict(tokens="input_ids", segments="attention_mask", types="token_type_ids")
    inputs = {names.get(key, "labels"): value for key, value in rows.items()}
    return torch_step(model, optimizer, compiled, lambda forward: forward(**inputs).loss)


if __name__ == "__main__":
    steps_in_turn(
        "scripts.benchmarks.finetune", __doc__, bigjax_round, torch_round, batch=32, size=128
    )
