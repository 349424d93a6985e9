"""Tokens a second of generation with the key-value cache, beside transformers' own `generate`.

    .venv/bin/python -m scripts.benchmarks.generation [--rounds=5] [--out=FILE]

Both write greedily from the same random weights of SmolLM2-135M's shape, float32, one prompt of 16
tokens, on all cores (torch on one, where that is faster: on a busy machine its threads wait for each
other); the rounds go in turn, so that both see the same machine. Prints, each as a median over rounds with
its quartiles:
ratio: bigjax's tokens a second over transformers', 64 new tokens (target: at least 1.0);
growth: bigjax's time a token for 512 new tokens over that for 64 (target: at most 1.3).
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path

import jax
import numpy as np
import torch
import transformers

from bigjax.models.generate import Sampling, generate
from bigjax.models.llama import PRESETS
from scripts.benchmarks.measure import machine, summary
from tests import parity

PROMPT, SHORT, LONG = 16, 64, 512


def contestants(folder: Path):
    """(write, write_reference), functions of a number of new tokens that return the tokens."""
    sizes = PRESETS["smollm2_135m"]
    torch.manual_seed(0)
    reference = transformers.LlamaForCausalLM(
        transformers.LlamaConfig(
            vocab_size=sizes["vocab"],
            num_hidden_layers=sizes["layers"],
            hidden_size=sizes["width"],
            num_attention_heads=sizes["heads"],
            num_key_value_heads=sizes["kv_heads"],
            intermediate_size=sizes["mlp_width"],
            max_position_embeddings=sizes["context"],
            tie_word_embeddings=sizes["tied"],
        )
    ).eval()
    reference.save_pretrained(folder)
    tokens = np.random.default_rng(0).integers(0, sizes["vocab"], (1, PROMPT)).astype(np.int32)
    model, variables, _ = parity.load(folder, "llama", (tokens,))
    ones = np.ones_like(tokens)

    def write(count: int) -> np.ndarray:
        return np.asarray(compiled[count](variables, tokens, ones)["tokens"])[0]

    def of_length(count: int):
        return jax.jit(lambda v, *prompt: generate(model.apply, v, *prompt, Sampling(count)))

    compiled = {count: of_length(count) for count in (SHORT, LONG)}

    def write_reference(count: int) -> np.ndarray:
        with torch.no_grad():
            found = reference.generate(
                torch.tensor(tokens),
                attention_mask=torch.tensor(ones),
                min_new_tokens=count,
                max_new_tokens=count,
                do_sample=False,
                pad_token_id=0,
                eos_token_id=None,
            )
        return found[0, PROMPT:].numpy()

    return write, write_reference


def seconds(write, count: int) -> float:
    """Seconds a token."""
    started = time.perf_counter()
    write(count)
    return (time.perf_counter() - started) / count


def fastest_threads(write_reference) -> int:
    """Sets torch to as many threads, all or one, as write 16 tokens sooner."""
    times = {}
    for count in (torch.get_num_threads(), 1):
        torch.set_num_threads(count)
        times[count] = min(seconds(write_reference, 16) for _ in range(2))
    best = min(times, key=times.get)
    torch.set_num_threads(best)
    return best


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, help="write the figures there, as JSON")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        write, write_reference = contestants(Path(folder) / "model")
    same = int(np.sum(write(SHORT) == write_reference(SHORT)))
    write(LONG)
    threads = fastest_threads(write_reference)
    rounds = []
    for _ in range(options.rounds):
        rounds.append(
            [seconds(f, SHORT) for f in (write, write_reference)] + [seconds(write, LONG)]
        )
        print("seconds a token:", *(f"{x:.4f}" for x in rounds[-1]), flush=True)
    short, theirs, long = np.array(rounds).T
    figures = {
        "machine": machine(),
        "equal_tokens": f"{same} of {SHORT}",
        "threads_of_torch": threads,
        "tokens_per_second": summary(1 / short),
        "tokens_per_second_transformers": summary(1 / theirs),
        "ratio": summary(theirs / short),
        "growth": summary(long / short),
    }
    print(json.dumps(figures, indent=1))
    if options.out:
        options.out.write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
