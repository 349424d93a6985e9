"""Malformed files for every reader: one line, or right; never a traceback, a hang, or a full memory.

`READERS` is the list. A reader is fed a good file after a few edits of its bytes, or, where it holds
JSON, with some of its values replaced by others.
"""

from __future__ import annotations

import faulthandler
import json
import os
import random
import struct
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from etils import epath

from bigjax.config import resolve as configs
from bigjax.core.errors import RunFailed, UserError
from bigjax.data.files import records
from bigjax.data.npz import read_npz
from bigjax.data.tokenizers import open_tokenizer
from bigjax.export.card import read_card
from bigjax.pretrained.peft import open_adapted
from bigjax.pretrained.reader import open_published
from bigjax.report import runs
from bigjax.run import clock, manifest
from bigjax.run.checkpoint import folder as folders
from bigjax.run.checkpoint import hashes
from bigjax.run.clock import Clock
from bigjax.run.ledger import left_out
from bigjax.run.result import read_result
from bigjax.run.text import metrics_table
from bigjax.run.writers import Writers, read_metrics
from scripts.fault_injection.runs import Harness

SECONDS, MEGABYTES = 5.0, 1024  # the most that one file may cost; seconds of the processor
HANG = 300  # seconds after which a reader that has not come back ends the trials
TOLD = (UserError, RunFailed, hashes.BadCheckpoint)


@dataclass(frozen=True)
class Reader:
    """One kind of file.

    Attributes:
      name: of the file, in a folder of its own.
      good: writes a good one, and whatever else the reader needs.
      read: of the folder.
    """

    name: str
    good: Callable[[Path], None]
    read: Callable[[Path], Any]


def text(name: str, value: Any, read: Callable[[Path], Any]) -> Reader:
    """A reader of JSON, or of the text given."""
    said = value if isinstance(value, str) else json.dumps(value, indent=1)
    return Reader(name, lambda folder: (folder / name).write_text(said), read)


START = {
    "code": {"source": "a" * 64}, "versions": {"jax": "1"}, "flags": {}, "data": {"train": {"examples": 3}},
    "devices": {"platform": "cpu", "kind": "cpu", "count": 1, "processes": 1, "mesh": {"data": 2}},
}  # fmt: skip
CONFIG = {
    "train": {"steps": 3, "batch_size": 4},
    "data": {"source": {"type": "npz", "directory": "here"}, "splits": {"train": "train"}},
    "model": {"type": "mlp", "widths": [8], "outputs": 10},
    "task": {"type": "classification"},
    "optimizer": {"type": "adam", "learning_rate": 0.01},
    "evaluate": {"splits": ["train"]},
}
SAVED = {
    "format": hashes.FORMAT, "run": "0123456789abcdef", "step": 3, "time": 1.0, "metrics": {"a": 0.5},
    "config_fingerprint": "f", "versions": {}, "sample_position": 12,
    "arrays": {"w": {"shape": [2, 3], "dtype": "float32", "blocks": {"0:2,0:3": "00000000"}}},
    "files": {"default/d": {"size": 3, "crc32": "00000000"}},
}  # fmt: skip


RESULT = {
    "step": 3, "metrics": {"eval/t/accuracy": 1.0, "c": [[1, 2]]}, "fingerprint": "f", "seconds": 2.0,
    "time": {"wall": 2.0, "goodput": 0.5, "starts": 1, "seconds": {"step": 1.0}, "steps_per_second": 1.0,
             "examples_per_second": 2.0, "flops_per_step": {"a": 3}, "mfu": {"a": 0.1}},
}  # fmt: skip


def _result(folder: Path) -> None:
    if found := read_result(folder):
        metrics_table(found["metrics"])
        clock.lines(found["time"]) if "time" in found else None
    runs.text(runs.find(folder))


def _session(folder: Path) -> None:
    manifest.begin(folder, START, [])


def _checkpoint(folder: Path) -> None:
    """Read as it is, and resealed, as a forger would."""
    path = folder / "manifest.json"
    raw = path.read_bytes()
    for forge in (False, True):
        if forge:
            try:
                content = json.loads(raw)
                content.pop("sha256", None)
                path.write_text(hashes.sealed(content))
            except (ValueError, TypeError, AttributeError, RecursionError):
                return
        try:
            found = hashes.read_manifest(epath.Path(folder), step=3, run=None)
            arrays = {"w": np.zeros((2, 3), np.float32)}
            if not hashes.check_layout(arrays, found["arrays"]):
                hashes.wrong_arrays(arrays, found["arrays"])
            hashes.check_files(epath.Path(folder), found)
        except hashes.BadCheckpoint:
            continue


def _window(folder: Path) -> None:
    Writers(folder, tensorboard=False, progress=False, total_steps=9).truncate_after(8)


def _lost(folder: Path) -> None:
    folders.lost(folder, epath.Path(folder / "checkpoints"), 3)


def _published(folder: Path) -> None:
    (path,) = (p for p in folder.iterdir() if p.suffix in (".gguf", ".safetensors"))
    published = open_published(str(path if path.suffix == ".gguf" else folder))
    for name in published.shapes:
        published.read(name)


def _gguf(folder: Path) -> None:
    import gguf

    values = np.arange(64, dtype=np.float32).reshape(2, 32)
    writer = gguf.GGUFWriter(folder / "m.gguf", "llama")
    writer.add_block_count(3)
    writer.add_array("list", [1, 2, 3])
    writer.add_array("names", ["a", "bc"])
    writer.add_tensor("plain", values)
    small = gguf.quants.quantize(values, gguf.GGMLQuantizationType.Q8_0)
    writer.add_tensor("small", small, raw_dtype=gguf.GGMLQuantizationType.Q8_0)
    writer.write_header_to_file(), writer.write_kv_data_to_file(), writer.write_tensors_to_file()
    writer.close()


def _safetensors(folder: Path) -> None:
    from safetensors.numpy import save_file

    save_file(
        {"a": np.ones((2, 3), np.float32), "b": np.zeros(4, np.int8)}, folder / "model.safetensors"
    )


def _sharded(folder: Path) -> None:
    _safetensors(folder)
    index = {"metadata": {}, "weight_map": {"a": "model.safetensors", "b": "model.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def _tokenizer(folder: Path) -> None:
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel

    Tokenizer(WordLevel({"a": 0, "b": 1, "[UNK]": 2}, unk_token="[UNK]")).save(
        str(folder / "tokenizer.json")
    )
    (folder / "tokenizer_config.json").write_text('{"pad_token": {"content": "a"}}')


def _encoded(folder: Path) -> None:
    tokenizer = open_tokenizer(str(folder))
    for ids in tokenizer.encode_batch(["a b", "\u017c"]):
        tokenizer.decode(ids)


def _npz(folder: Path) -> None:
    np.savez(folder / "train.npz", image=np.ones((3, 4), np.float32), label=np.arange(3))


def _adapters(folder: Path) -> None:
    """adapter_config.json and what goes with it: tensors, and the base in a folder within."""
    from safetensors.numpy import save_file

    (folder / "base").mkdir()
    save_file({"fc.weight": np.ones((4, 3), np.float32)}, folder / "base" / "model.safetensors")
    a, b = np.ones((2, 3), np.float32), np.ones((4, 2), np.float32)
    name = "base_model.model.fc.lora_{}.weight"
    save_file({name.format("A"): a, name.format("B"): b}, folder / "adapter_model.safetensors")
    said = {"peft_type": "LORA", "base_model_name_or_path": "base", "r": 2, "lora_alpha": 4}
    (folder / "adapter_config.json").write_text(json.dumps({**said, "alpha_pattern": {"fc": 8}}))


EXPORTED = {
    "format": 1, "kind": "safetensors", "family": None, "model": CONFIG["model"], "task": CONFIG["task"],
    "precision": {"policy": "float32"}, "preprocess": [{"type": "normalize", "scale": 16.0}],
    "features": {"image": [[4], "float32"], "label": [[], "int32"]}, "class_names": ["a", "b"],
    "table": {"label_column": "y", "fitted": {
        "columns": [{"name": "x", "kind": "number"}], "label": {"kind": "class", "names": ["a", "b"]},
        "image": None, "shape": None, "unused": []}},
    "text": None, "signature": {"inputs": {"image": {}}, "outputs": {"outputs": {}}},
}  # fmt: skip
READERS: dict[str, Reader] = {
    "config": text("config.json", CONFIG, lambda f: configs.load(f / "config.json")),
    "manifest": text("manifest.json", {"run": "0123456789abcdef", **START, "resumes": [START]}, _session),
    "checkpoint": text("manifest.json", hashes.sealed(SAVED), _checkpoint),
    "saved": text(".saved", {"run": "0123456789abcdef", "step": 3}, _lost),
    "metrics": text("metrics.jsonl", '{"step": 1, "a": 1.0}\n{"step": 2, "a": "NaN"}\n' * 3,
                    lambda f: read_metrics(f / "metrics.jsonl")),
    "mean": text("train_mean.json", {"4": [1.5, 40.0], "8": [0.5, 2.0]}, _window),
    "pointer": text("checkpoints_at.txt", "/nowhere/0123456789abcdef\n", folders.has_checkpoints),
    "time": text("time.json", {"starts": 1, "seconds": {"step": 1.0}, "marks": {"3": {"step": 0.5}}}, Clock),
    "result": text("result.json", RESULT, _result),
    "ledger": text("skipped.jsonl", '{"step": 3, "examples": [[0, 1]], "suspects": [1], "for_good": [1]}\n',
                   left_out),
    "safetensors": Reader("model.safetensors", _safetensors, _published),
    "index": Reader("model.safetensors.index.json", _sharded, _published),
    "gguf": Reader("m.gguf", _gguf, _published),
    "exported": text("bigjax.json", EXPORTED, lambda f: read_card(f).network()),
    "adapters": Reader("adapter_config.json", _adapters, lambda f: open_adapted(str(f)).read("fc.weight")),
    "adapter_tensors": Reader("adapter_model.safetensors", _adapters,
                              lambda f: open_adapted(str(f)).read("fc.weight")),
    "npz": Reader("train.npz", _npz, lambda f: read_npz(f / "train.npz")),
    "csv": text("train.csv", "a,b,label\n1,2,0\n3.5,-1e3,1\n\"x\ny\",2,1\n",
                lambda f: list(records(f / "train.csv"))),
    "jsonl": text("train.jsonl", '{"text": "a b", "label": 1}\n' * 3, lambda f: list(records(f / "train.jsonl"))),
    "tokenizer": Reader("tokenizer.json", _tokenizer, _encoded),
    "tokenizer_config": Reader("tokenizer_config.json", _tokenizer, _encoded),
}  # fmt: skip

NUMBERS = [0, 1, 2**31 - 1, 2**31, 2**32 - 1, 2**60, 2**63, 2**64 - 1]
PIECES = [
    b"", b"\0", b"\xff", b"{", b"}", b"[", b"]", b'"', b",", b":", b"null", b"-1", b"1e999", b"NaN", b"true",
    b"9" * 400, b"[" * 3000, b'{"a":' * 2000, b"..", b"/", b"../../x", b"\n", b"\r", "\u2029".encode(),
    *(struct.pack("<Q", n) for n in NUMBERS), *(struct.pack("<I", n % 2**32) for n in NUMBERS),
    *(str(n).encode() for n in NUMBERS),
]  # fmt: skip
VALUES = [
    None,
    True,
    -1,
    0.5,
    2**60,
    1e300,
    float("nan"),
    "",
    "x",
    "../x",
    [],
    [1],
    [[[]]],
    {},
    {"a": 1},
    "9" * 400,
]
Edit = tuple[float, int, bytes]  # where in the file, as a part of it; how many bytes go; what comes


def malformed(content: bytes, name: str, chance: random.Random) -> bytes:
    """A good file after some damage, by its bytes or by its values."""
    if chance.random() < 0.5 and (with_values := _other_values(content, name, chance)):
        return with_values
    edits = [
        (
            chance.random(),
            chance.choice([0, 0, 1, 2, 4, 8, 12, len(content)]),
            chance.choice([chance.choice(PIECES), chance.randbytes(chance.randrange(7))]),
        )
        for _ in range(chance.randint(1, 4))
    ]
    return edited(content, edits)


def _other_values(content: bytes, name: str, chance: random.Random) -> bytes | None:
    """JSON, lines of JSON or the header of safetensors, with values replaced; None for other files."""
    if name.endswith(".safetensors"):
        (size,) = struct.unpack_from("<Q", content)
        header = json.dumps(_replaced(json.loads(content[8 : 8 + size]), chance)).encode()
        return struct.pack("<Q", len(header)) + header + content[8 + size :]
    if name.endswith(".jsonl"):
        lines = content.splitlines()
        at = chance.randrange(len(lines))
        lines[at] = json.dumps(_replaced(json.loads(lines[at]), chance)).encode()
        return b"\n".join([*lines, b""])
    if name.endswith(".json") or name == ".saved":
        return json.dumps(_replaced(json.loads(content), chance)).encode()
    return None


def _replaced(value: Any, chance: random.Random) -> Any:
    """A JSON value with something in it removed, replaced, or moved to another place of it."""
    if not isinstance(value, dict | list) or not value or chance.random() < 0.15:
        return chance.choice([*VALUES, [value], {"a": value}])
    key = chance.choice(list(value) if isinstance(value, dict) else range(len(value)))
    changed = value.copy()
    if chance.random() < 0.1:
        del changed[key]
    else:
        changed[key] = _replaced(value[key], chance)
    return changed


def edited(content: bytes, edits: list[Edit]) -> bytes:
    for where, gone, piece in edits:
        at = round(where * len(content))
        content = content[:at] + piece + content[at + gone :]
    return content


def problem(reader: Reader, folder: Path, content: bytes) -> str | None:
    """What is wrong with how the reader takes this content; None if all is well."""
    (folder / reader.name).write_bytes(content)
    Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here
    before, began = megabytes("VmRSS"), time.process_time()
    try:
        reader.read(folder)
    except TOLD as error:
        if "\n" in str(error) or not str(error):
            return f"not one line: {str(error)[:200]!r}"
    except BaseException as error:
        return f"{type(error).__name__}: {str(error)[:200]}"
    if (took := time.process_time() - began) > SECONDS:
        return f"{took:.0f} s"
    if (used := megabytes("VmHWM") - before) > MEGABYTES:
        return f"{used} MB"
    return None


def megabytes(name: str) -> int:
    """What the kernel says of this process's memory: VmRSS now, VmHWM at its peak."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) // 1024 for line in lines if line.startswith(f"{name}:"))


def fuzz(harness: Harness, times: int, kind: str) -> tuple[int, int]:
    """So many malformed files for one reader."""
    reader, folder = READERS[kind.removeprefix("fuzz_")], harness.fresh(kind)
    folder.mkdir()
    reader.good(folder)
    good = (folder / reader.name).read_bytes()
    assert problem(reader, folder, good) is None, problem(reader, folder, good)
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # threads for two words cost ten times the rest
    bad = 0
    for number in range(times):
        if number % 100 == 0:
            faulthandler.dump_traceback_later(HANG, exit=True)
        began, content = time.monotonic(), malformed(good, reader.name, harness.random)
        if found := problem(reader, folder, content):
            bad += 1
            harness.note(f"{kind}: {found} for {content[:300]}")
        harness.seconds.append(time.monotonic() - began)
    faulthandler.cancel_dump_traceback_later()
    return times - bad, times
