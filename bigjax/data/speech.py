"""Speech: sounds in .wav files, and what is said in them. A spectrogram is made when its row is read."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from bigjax.core.errors import UserError
from bigjax.data.files import read_rows
from bigjax.data.handed import Inputs, good_files
from bigjax.data.sound import log_mel, read_wav
from bigjax.data.sources import Features
from bigjax.data.splits import files_of, subsplit
from bigjax.data.text_files import text_of
from bigjax.data.text_rows import padded
from bigjax.data.text_source import Columns, TextSource
from bigjax.data.tokenizers import Tokenizer


@dataclasses.dataclass(frozen=True)
class Speech(TextSource):
    """ "sound" float32 (frames, mel), "target" and "segments" int32 (T,), as a Whisper reads and writes them.

    `path` is that of a table: "data/{split}.csv" with the fields `sound`, the path of a .wav file from
    where the table is, and `text`. A target begins with `prompt` and ends with the tokenizer's end token,
    which is kept where the text is cut off.

    Attributes:
      length: T. (Of `predict`: the longest text that is written.)
      mel: bands of a spectrogram. frames: steps of 10 ms; what is longer is cut off, what is shorter
        filled up with silence. 3000 for Whisper's 30 seconds.
      prompt: tokens that the model is given and does not write; default: the tokenizer's start token. Of
        Whisper's English models "<|startoftranscript|><|notimestamps|>", with `task.given=2`.
      sound, text: the fields.
    """

    mel: int = 80
    frames: int = 3000
    prompt: str = ""
    sound: str = "sound"
    text: str = "text"

    def text_fields(self) -> tuple[str, ...]:
        return (self.text,)

    def reader(self, tokenizer: Tokenizer) -> Callable[[Path], Inputs]:
        """What reads a user's sounds where no split is at hand."""
        return SpeechRows(self, tokenizer, (), ()).read_inputs

    def open(self, split: str) -> SpeechRows:
        """Opens a split or a part of one.

        Raises:
          UserError: a table is not there, or a row's text or file is not.
        """
        corpus, rows = self.corpus(), []
        if not hasattr(corpus, "files"):
            raise UserError(f"path: {self.path}: speech is read from a table that names .wav files")

        def length(name: str) -> int:
            for table in files_of(corpus.files, name, corpus.name):
                for where, row in read_rows(table):
                    file = table.parent / text_of(row, self.sound, where)
                    if not file.is_file():
                        raise UserError(f"{where}: {self.sound!r}: there is no file {file}")
                    rows.append((file, text_of(row, self.text, where)))
            return len(rows)

        _, which = subsplit(split, length)
        files, texts = zip(*rows[which], strict=True)
        return SpeechRows(self, self.open_tokenizer(), files, texts)


class SpeechRows:
    """A Source of sound files and their texts.

    Attributes:
      tokenizer: of the targets; vocab_size: their ids are below it; start: what they begin with.
      texts: what is said in each; "" of a user's file.
    """

    class_names = num_classes = None

    def __init__(
        self, config: Speech, tokenizer: Tokenizer, files: Sequence[Path], texts: Sequence[str]
    ) -> None:
        self._config, self._files, self.texts = config, files, texts
        self.tokenizer, self.vocab_size = tokenizer, tokenizer.vocab_size
        self.start, self._columns = self._targets()
        row = ((config.length,), np.dtype(np.int32))
        sound = ((config.frames, config.mel), np.dtype(np.float32))
        self.features: Features = {"sound": sound, "target": row, "segments": row}

    def __len__(self) -> int:
        return len(self._files)

    def read(self, ids: np.ndarray) -> Columns:
        size = (self._config.mel, self._config.frames)
        sounds = [log_mel(read_wav(self._files[i]), *size) for i in ids]
        return {"sound": np.stack(sounds), **{key: x[ids] for key, x in self._columns.items()}}

    def fingerprint(self) -> str:
        """Of texts, tokenizer, and the files' names and sizes."""
        digest = hashlib.sha256(f"{self._config} {self.tokenizer.fingerprint}".encode())
        for file, text in zip(self._files, self.texts, strict=True):
            digest.update(f"{file.name}:{file.stat().st_size}:{text};".encode())
        return digest.hexdigest()

    def read_inputs(self, path: Path) -> Inputs:
        """The .wav files of a folder and its folders, or one; those that cannot be read are told."""
        files = sorted(path.rglob("*.wav")) if path.is_dir() else [path]
        good, problems = good_files(path, files, _reason)
        source = SpeechRows(self._config, self.tokenizer, list(good.values()), [""] * len(good))
        return Inputs(source, list(good), problems)

    def _targets(self) -> tuple[int, Columns]:
        tokenizer, length = self.tokenizer, self._config.length
        start = 0 if tokenizer.start is None else tokenizer.start
        before = [start]
        if self._config.prompt:
            (before,) = tokenizer.encode_batch([self._config.prompt])
        after = [] if tokenizer.end is None else [tokenizer.end]
        room = length - len(before) - len(after)
        if room < 1:
            raise UserError(f"length: {length} leaves no room for a text after the prompt")
        ids = tokenizer.encode_batch(list(self.texts))
        rows = [[*before, *own[:room], *after] for own in ids]
        target, segments = padded(rows, length, tokenizer.pad or 0)
        return before[0], {"target": target, "segments": segments}


def _reason(file: Path) -> str:
    """Why a file cannot be read; "" if it can."""
    try:
        read_wav(file)
    except UserError as error:
        return str(error).removeprefix(f"{file}: ")
    return ""
