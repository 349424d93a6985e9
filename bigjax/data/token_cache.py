"""Texts tokenized once: token ids in memory-mapped files, named by what decides their content.

A cache folder is written whole or not at all, whoever else writes the same. Each file's sha256 is
checked when it is opened. A damaged cache is told and left, as another process may be reading it, and
made again beside it.
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
import shutil
import sys
from collections.abc import Callable, Iterator
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
    texts: Callable[[], Iterator[str]],
    fingerprint: str,
    *,
    whole: bool = False,
    data_dir: str | None = None,
) -> Tokens:
    """The token ids of texts, from the cache under DATA_DIR/cache/tokens if they are there.

    Args:
      tokenizer: gives the ids.
      texts: called to read the texts when they are not in the cache.
      fingerprint: changes when the texts do.
      whole: put the tokenizer's start token before each text and its end token after.
      data_dir: default $TFDS_DATA_DIR or ~/tensorflow_datasets.

    Raises:
      UserError: a text cannot be read, or the cache cannot be written, or comes out damaged thrice.
    """
    identity = f"{FORMAT} {tokenizer.fingerprint} {fingerprint} {whole}"
    key = hashlib.sha256(identity.encode()).hexdigest()
    caches = Path(default_data_dir(data_dir)) / "cache" / "tokens"
    for name in (key[:32], f"{key[:32]}.again", f"{key[:32]}.at_last"):
        folder = caches / name
        publish(folder, lambda private: _write(private, tokenizer, texts(), whole))
        damage = _damage(folder)
        if not damage:
            break
        print(f"{folder} is damaged ({damage}): delete it; tokenizing again", file=sys.stderr)
    else:
        raise UserError(f"{caches}: three caches of the same texts are damaged: is the disk sound?")
    flat, offsets, sizes = (np.load(folder / name, mmap_mode="r") for name in _FILES)
    return Tokens(flat, np.asarray(offsets), np.asarray(sizes), key)


def _write(folder: Path, tokenizer: Tokenizer, texts: Iterator[str], whole: bool) -> None:
    """Streams: only one batch of texts is in memory, and their ids are appended to a file."""
    dtype = np.dtype(np.uint16 if tokenizer.vocab_size <= 2**16 else np.int32)
    before = [tokenizer.start] if whole and tokenizer.start is not None else []
    after = [tokenizer.end] if whole and tokenizer.end is not None else []
    lengths, sizes = [], []
    raw = folder / "tokens.raw"
    with open(raw, "wb") as file, progress("tokenizing", unit="texts") as bar:
        while batch := list(itertools.islice(texts, TEXTS_AT_ONCE)):
            for text, ids in zip(batch, tokenizer.encode_batch(batch), strict=True):
                row = np.array([*before, *ids, *after], dtype)
                file.write(row.data)
                lengths.append(len(row))
                sizes.append(len(text) if text.isascii() else len(text.encode()))
            bar.advance(len(batch))
    offsets = np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)]).astype(np.int64)
    _add_header(raw, folder / "tokens.npy", dtype, int(offsets[-1]))
    np.save(folder / "offsets.npy", offsets)
    np.save(folder / "sizes.npy", np.array(sizes, np.int64))
    digests = {name: _sha256(folder / name) for name in _FILES}
    (folder / "sha256.json").write_text(json.dumps(digests, indent=1) + "\n")


def _add_header(raw: Path, final: Path, dtype: np.dtype, length: int) -> None:
    """Makes an .npy file of bare numbers, whose count is known only at the end."""
    header = {"descr": dtype.str, "fortran_order": False, "shape": (length,)}
    with open(final, "wb") as file, open(raw, "rb") as numbers:
        np.lib.format.write_array_header_1_0(file, header)
        shutil.copyfileobj(numbers, file, 2**20)
    raw.unlink()


def _damage(folder: Path) -> str:
    """What is wrong with a cache folder; "" if nothing is."""
    try:
        digests = json.loads((folder / "sha256.json").read_text())
        wrong = [name for name in _FILES if _sha256(folder / name) != digests[name]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        return f"{type(error).__name__}: {error}"
    return f"sha256 of {', '.join(wrong)} differs" if wrong else ""


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
