"""Text to token ids and back: published tokenizers, and ones trained on the user's own corpus.

A thin layer over the `tokenizers` library, which is imported when a tokenizer is opened. It adds
which ids are special, a fingerprint, and training that is done once for each corpus.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from bigjax.core.errors import UserError, did_you_mean
from bigjax.data.sources import default_data_dir
from bigjax.run.files import publish

if TYPE_CHECKING:
    import tokenizers

KINDS = ("bpe", "wordpiece", "unigram")
# What special tokens are called where no tokenizer_config.json says so.
_USUAL = {
    "pad": ("[PAD]", "<pad>", "<|pad|>"),
    "bos": ("<s>", "<|begin_of_text|>", "<|startoftext|>"),
    "eos": ("</s>", "<|end_of_text|>", "<|endoftext|>"),
    "unk": ("[UNK]", "<unk>"),
    "cls": ("[CLS]",),
    "sep": ("[SEP]",),
    "mask": ("[MASK]", "<mask>"),
}


class TrainingText(Protocol):
    """What a tokenizer is trained on: the texts, and a name that changes when they do."""

    def texts(self) -> Iterator[str]: ...

    def fingerprint(self) -> str: ...


@dataclasses.dataclass(frozen=True)
class Template:
    """The special tokens around a text, or around the two of a pair, and the type of each part."""

    before: tuple[int, ...] = ()
    between: tuple[int, ...] = ()  # of a pair
    after: tuple[int, ...] = ()
    second_type: int = 0  # token type of the second text and what follows it


class Tokenizer:
    """Token ids of texts.

    Attributes:
      vocab_size: ids are below it.
      pad, bos, eos, unk, cls, sep, mask: ids of the special tokens; None where there is none.
      start, end: what begins and ends a document: bos, else cls, else eos; eos, else sep.
      special_ids: all ids of special tokens, sorted.
      single, pair: the templates that the published tokenizer puts around one text and two.
      fingerprint: sha256 (hex) of all that decides which ids a text gets.
    """

    def __init__(self, library: tokenizers.Tokenizer, names: dict[str, str] | None = None):
        library.no_padding()
        library.no_truncation()
        self._library = library
        self.vocab_size: int = 1 + max(library.get_vocab().values(), default=-1)
        names = names or {}
        ids = {key: self._first_id((names.get(key), *usual)) for key, usual in _USUAL.items()}
        self.pad, self.bos, self.eos, self.unk, self.cls, self.sep, self.mask = ids.values()
        self.start = _first(self.bos, self.cls, self.eos)
        self.end = _first(self.eos, self.sep)
        added = library.get_added_tokens_decoder()
        self.special_ids = sorted(number for number, token in added.items() if token.special)
        self.single, self.pair = self._template(None), self._template("a")
        content = library.to_str() + json.dumps(ids)
        self.fingerprint = hashlib.sha256(content.encode()).hexdigest()

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """Ids of each text, without special tokens around it; on all CPU cores.

        Raises:
          UserError: the tokenizer knows no token for a text, and none for what is unknown.
        """
        try:
            encoded = self._library.encode_batch_fast(texts, add_special_tokens=False)
        except Exception as error:  # the library raises bare Exception
            raise UserError(f"the tokenizer cannot encode the text: {error}") from None
        return [one.ids for one in encoded]

    def decode(self, ids: Iterable[int], skip_special: bool = True) -> str:
        """The text of ids; special tokens are left out unless asked for."""
        return self._library.decode([int(i) for i in ids], skip_special_tokens=skip_special)

    def token(self, number: int) -> str | None:
        """The token of an id, as the vocabulary spells it."""
        return self._library.id_to_token(number)

    def to_json(self) -> str:
        """The content of tokenizer.json."""
        return self._library.to_str()

    def save(self, folder: Path) -> None:
        """Writes tokenizer.json and tokenizer_config.json, which transformers reads too."""
        self._library.save(str(folder / "tokenizer.json"))
        names = {
            f"{key}_token": self.token(getattr(self, key))
            for key in _USUAL
            if getattr(self, key) is not None
        }
        settings = {"tokenizer_class": "PreTrainedTokenizerFast", **names}
        (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=1) + "\n")

    def _first_id(self, names: Iterable[str | None]) -> int | None:
        ids = (self._library.token_to_id(name) for name in names if name)
        return next((i for i in ids if i is not None), None)

    def _template(self, second: str | None) -> Template:
        """Learnt by encoding "a", or "a" and a second text, with special tokens."""
        encoded = self._library.encode("a", second)
        parts = encoded.sequence_ids  # None: special; 0, 1: first, second text
        first = [at for at, part in enumerate(parts) if part == 0]
        last = [at for at, part in enumerate(parts) if part == (0 if second is None else 1)]
        if not first or not last:  # "a" is no token here
            return Template()
        return Template(
            tuple(encoded.ids[: first[0]]),
            tuple(encoded.ids[first[-1] + 1 : last[0]]) if second else (),
            tuple(encoded.ids[last[-1] + 1 :]),
            encoded.type_ids[last[0]] if second else 0,
        )


def open_tokenizer(
    name: str, corpus: TrainingText | None = None, data_dir: str | None = None
) -> Tokenizer:
    """Opens a published tokenizer, or trains one.

    Args:
      name: a tokenizer.json, or a folder with one; the name of weights under DATA_DIR/weights; or
        "bpe-4096", "wordpiece-8192", "unigram-8000": a kind to train and the size of its vocabulary.
      corpus: what to train on, the train split of the data; kept under DATA_DIR/cache by its content.
      data_dir: default $TFDS_DATA_DIR or ~/tensorflow_datasets.

    Raises:
      UserError: there is no such tokenizer, it cannot be read, or its vocabulary is too small.
    """
    match = re.fullmatch(r"(\w+)-(\d+)", name)
    root = Path(default_data_dir(data_dir))
    if match and match[1] in KINDS:
        if corpus is None:
            raise UserError(f"tokenizer {name!r} has to be trained, and there is no corpus here")
        return _trained(match[1], int(match[2]), corpus, root / "cache" / "tokenizers")
    path = Path(os.path.expanduser(name))
    if not path.exists() and (root / "weights" / name).exists():
        path = root / "weights" / name
    if path.is_dir():
        path = path / "tokenizer.json"
    if not path.is_file():
        here = sorted(p.parent.name for p in (root / "weights").glob("*/tokenizer.json"))
        raise UserError(
            f"tokenizer {name!r}: there is no {path}{did_you_mean(name, [*here, *KINDS])}; give a "
            f"tokenizer.json or its folder, one of {', '.join(here) or 'no weights'} under "
            f"{root / 'weights'}, or one to train: bpe-4096, wordpiece-8192, unigram-8000"
        )
    return _read(path)


def _read(path: Path) -> Tokenizer:
    from tokenizers import Tokenizer as Library

    names = {}
    for file in ("special_tokens_map.json", "tokenizer_config.json"):
        try:
            settings = json.loads((path.parent / file).read_text(encoding="utf-8"))
        except FileNotFoundError:
            continue
        except (ValueError, RecursionError) as error:
            raise UserError(f"{path.parent / file} is no JSON: {error}") from None
        if not isinstance(settings, dict):
            raise UserError(f"{path.parent / file} holds no JSON object")
        for key in _USUAL:
            token = settings.get(f"{key}_token")
            token = token.get("content") if isinstance(token, dict) else token
            names.update({key: token} if isinstance(token, str) and token else {})
    try:
        return Tokenizer(Library.from_file(str(path)), names)
    except Exception as error:  # the library raises bare Exception
        raise UserError(f"{path} is no tokenizer.json that can be read: {error}") from None


def _trained(kind: str, size: int, corpus: TrainingText, cache: Path) -> Tokenizer:
    """Trains, or finds what was trained on the same texts with the same library."""
    import tokenizers

    identity = f"{kind} {size} {corpus.fingerprint()} tokenizers {tokenizers.__version__}"
    folder = cache / hashlib.sha256(identity.encode()).hexdigest()[:32]
    if not folder.exists():
        library = _TRAIN[kind](size, corpus.texts())
        found = library.get_vocab_size()
        if found > size:
            raise UserError(
                f"tokenizer '{kind}-{size}': {size} is too small a vocabulary; the characters and "
                f"special tokens of this corpus are {found} already"
            )
        publish(folder, Tokenizer(library).save)
    return _read(folder / "tokenizer.json")


def _train_bpe(size: int, texts: Iterator[str]) -> Any:
    """Byte-level BPE (Radford et al. 2019, section 2.2): any text, no unknown token."""
    from tokenizers import Tokenizer as Library
    from tokenizers import decoders, models, pre_tokenizers, trainers

    library = Library(models.BPE())
    library.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    library.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=["<|endoftext|>", "<|pad|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    library.train_from_iterator(texts, trainer)
    return library


def _train_wordpiece(size: int, texts: Iterator[str]) -> Any:
    """WordPiece over lower-cased words, with BERT's special tokens (Devlin et al. 2019).

    The library numbers the pieces inside words ("##a") as it meets words in a hash table, anew in
    each process, and merges of equal count follow the numbers. So a first pass over the words only
    finds the characters, and the second is given them in order.
    """
    from tokenizers import Tokenizer as Library
    from tokenizers import decoders, models, normalizers, pre_tokenizers, processors, trainers

    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    corpus = list(texts)

    def trained(size: int, first: list[str]) -> Any:
        library = Library(models.WordPiece(unk_token="[UNK]"))
        library.normalizer = normalizers.BertNormalizer(lowercase=True)
        library.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        library.decoder = decoders.WordPiece()
        trainer = trainers.WordPieceTrainer(
            vocab_size=size, special_tokens=first, limit_alphabet=1000, show_progress=False
        )
        library.train_from_iterator(corpus, trainer)
        return library

    library = trained(0, special)
    pieces = [piece for piece in library.get_vocab() if piece.startswith("##")]
    vocab = trained(size, [*special, *sorted(pieces)]).get_vocab()
    library.model = models.WordPiece(vocab, unk_token="[UNK]")
    library.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", special.index("[CLS]")), ("[SEP]", special.index("[SEP]"))],
    )
    return library


def _train_unigram(size: int, texts: Iterator[str]) -> Any:
    """Unigram pieces that keep their spaces (Kudo 2018; SentencePiece), with T5's end token."""
    from tokenizers import Tokenizer as Library
    from tokenizers import decoders, models, normalizers, pre_tokenizers, processors, trainers

    special = ["<pad>", "<s>", "</s>", "<unk>"]
    library = Library(models.Unigram())
    library.normalizer = normalizers.NFKC()
    library.pre_tokenizer = pre_tokenizers.Metaspace()
    library.decoder = decoders.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=size, special_tokens=special, unk_token="<unk>", show_progress=False
    )
    try:
        library.train_from_iterator(texts, trainer)
    except Exception as error:  # the library raises bare Exception
        raise UserError(f"tokenizer 'unigram-{size}' cannot be trained: {error}") from None
    pieces = json.loads(library.to_str())["model"]["vocab"]
    pieces = [(piece, 0.0) for piece in special] + _in_order(pieces[len(special) :])
    library.model = models.Unigram(pieces, special.index("<unk>"), False)
    library.post_processor = processors.TemplateProcessing(
        single="$A </s>", pair="$A </s> $B </s>", special_tokens=[("</s>", special.index("</s>"))]
    )
    return library


def _in_order(pieces: list[tuple[str, float]]) -> list[tuple[str, float]]:
    """(piece, log probability) pairs as every process has them.

    Sums over threads differ in the last digits. A character that the model gave no probability gets
    the lowest, plus 0.0001 for each before it in a hash table: all get the lowest here.
    """
    lowest = min(score for _, score in pieces)
    highest = lowest + 1e-4 * sum(len(piece) == 1 for piece, _ in pieces)
    scores = {
        piece: round(lowest if len(piece) == 1 and score <= highest else score, 6)
        for piece, score in pieces
    }
    return sorted(scores.items(), key=lambda item: (-item[1], item[0]))


_TRAIN = {"bpe": _train_bpe, "wordpiece": _train_wordpiece, "unigram": _train_unigram}


def _first(*ids: int | None) -> int | None:
    return functools.reduce(lambda found, i: i if found is None else found, ids)
