"""Tokenizers: what is trained is the same everywhere, what is published is read as it was meant."""

import functools
import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tokenizers as library

from bigjax.core.errors import UserError
from bigjax.data import token_cache
from bigjax.data.tokenizers import open_tokenizer

ROOT = Path(__file__).parent.parent.parent
LINE = "the cat sat on a mat while naïve dogs ran and barked at every passing car"
TEXTS = [" ".join(np.random.default_rng(i).permutation(LINE.split())) + "." for i in range(60)]


class Texts:
    """A corpus to train on that counts how often it is read."""

    def __init__(self, texts=tuple(TEXTS)):
        self.given, self.reads = list(texts), 0

    def texts(self):
        self.reads += 1
        return iter(self.given)

    def fingerprint(self):
        return str(hash(tuple(self.given)))


@pytest.mark.parametrize("name", ["bpe-300", "wordpiece-120", "unigram-80"])
def test_text_survives_encoding_and_decoding(name, tmp_path):
    tokenizer = open_tokenizer(name, Texts(), str(tmp_path))
    assert tokenizer.vocab_size <= int(name.partition("-")[2])
    text = "the naïve dogs sat on a passing car."
    (ids,) = tokenizer.encode_batch([text])
    assert len(ids) < len(text)
    assert tokenizer.decode(ids).replace("naive", "naïve") == text
    assert all(0 <= i < tokenizer.vocab_size for i in ids)


def test_byte_level_bpe_encodes_what_it_never_saw(tmp_path):
    tokenizer = open_tokenizer("bpe-300", Texts(), str(tmp_path))
    text = "Ωmega 漢字 \t\x00 🙂\n"
    assert tokenizer.decode(tokenizer.encode_batch([text])[0]) == text


TRAIN = """
import sys
from bigjax.data import tokenizers
texts = sys.stdin.read().splitlines()
for kind, size in (("bpe", 300), ("wordpiece", 120), ("unigram", 80)):
    print(tokenizers.Tokenizer(tokenizers._TRAIN[kind](size, iter(texts))).fingerprint)
"""


def test_training_gives_the_same_tokenizer_in_every_process():
    command = [sys.executable, "-c", TRAIN]
    run = dict(input="\n".join(TEXTS), capture_output=True, text=True, cwd=ROOT, check=True)
    runs = [subprocess.run(command, **run).stdout.split() for _ in range(3)]
    assert len(runs[0]) == 3 and runs[0] == runs[1] == runs[2]


def test_a_tokenizer_is_trained_once_for_each_content(tmp_path):
    first, again, other = Texts(), Texts(), Texts(TEXTS[:30])
    names = [
        open_tokenizer("bpe-300", texts, str(tmp_path)).fingerprint
        for texts in (first, again, other)
    ]
    assert (first.reads, again.reads, other.reads) == (1, 0, 1)
    assert names[0] == names[1] != names[2]


@pytest.mark.parametrize("name", ["bpe-100", "wordpiece-20", "unigram-6"])
def test_a_vocabulary_that_is_too_small_is_one_clear_line(name, tmp_path):
    with pytest.raises(UserError, match=f"'{name}'") as caught:
        open_tokenizer(name, Texts(), str(tmp_path))
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.rglob("tokenizer.json"))


def bert_tokenizer(folder):
    """A tokenizer.json as Hugging Face saves one: it pads and cuts off, as all-MiniLM's does."""
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    vocab = {token: i for i, token in enumerate([*special, "a", "cat", "dog", "##s"])}
    made = library.Tokenizer(library.models.WordPiece(vocab, unk_token="[UNK]"))
    made.pre_tokenizer = library.pre_tokenizers.BertPreTokenizer()
    made.add_special_tokens(special)
    made.post_processor = library.processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
    )
    made.enable_padding(length=128)
    made.enable_truncation(2)
    made.save(str(folder / "tokenizer.json"))


def test_a_published_tokenizer_keeps_its_ids_and_templates(tmp_path):
    bert_tokenizer(tmp_path)
    tokenizer = open_tokenizer(str(tmp_path))
    assert tokenizer.encode_batch(["a cat dogs zebra"]) == [[5, 6, 7, 8, 1]]
    assert (tokenizer.pad, tokenizer.cls, tokenizer.sep, tokenizer.mask) == (0, 2, 3, 4)
    assert (tokenizer.bos, tokenizer.eos) == (None, None)
    assert (tokenizer.start, tokenizer.end) == (2, 3)
    assert (tokenizer.single.before, tokenizer.single.after) == ((2,), (3,))
    pair = tokenizer.pair
    assert (pair.before, pair.between, pair.after, pair.second_type) == ((2,), (3, 3), (3,), 1)


def test_names_in_tokenizer_config_go_before_usual_ones(tmp_path):
    bert_tokenizer(tmp_path)
    settings = {"eos_token": {"content": "dog"}, "bos_token": "cat"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    tokenizer = open_tokenizer(str(tmp_path))
    assert (tokenizer.bos, tokenizer.eos, tokenizer.cls) == (6, 7, 2)


@pytest.mark.parametrize("content", ["", "{", "no json", '{"version": "1.0"}', "[]"])
def test_a_file_that_is_no_tokenizer_is_one_clear_line(tmp_path, content):
    (tmp_path / "tokenizer.json").write_text(content)
    with pytest.raises(UserError, match=r"tokenizer\.json is no tokenizer\.json") as caught:
        open_tokenizer(str(tmp_path))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["/nowhere", "wordpeice", "bert"])
def test_an_unknown_tokenizer_says_what_there_is(tmp_path, name):
    with pytest.raises(UserError, match="bpe-4096") as caught:
        open_tokenizer(name, Texts(), str(tmp_path))
    assert "\n" not in str(caught.value)


def test_weights_that_were_fetched_are_found_by_name(tmp_path):
    folder = tmp_path / "weights" / "small"
    folder.mkdir(parents=True)
    bert_tokenizer(folder)
    assert open_tokenizer("small", data_dir=str(tmp_path)).mask == 4


@pytest.fixture
def bpe(tmp_path):
    return open_tokenizer("bpe-300", Texts(), str(tmp_path))


def tokenize(bpe, tmp_path, texts, fingerprint="x", **options):
    return token_cache.tokenize_once(
        bpe, [lambda: iter(texts)], fingerprint, data_dir=str(tmp_path), **options
    )


def test_the_cache_holds_what_the_library_gives(bpe, tmp_path):
    found = tokenize(bpe, tmp_path, TEXTS, whole=True)
    expected = bpe._library.encode_batch(TEXTS)
    start, end = bpe.token(bpe.start), bpe.token(bpe.end)
    for number, one in enumerate(expected):
        ids = found.flat[found.offsets[number] : found.offsets[number + 1]]
        assert [bpe.token(int(i)) for i in ids] == [start, *one.tokens, end]
    assert found.sizes.tolist() == [len(text.encode()) for text in TEXTS]
    assert isinstance(found.flat, np.memmap) and found.flat.dtype == np.uint16


def test_texts_are_tokenized_once(bpe, tmp_path):
    first = tokenize(bpe, tmp_path, TEXTS)
    again = tokenize(bpe, tmp_path, ["never read"])
    other = tokenize(bpe, tmp_path, TEXTS[:3], fingerprint="y")
    assert np.array_equal(first.flat, again.flat)
    assert len(other) == 3 and other.fingerprint != first.fingerprint == again.fingerprint


@pytest.mark.parametrize("name", ["tokens.npy", "offsets.npy", "sizes.npy", "sha256.json"])
def test_a_damaged_cache_is_told_left_and_made_again_beside_it(bpe, tmp_path, capsys, name):
    opened = tokenize(bpe, tmp_path, TEXTS).flat
    expected = np.array(opened)
    (path,) = (tmp_path / "cache" / "tokens").glob(f"*/{name}")
    damage(path)
    found = np.array(tokenize(bpe, tmp_path, TEXTS).flat)
    assert np.array_equal(found, expected) and path.exists()
    assert f"{path.parent} is damaged" in capsys.readouterr().err
    assert np.array_equal(tokenize(bpe, tmp_path, ["never read"]).flat, expected)
    shutil.rmtree(path.parent)
    tokenize(bpe, tmp_path, TEXTS)
    assert capsys.readouterr().err.count("is damaged") == 1  # gone with the folder


def damage(path):
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content if path.suffix != ".json" else content[:20])


def test_a_disk_that_damages_all_it_is_given_is_an_error(bpe, tmp_path, capsys):
    for _ in range(3):
        tokenize(bpe, tmp_path, TEXTS)
        for path in (tmp_path / "cache" / "tokens").glob("*/tokens.npy"):
            content = path.read_bytes()
            path.write_bytes(content[:-1] + b"\xff")
    with pytest.raises(UserError, match="is the disk sound"):
        tokenize(bpe, tmp_path, TEXTS)


def test_a_text_that_cannot_be_read_leaves_no_cache(bpe, tmp_path):
    def texts():
        yield "good"
        raise UserError("line 2 is bad")

    with pytest.raises(UserError, match="line 2"):
        token_cache.tokenize_once(bpe, [texts], "bad", data_dir=str(tmp_path))
    assert list((tmp_path / "cache" / "tokens").iterdir()) == []


def shards_of(read, stop_at=None):
    """Three shards of TEXTS; each is noted in `read` as it is read, and one of them is where a process stops."""

    def texts(number):
        read.append(number)
        if number == stop_at:
            raise KeyboardInterrupt
        yield from TEXTS[number::3]

    return [functools.partial(texts, number) for number in range(3)]


def test_the_bytes_are_the_same_however_many_shards_are_tokenized_at_once(bpe, tmp_path):
    in_order = [text for number in range(3) for text in TEXTS[number::3]]
    expected = tokenize(bpe, tmp_path / "one stream", in_order, whole=True)
    files = []
    for workers in (1, 3):
        folder = tmp_path / str(workers)
        found = token_cache.tokenize_once(
            bpe, shards_of([]), "x", whole=True, data_dir=str(folder), workers=workers
        )
        assert np.array_equal(found.flat, expected.flat)
        assert np.array_equal(found.offsets, expected.offsets)
        (cache,) = (folder / "cache" / "tokens").iterdir()  # and nothing beside it
        files.append({path.name: path.read_bytes() for path in cache.iterdir()})
    assert files[0] == files[1] and len(files[0]) == 4


def test_a_stopped_process_leaves_its_shards_for_the_next(bpe, tmp_path):
    def tokenized(shards):
        return token_cache.tokenize_once(bpe, shards, "x", data_dir=str(tmp_path), workers=1)

    with pytest.raises(KeyboardInterrupt):
        tokenized(shards_of([], stop_at=2))
    (parts,) = (tmp_path / "cache" / "tokens").glob("*.shards")
    damage(parts / "000001" / "tokens.raw")  # as a loss of power may leave it
    read = []
    found = tokenized(shards_of(read))
    assert read == [1, 2] and not parts.exists()
    in_order = [text for number in range(3) for text in TEXTS[number::3]]
    other = tokenize(bpe, tmp_path, in_order, fingerprint="y")
    assert np.array_equal(found.flat, other.flat) and np.array_equal(found.sizes, other.sizes)


CACHE = """
import sys
import numpy as np
from bigjax.data import token_cache, tokenizers
class Texts:
    def texts(self): return iter(texts)
    def fingerprint(self): return "same"
texts = sys.stdin.read().splitlines()
folder = sys.argv[1]
tokenizer = tokenizers.open_tokenizer("bpe-300", Texts(), folder)
found = token_cache.tokenize_once(tokenizer, [Texts().texts], "same", data_dir=folder)
print(found.fingerprint, np.asarray(found.flat, np.int64).sum())
"""


def test_two_processes_may_train_and_tokenize_at_once(tmp_path):
    command = [sys.executable, "-c", CACHE, str(tmp_path)]
    pipes = dict(stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    both = [subprocess.Popen(command, cwd=ROOT, **pipes) for _ in range(2)]
    for process in both:
        process.stdin.write("\n".join(TEXTS))
        process.stdin.close()
        process.stdin = None
    told = [process.communicate(timeout=120) for process in both]
    assert told[0] == told[1] and told[0][0] and not told[0][1]
    assert len(list((tmp_path / "cache" / "tokens").iterdir())) == 1
    assert len(list((tmp_path / "cache" / "tokenizers").iterdir())) == 1


def test_a_saved_tokenizer_is_the_same_when_opened(tmp_path, bpe):
    bpe.save(tmp_path)
    assert open_tokenizer(str(tmp_path)).fingerprint == bpe.fingerprint
