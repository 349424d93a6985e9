"""Samples a second of training a GPT-2 of 10 million parameters, against the same model in PyTorch.

    .venv/bin/python -m scripts.benchmarks.gpt [--rounds=7] [--out=FILE] [--busy]

6 layers, 384 wide, 6 heads, a vocabulary of 65 characters, no dropout; batch 8, length 256, AdamW, float32: the
sizes of the small model that nanoGPT's README trains on characters. PyTorch's has fused attention
(scaled_dot_product_attention) and one product for queries, keys and values. The figure is the median over
rounds of (bigjax's samples a second / the peer's); target: at least 1.05. With --busy: see
`measure.steps_in_turn`.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from scripts.benchmarks.measure import bigjax_step, steps_in_turn, torch_step

VOCAB, LAYERS, WIDTH, HEADS, RATE, DECAY = 65, 6, 384, 6, 1e-3, 0.1


def examples(batch: int, length: int) -> dict[str, np.ndarray]:
    tokens = np.random.default_rng(0).integers(1, VOCAB, (batch, length))
    return dict(tokens=tokens.astype(np.int32), segments=np.ones((batch, length), np.int32))


def bigjax_round(batch: int, length: int) -> Callable[[], None]:
    sizes = dict(vocab=VOCAB, layers=LAYERS, width=WIDTH, heads=HEADS, context=length, dropout=0.0)
    config = dict(
        train=dict(steps=1000, batch_size=batch),
        model=dict(type="gpt2", **sizes),
        task=dict(type="language_model", input=("tokens", "segments")),
        optimizer=dict(type="adamw", learning_rate=RATE, weight_decay=DECAY),
    )
    return bigjax_step(config, examples(batch, length))


def torch_round(batch: int, length: int, compiled: bool) -> Callable[[], None]:
    import torch
    from torch import nn
    from torch.nn import functional

    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.norms = nn.ModuleList([nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)])
            self.qkv, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
            act = nn.GELU(approximate="tanh")
            self.mlp = nn.Sequential(nn.Linear(WIDTH, 4 * WIDTH), act, nn.Linear(4 * WIDTH, WIDTH))

        def forward(self, x):
            rows, tokens, _ = x.shape
            qkv = self.qkv(self.norms[0](x)).view(rows, tokens, 3, HEADS, WIDTH // HEADS)
            q, k, v = qkv.permute(2, 0, 3, 1, 4)
            mixed = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
            x = x + self.out(mixed.transpose(1, 2).reshape(rows, tokens, WIDTH))
            return x + self.mlp(self.norms[1](x))

    class GPT(nn.Module):
        def __init__(self):
            super().__init__()
            self.tokens, self.places = nn.Embedding(VOCAB, WIDTH), nn.Embedding(length, WIDTH)
            self.blocks = nn.Sequential(*(Block() for _ in range(LAYERS)))
            self.norm = nn.LayerNorm(WIDTH)

        def forward(self, tokens):
            x = self.tokens(tokens) + self.places.weight[: tokens.shape[1]]
            return functional.linear(self.norm(self.blocks(x)), self.tokens.weight)

    model = GPT()
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, weight_decay=DECAY)
    tokens = torch.from_numpy(examples(batch, length)["tokens"]).long()

    def loss_of(forward):
        logits = forward(tokens)[:, :-1]
        return functional.cross_entropy(logits.reshape(-1, VOCAB), tokens[:, 1:].reshape(-1))

    return torch_step(model, optimizer, compiled, loss_of)


if __name__ == "__main__":
    steps_in_turn("scripts.benchmarks.gpt", __doc__, bigjax_round, torch_round, batch=8, size=256)
