"""Samples a second of fine-tuning a BERT of MiniLM's shape, against transformers on PyTorch.

    .venv/bin/python -m scripts.benchmarks.finetune [--rounds=7] [--out=FILE] [--busy]

6 layers, 384 wide, 12 heads, 30,522 tokens, two classes; batch 32, length 128, AdamW, dropout 0.1 in
the same places, float32. Every contestant is a process of its own that takes a step when told to, and the
rounds go round in turn, so that all see the same machine. bigjax takes its own train step, with
all that it does beside the gradient: checks, metrics, decay rules. The figure is the median over rounds
of (bigjax's samples a second / the peer's); target: at least 1.0.

With --busy, for a machine that others use: PyTorch has one thread, as its threads wait for each other
by spinning, and seconds are processor time, summed over the threads of a process.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from scripts.benchmarks.measure import answer, compare, in_turn

Round = Callable[[], None]
VOCAB, RATE, DECAY = 30522, 2e-5, 0.01
CONTESTANTS = ("bigjax", "torch_eager", "torch_compile")


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


def bigjax_round(batch: int, length: int) -> Round:
    import jax

    from bigjax.build import program
    from bigjax.config import resolve as configs
    from bigjax.mesh import sharding
    from bigjax.models.bert import PRESETS

    rows = examples(batch, length)
    with tempfile.TemporaryDirectory() as folder:
        np.savez(Path(folder) / "train.npz", **rows)
        config = configs.resolve(
            dict(
                train=dict(steps=1000, batch_size=batch),
                data=dict(source=dict(type="npz", directory=folder), splits=dict(train="train")),
                model=dict(
                    type="bert",
                    vocab=VOCAB,
                    head="sequence",
                    outputs=2,
                    dropout=0.1,
                    **PRESETS["minilm"],
                ),
                task=dict(type="classification", input=("tokens", "segments", "types")),
                optimizer=dict(type="adamw", learning_rate=RATE, weight_decay=DECAY),
            )
        )
        built = program.build_program(config, config.section("data").source.open("train"))
    state, _ = built.init(program.key_data(0), program.traced_hyper(config))
    ids = np.arange(batch, dtype=np.int32)
    extra = dict(mask=np.ones(batch, np.float32), sample=ids, epoch=np.zeros_like(ids))
    ready = jax.device_put({**rows, **extra}, sharding.batch_sharding(built.mesh))

    def run() -> None:
        nonlocal state
        state, metrics = built.train_step(state, ready, {})
        jax.block_until_ready((state, metrics))

    return run


def torch_round(batch: int, length: int, compiled: bool) -> Round:
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
    forward = torch.compile(model) if compiled else model
    rows = {key: torch.from_numpy(value).long() for key, value in examples(batch, length).items()}
    names = dict(tokens="input_ids", segments="attention_mask", types="token_type_ids")
    inputs = {names.get(key, "labels"): value for key, value in rows.items()}

    def run() -> None:
        optimizer.zero_grad()
        loss = forward(**inputs).loss
        loss.backward()
        optimizer.step()
        loss.item()

    return run


def work(options: argparse.Namespace) -> None:
    """A contestant's process."""
    if options.work == "bigjax":
        run = bigjax_round(options.batch, options.length)
    else:
        if options.busy:
            import torch

            torch.set_num_threads(1)
        run = torch_round(options.batch, options.length, options.work == "torch_compile")
    clock = time.process_time if options.busy else time.perf_counter

    def timed() -> float:
        started = clock()
        run()
        return clock() - started

    answer(timed)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--length", type=int, default=128)
    parser.add_argument("--busy", action="store_true", help="others use this machine")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--work", choices=CONTESTANTS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.work:
        return work(options)

    command = [sys.executable, "-m", "scripts.benchmarks.finetune", f"--batch={options.batch}"]
    command += [f"--length={options.length}", *["--busy"] * options.busy]
    commands = {name: [*command, f"--work={name}"] for name in CONTESTANTS}
    seconds = in_turn(commands, options.rounds)
    clock = "processor" if options.busy else "wall"
    about = dict(batch=options.batch, length=options.length, clock=clock)
    compare(seconds, options.batch, options.out, **about)


if __name__ == "__main__":
    main()
