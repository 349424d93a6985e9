"""Texts tokenized once: token ids in memory-mapped files, named by what decides their content.

Shards are tokenized side by side, each into a folder of its own; what is done stays done if the process is
stopped. Then they are joined in their order, so that the bytes are the same however many were at work. A
cache folder is written whole or not at all, whoever else writes the same. Each file's sha256 is checked
when it is opened. A damaged cache is told and left, as another process may be reading it, and made again
beside it.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import itertools
import json
import os
import shutil
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import CancelledError, ThreadPoolExecutor
from pathlib import Path

import numpy as np

from bigjax.core.errors import UserError
from bigjax.data.sources import default_data_dir
from bigjax.data.tokenizers import Tokenizer
from bigjax.run.files import publish
from bigjax.run.screen import progress

FORMAT = 1  # a change of what is written is a new number
TEXTS_AT_ONCE = 1024
_FILES = ("tokens.npy", "offsets.npy", "sizes.npy")
_PART = ("tokens.raw", "lengths.npy", "sizes.npy")  # of one shard


@dataclasses.dataclass(frozen=True)
class Tokens:
    """Token ids of texts: those of text d are flat[offsets[d] : offsets[d + 1]].

    Attributes:
      flat: uint16 or int32 (tokens,), memory-mapped.
      offsets: int64 (D + 1,).
      sizes: int64 (D,), UTF-8 bytes of each text.
      fingerprint: sha256 (hex) of what decides them.
    """

    flat: np.ndarray
    offsets: np.ndarray
    sizes: np.ndarray
    fingerprint: str

    def __len__(self) -> int:
        return len(self.sizes)


def tokenize_once(
    tokenizer: Tokenizer,
    shards: Sequence[Callable[[], Iterator[str]]],
    fingerprint: str,
    *,
    whole: bool = False,
    data_dir: str | None = None,
    workers: int | None = None,
) -> Tokens:
    """The token ids of texts, from the cache under DATA_DIR/cache/tokens if they are there.

    Args:
      tokenizer: gives the ids.
      shards: called to read the texts of each, when they are not in the cache.
      fingerprint: changes when the texts do.
      whole: put the tokenizer's start token before each text and its end token after.
      data_dir: default $TFDS_DATA_DIR or ~/tensorflow_datasets.
      workers: shards at a time, in threads; default: one a CPU. The library encodes without Python's lock.

    Raises:
      UserError: a text cannot be read, or the cache cannot be written, or comes out damaged thrice.
    """
    identity = f"{FORMAT} {tokenizer.fingerprint} {fingerprint} {whole}"
    key = hashlib.sha256(identity.encode()).hexdigest()
    caches = Path(default_data_dir(data_dir)) / "cache" / "tokens"
    write = functools.partial(_write, tokenizer=tokenizer, whole=whole)
    for name in (key[:32], f"{key[:32]}.again", f"{key[:32]}.at_last"):
        folder = caches / name
        if not folder.exists():
            _make(folder, shards, write, workers or os.cpu_count() or 1)
        damage = _damage(folder, _FILES)
        if not damage:
            break
        print(f"{folder} is damaged ({damage}): delete it; tokenizing again", file=sys.stderr)
    else:
        raise UserError(f"{caches}: three caches of the same texts are damaged: is the disk sound?")
    flat, offsets, sizes = (np.load(folder / name, mmap_mode="r") for name in _FILES)
    return Tokens(flat, np.asarray(offsets), np.asarray(sizes), key)


def _make(
    folder: Path,
    shards: Sequence[Callable[[], Iterator[str]]],
    write: Callable[..., None],
    workers: int,
) -> None:
    """Fills a cache folder by way of one a shard, in FOLDER.shards, which are then removed."""
    parts = folder.with_name(f"{folder.name}.shards")
    told, stopped = threading.Lock(), threading.Event()

    def fill(number: int) -> Path:
        part = parts / f"{number:06}"
        if part.exists() and _damage(part, _PART):
            shutil.rmtree(part)  # of a process that lost its power
        publish(part, lambda private: write(private, shards[number](), count))
        return part

    def count(texts: int) -> None:
        if stopped.is_set():
            raise CancelledError
        with told:
            bar.advance(texts)

    with ThreadPoolExecutor(min(workers, len(shards))) as pool:
        try:
            with progress("tokenizing", unit="texts") as bar:
                filled = list(pool.map(fill, range(len(shards))))
            publish(folder, lambda private: _join(private, filled))
        except (UserError, FileNotFoundError):
            # Unless another process has joined the shards, and removed them under our hands, a text is
            # wrong; mended ones have another fingerprint.
            if not folder.exists():
                shutil.rmtree(parts, ignore_errors=True)
                raise
        finally:
            stopped.set()
            pool.shutdown(cancel_futures=True)
    shutil.rmtree(parts, ignore_errors=True)


def _write(
    folder: Path,
    texts: Iterator[str],
    count: Callable[[int], None],
    *,
    tokenizer: Tokenizer,
    whole: bool,
) -> None:
    """A shard. Streams: only one batch of texts is in memory, and their ids are appended to a file."""
    dtype = np.dtype(np.uint16 if tokenizer.vocab_size <= 2**16 else np.int32)
    before = [tokenizer.start] if whole and tokenizer.start is not None else []
    after = [tokenizer.end] if whole and tokenizer.end is not None else []
    lengths, sizes = [], []
    with open(folder / "tokens.raw", "wb") as file:
        # Their count is not known yet.
        np.lib.format.write_array_header_1_0(file, _header(dtype, 0))
        while batch := list(itertools.islice(texts, TEXTS_AT_ONCE)):
            for text, ids in zip(batch, tokenizer.encode_batch(batch), strict=True):
                row = np.array([*before, *ids, *after], dtype)
                file.write(row.data)
                lengths.append(len(row))
                sizes.append(len(text) if text.isascii() else len(text.encode()))
            count(len(batch))
    np.save(folder / "lengths.npy", np.array(lengths, np.int64))
    np.save(folder / "sizes.npy", np.array(sizes, np.int64))
    _seal(folder, _PART)


def _join(folder: Path, parts: Sequence[Path]) -> None:
    """The shards, one after the other, as one."""
    lengths, sizes = (
        np.concatenate([np.load(part / name) for part in parts])
        for name in ("lengths.npy", "sizes.npy")
    )
    offsets = np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)]).astype(np.int64)
    with open(folder / "tokens.npy", "wb") as file:
        for number, part in enumerate(parts):
            with open(part / "tokens.raw", "rb") as numbers:
                np.lib.format.read_magic(numbers)
                dtype = np.lib.format.read_array_header_1_0(numbers)[2]
                if not number:
                    header = _header(dtype, int(offsets[-1]))
                    np.lib.format.write_array_header_1_0(file, header)
                shutil.copyfileobj(numbers, file, 2**20)
    np.save(folder / "offsets.npy", offsets)
    np.save(folder / "sizes.npy", sizes)
    _seal(folder, _FILES)


def _header(dtype: np.dtype, count: int) -> dict[str, object]:
    """Of an .npy file of so many numbers."""
    return {"descr": dtype.str, "fortran_order": False, "shape": (count,)}


def _seal(folder: Path, names: Sequence[str]) -> None:
    digests = {name: _sha256(folder / name) for name in names}
    (folder / "sha256.json").write_text(json.dumps(digests, indent=1) + "\n")


def _damage(folder: Path, names: Sequence[str]) -> str:
    """What is wrong with a cache folder; "" if nothing is."""
    try:
        digests = json.loads((folder / "sha256.json").read_text())
        wrong = [name for name in names if _sha256(folder / name) != digests[name]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        return f"{type(error).__name__}: {error}"
    return f"sha256 of {', '.join(wrong)} differs" if wrong else ""


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
