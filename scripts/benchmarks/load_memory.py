"""Memory and time of loading a published checkpoint in shards over 8 simulated devices.

    .venv/bin/python -m scripts.benchmarks.load_memory [--layers=22] [--stacked] [--folder=FOLDER] [--out=FILE]

A made-up Llama of 22 layers of width 2048 (1.2 billion float32 numbers, 4.8 GB in 11 files of two layers) goes
into fsdp 8 with plain SGD. Shown are the growth of what is the process's own memory at its peak (RssAnon,
every 5 ms; pages of mapped files are the system's, which takes them back) beside the state and one file, and
the time beside that of reading the same files into one buffer, both from the system's cache, three times each in
turn; the first round has what a process does once (compiling, memory that is new to it). Beside them, what the system takes to give
as much new memory, filled with ones. Aims: peak at most state + one file; loading at least 0.8 times as fast as reading.
`--stacked`: scanned layers. With the GLIBC_TUNABLES of `bigjax.core.compilers`, as runs start, memory stays the process's.
"""

import argparse
import json
import os
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
from ml_collections import ConfigDict
from safetensors.numpy import save_file

from bigjax.build.program import build_program
from bigjax.build.weights import initial_state
from bigjax.config import resolve as configs
from bigjax.core.compilers import TUNABLE
from bigjax.data.sources import Arrays
from bigjax.mesh import distributed
from bigjax.plan.sharding_report import bytes_per_device
from scripts.benchmarks.measure import machine, summary

RESULT = Path(__file__).parent / "results" / "load_memory.json"
D, F, HEADS, VOCAB, EACH_FILE = 2048, 5632, 16, 32768, 2


def write_checkpoint(folder: Path, layers: int) -> list[Path]:
    rng, index, files = np.random.default_rng(0), {}, []

    def drawn(*shape: int) -> np.ndarray:
        return 0.02 * rng.standard_normal(shape, np.float32)

    def layer(i: int) -> dict[str, np.ndarray]:
        at = f"model.layers.{i}"
        square = {f"{at}.self_attn.{name}_proj.weight": drawn(D, D) for name in "qkvo"}
        wide = {f"{at}.mlp.{name}_proj.weight": drawn(F, D) for name in ("gate", "up")}
        norms = (f"{at}.input_layernorm.weight", f"{at}.post_attention_layernorm.weight")
        return (
            square
            | wide
            | {f"{at}.mlp.down_proj.weight": drawn(D, F)}
            | dict.fromkeys(norms, drawn(D))
        )

    for first in range(0, layers, EACH_FILE):
        tensors = {}
        for i in range(first, min(first + EACH_FILE, layers)):
            tensors |= {name: x.copy() for name, x in layer(i).items()}
        if first == 0:
            tensors |= {"model.embed_tokens.weight": drawn(VOCAB, D), "model.norm.weight": drawn(D)}
        files.append(folder / f"model-{first:05}.safetensors")
        save_file(tensors, files[-1])
        index |= dict.fromkeys(tensors, files[-1].name)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    published = dict(
        model_type="llama",
        vocab_size=VOCAB,
        hidden_size=D,
        intermediate_size=F,
        num_hidden_layers=layers,
        num_attention_heads=HEADS,
        num_key_value_heads=HEADS,
        max_position_embeddings=1024,
        rms_norm_eps=1e-5,
        rope_theta=10000.0,
        hidden_act="silu",
        tie_word_embeddings=True,
    )
    (folder / "config.json").write_text(json.dumps(published))
    return files


class Peak:
    """The most of the process's own memory within, in bytes."""

    def __enter__(self):
        self.bytes, self._over = own_bytes(), threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()
        return self

    def _watch(self) -> None:
        while not self._over.wait(0.005):
            self.bytes = max(self.bytes, own_bytes())

    def __exit__(self, *_) -> None:
        self._over.set()
        self._thread.join()


def own_bytes() -> int:
    """RssAnon of this process."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith("RssAnon")).split()[1])


def read_all(files: list[Path]) -> None:
    """Reads the files into one buffer."""
    buffer = memoryview(bytearray(max(file.stat().st_size for file in files)))
    for file in files:
        with open(file, "rb", buffering=0) as opened:
            done, size = 0, file.stat().st_size
            while done < size:
                done += opened.readinto(buffer[done:size])


def fill(size: int) -> list[np.ndarray]:
    """So many bytes of ones, in pieces."""
    return [np.ones(2**24, np.float32) for _ in range(size // 2**26)]


def timed(run: Callable[[], object]) -> tuple[float, float]:
    """(seconds, processor seconds of all threads); what `run` gives is let go."""
    wall, own = time.perf_counter(), time.process_time()
    jax.block_until_ready(run())
    return time.perf_counter() - wall, time.process_time() - own


def ratios(reading: list[tuple], loading: list[tuple], clock: int) -> dict[str, float]:
    """Rate of loading over that of reading, round by round."""
    return summary([read[clock] / load[clock] for read, load in zip(reading, loading, strict=True)])


def main(layers: int, stacked: bool, below: Path | None, out: Path) -> None:
    distributed.simulate_devices(8)
    with tempfile.TemporaryDirectory(prefix="bigjax-load-", dir=below) as folder:
        files = write_checkpoint(Path(folder), layers)
        config = ConfigDict(
            dict(
                seed=0,
                train=dict(steps=1, batch_size=8),
                data=dict(source=dict(type="npz", directory="unused"), splits=dict(train="train")),
                init=dict(source=folder, family="llama"),
                model=dict(type="llama", scan_layers=stacked),
                task=dict(type="language_model"),
                optimizer=dict(type="sgd", learning_rate=1e-4),
                mesh=dict(data=1, fsdp=8),
            )
        )
        config = configs.resolve(config, [])
        program = build_program(config, Arrays({"tokens": np.zeros((64, 64), np.int32)}))
        state_bytes = 8 * bytes_per_device(program.state)
        reading, loading, filling, peaks = [], [], [], []
        for _ in range(3):
            reading.append(timed(lambda: read_all(files)))
            before = own_bytes()
            with Peak() as peak:
                loading.append(timed(lambda: initial_state(config, program, Path(folder))))
            peaks.append(peak.bytes - before)
            filling.append(timed(lambda: fill(state_bytes)))
        one_file = max(file.stat().st_size for file in files)
        size = sum(file.stat().st_size for file in files)
    result = {
        "stacked": stacked,
        "checkpoint_gb": round(size / 1e9, 2),
        "state_gb": round(state_bytes / 1e9, 2),
        "one_file_gb": round(one_file / 1e9, 3),
        "peak_growth_gb": [round(peak / 1e9, 3) for peak in peaks],
        "peak_beyond_state_in_files": round((max(peaks) - state_bytes) / one_file, 2),
        "reading_seconds": [round(wall, 2) for wall, _ in reading],
        "loading_seconds": [round(wall, 2) for wall, _ in loading],
        "filling_seconds": [round(wall, 2) for wall, _ in filling],
        "reading_processor_seconds": [round(own, 2) for _, own in reading],
        "loading_processor_seconds": [round(own, 2) for _, own in loading],
        "rate_over_reading": ratios(reading, loading, 0),
        "rate_over_reading_by_processor_time": ratios(reading, loading, 1),
        "machine": machine(),
    }
    known = json.loads(out.read_text()) if out.exists() else {}
    name = "stacked" if stacked else "layer by layer"
    if TUNABLE in os.environ.get("GLIBC_TUNABLES", ""):
        name += ", memory kept"
    out.write_text(json.dumps({**known, name: result}, indent=2) + "\n")
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--layers", type=int, default=22)
    parser.add_argument("--stacked", action="store_true", help="scanned layers")
    parser.add_argument("--folder", type=Path, help="where the files are written; default /tmp")
    parser.add_argument("--out", type=Path, default=RESULT)
    options = parser.parse_args()
    main(options.layers, options.stacked, options.folder, options.out)
