"""Text sources: rows against the tokenizers library itself, and bad input told in one line."""

import functools
import json

import jax
import numpy as np
import pytest
import tokenizers as library

from bigjax.config import names
from bigjax.core.errors import UserError
from bigjax.core.settings import Data
from bigjax.core.transforms import apply_transforms
from bigjax.data import sources
from bigjax.data.documents import Documents
from bigjax.data.sources import TFDS
from bigjax.data.text import LabelledText, SentencePairs, TaggedText, TextPairs
from bigjax.data.text_transforms import MaskTokens

LINES = [
    "The cat sat on the mat.",
    "Dogs bark, naïvely!",
    "A much longer text about a cat and a dog that sat on a mat.",
    "Rain.",
]


@pytest.fixture
def bert(tmp_path, monkeypatch):
    """A folder with a BERT-like tokenizer; and no data but what the test writes."""
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "data"))
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    words = sorted({word for line in LINES for word in _words(line)})
    vocab = {token: i for i, token in enumerate([*special, *words, "##s", "tail"])}
    made = library.Tokenizer(library.models.WordPiece(vocab, unk_token="[UNK]"))
    made.normalizer = library.normalizers.BertNormalizer(lowercase=True)
    made.pre_tokenizer = library.pre_tokenizers.BertPreTokenizer()
    made.decoder = library.decoders.WordPiece()
    made.add_special_tokens(special)
    made.post_processor = library.processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
    )
    (tmp_path / "bert").mkdir()
    made.save(str(tmp_path / "bert" / "tokenizer.json"))
    return str(tmp_path / "bert")


def _words(line):
    normal = library.normalizers.BertNormalizer(lowercase=True).normalize_str(line)
    return [word for word, _ in library.pre_tokenizers.BertPreTokenizer().pre_tokenize_str(normal)]


def reference(bert, length, *texts):
    """What the library gives with truncation and padding of its own."""
    made = library.Tokenizer.from_file(f"{bert}/tokenizer.json")
    made.enable_truncation(length, strategy="longest_first")
    made.enable_padding(length=length)
    return [made.encode(*one) for one in zip(*texts, strict=True)]


def write_jsonl(folder, split, rows):
    folder.mkdir(exist_ok=True, parents=True)
    path = folder / f"{split}.jsonl"
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    return path


def open_splits(target, splits):
    return sources.open_splits(Data(target, splits), splits)


def everything(source):
    return source.read(np.arange(len(source)))


@pytest.mark.parametrize("length", [8, 32])
def test_labelled_text_equals_the_librarys_own_rows(bert, tmp_path, length):
    rows = [{"text": line, "label": i % 3} for i, line in enumerate(LINES)]
    write_jsonl(tmp_path / "set", "train", rows)
    source = LabelledText(str(tmp_path / "set"), bert, length=length).open("train")
    found, expected = everything(source), reference(bert, length, LINES)
    assert found["tokens"].tolist() == [one.ids for one in expected]
    assert found["segments"].tolist() == [one.attention_mask for one in expected]
    assert found["label"].tolist() == [0, 1, 2, 0] and source.num_classes == 3
    assert source.texts == LINES


@pytest.mark.parametrize("length", [7, 11, 48])
def test_a_pair_in_one_row_equals_the_librarys_own(bert, tmp_path, length):
    """The ids and types where both fit; where they do not, as many tokens of as equal texts."""
    pairs = list(zip(LINES, LINES[::-1], strict=True))
    rows = [{"text": a, "other": b, "label": 0.5} for a, b in pairs]
    write_jsonl(tmp_path / "set", "train", rows)
    source = LabelledText(str(tmp_path / "set"), bert, length=length, pair="other").open("train")
    found = everything(source)
    for row, one in enumerate(reference(bert, length, LINES, LINES[::-1])):
        assert found["segments"][row].tolist() == one.attention_mask
        if not one.overflowing:
            assert found["tokens"][row].tolist() == one.ids
            assert found["types"][row].tolist() == one.type_ids
        else:
            second = int(found["types"][row].sum())
            assert abs(second - sum(one.type_ids)) <= 1
    assert found["label"].dtype == np.float32


def test_labels_are_numbered_as_in_train_in_every_split(bert, tmp_path):
    """Of train one label is no number, of test all are: the same text has the same class."""
    labels = {"train": ["1", "2", "other", "4"], "test": ["2", "1", "4", "1"], "odd": ["3"] * 4}
    for split, its in labels.items():
        rows = [{"text": t, "label": n} for t, n in zip(LINES, its, strict=True)]
        write_jsonl(tmp_path / "set", split, rows)
    target = LabelledText(str(tmp_path / "set"), bert, length=16)
    opened = open_splits(target, {"train": "train", "test": "test[:50%]"})
    assert everything(opened["train"])["label"].tolist() == [0, 1, 3, 2]
    assert everything(opened["test"])["label"].tolist() == [1, 0]
    assert opened["test"].class_names == ("1", "2", "4", "other")
    assert opened["test"].tokenizer is opened["train"].tokenizer  # which is read once
    with pytest.raises(UserError, match=r"odd.jsonl, line 1: 'label' is '3', no class of train"):
        target.open("odd")
    part = open_splits(target, {"train": "train[:50%]", "test": "test[:50%]"})
    assert everything(part["train"])["label"].tolist() == [1, 2] and part["train"].num_classes == 3


@pytest.mark.parametrize(
    ("labels", "dtype"),
    [([True, False], np.int32), ([1, 0], np.int32), (["1", "0"], np.int32), ([1, 0.5], np.float32)],
)
def test_labels_are_integers_where_all_are_written_so(bert, tmp_path, labels, dtype):
    rows = [{"text": "cat", "label": label} for label in labels]
    write_jsonl(tmp_path / "set", "train", rows)
    found = everything(LabelledText(str(tmp_path / "set"), bert, length=8).open("train"))["label"]
    assert found.dtype == dtype and found.tolist() == [float(label) for label in labels]


def test_csv_holds_the_same_as_jsonl(bert, tmp_path):
    rows = [{"text": line, "label": i} for i, line in enumerate(LINES)]
    write_jsonl(tmp_path / "set", "train", rows)
    quoted = "".join(f'"{row["text"]}",{row["label"]}\r\n' for row in rows)
    (tmp_path / "train.csv").write_text("text,label\r\n" + quoted)
    found = [
        everything(LabelledText(path, bert, length=16).open("train"))
        for path in (str(tmp_path / "set"), str(tmp_path / "{split}.csv"))
    ]
    for key in found[0]:
        assert np.array_equal(found[0][key], found[1][key])


def test_the_first_token_of_a_word_carries_its_tag(bert, tmp_path):
    rows = [{"words": ["cats", "sat", "tail"], "tags": ["N", "V", "N"]}]
    write_jsonl(tmp_path / "set", "train", rows)
    write_jsonl(tmp_path / "set", "test", [{"words": "rain", "tags": "V"}])
    write_jsonl(tmp_path / "set", "odd", [{"words": "rain", "tags": "A"}])
    source = TaggedText(str(tmp_path / "set"), bert, length=8).open("train")
    found = everything(source)
    tokens = [source.tokenizer.token(i) for i in found["tokens"][0]]
    assert tokens == ["[CLS]", "cat", "##s", "sat", "tail", "[SEP]", "[PAD]", "[PAD]"]
    assert source.class_names == ("N", "V")
    assert found["labels"][0].tolist() == [-100, 0, -100, 1, 0, -100, -100, -100]
    test = everything(TaggedText(str(tmp_path / "set"), bert, length=8).open("test"))
    assert test["labels"][0].max() == 1
    with pytest.raises(UserError, match=r"odd.jsonl, line 1: a tag is 'A', no class of train"):
        TaggedText(str(tmp_path / "set"), bert, length=8).open("odd")
    short = everything(TaggedText(str(tmp_path / "set"), bert, length=4).open("train"))
    assert short["labels"][0].tolist() == [-100, 0, -100, -100]


def test_the_target_begins_and_ends_even_where_it_is_cut_off(bert, tmp_path):
    rows = [{"source": LINES[2], "target": LINES[0]}, {"source": LINES[3], "target": LINES[3]}]
    write_jsonl(tmp_path / "set", "train", rows)
    source = TextPairs(str(tmp_path / "set"), bert, length=12, target_length=5).open("train")
    found = everything(source)
    shown = [[source.tokenizer.token(i) for i in row] for row in found["target"]]
    assert shown == [
        ["[CLS]", "the", "cat", "sat", "[SEP]"],
        ["[CLS]", "rain", ".", "[SEP]", "[PAD]"],
    ]
    assert found["target_segments"].tolist() == [[1, 1, 1, 1, 1], [1, 1, 1, 1, 0]]
    assert found["source"].tolist() == [
        one.ids for one in reference(bert, 12, [LINES[2], LINES[3]])
    ]


def test_sentence_pairs_lie_side_by_side(bert, tmp_path):
    rows = [{"a": a, "b": b, "score": 3} for a, b in zip(LINES, LINES[::-1], strict=True)]
    write_jsonl(tmp_path / "set", "train", rows)
    source = SentencePairs(str(tmp_path / "set"), bert, length=24, label="score").open("train")
    found = everything(source)
    for key, lines in (("a", LINES), ("b", LINES[::-1])):
        assert found[key].tolist() == [one.ids for one in reference(bert, 24, lines)]
    assert found["label"].tolist() == [3.0] * 4


def documents(tmp_path, **options):
    write_jsonl(tmp_path / "set", "train", [{"text": line} for line in LINES])
    return Documents(str(tmp_path / "set"), "bpe-280", **options)


@pytest.mark.parametrize("pack", [True, False])
def test_documents_hold_every_byte_of_their_texts(bert, tmp_path, pack):
    source = documents(tmp_path, length=8, pack=pack).open("train")
    found = everything(source)
    assert found["bytes"].sum() == sum(len(line.encode()) for line in LINES)
    if pack:  # a row's first token is the last of the row before
        read = np.concatenate([found["tokens"][:, 1:].ravel(), [found["tokens"][0, 0]]])
        real = np.concatenate([found["segments"][:, 1:].ravel() > 0, [True]])
        text = "".join(f"{line}<|endoftext|><|endoftext|>" for line in LINES)
        assert source.tokenizer.decode(read[real], skip_special=False) == text


def test_a_part_of_the_documents_is_those_documents(bert, tmp_path):
    whole = documents(tmp_path, length=8)
    parts = [whole.open("train[:50%]"), whole.open("train[50%:]")]
    assert [part.texts for part in parts] == [LINES[:2], LINES[2:]]
    sizes = [everything(part)["bytes"].sum() for part in parts]
    assert sizes == [sum(len(line.encode()) for line in part.texts) for part in parts]
    assert parts[0].fingerprint() != parts[1].fingerprint()


@pytest.mark.parametrize(
    ("unit", "expected"),
    [
        ("file", ["one\ntwo\n\n three \n\n"]),
        ("paragraph", ["one\ntwo", " three "]),
        ("line", ["one", "two", " three "]),
    ],
)
def test_a_text_file_is_documents_as_the_unit_says(bert, tmp_path, unit, expected):
    (tmp_path / "some.txt").write_bytes(b"\xef\xbb\xbfone\r\ntwo\n\n three \n\n\n")
    source = Documents(str(tmp_path / "some.txt"), "bpe-280", length=8, unit=unit).open("train")
    assert source.texts == expected


def test_a_folder_of_text_files_is_a_split(bert, tmp_path):
    (tmp_path / "set" / "train").mkdir(parents=True)
    for number, line in enumerate(LINES):
        (tmp_path / "set" / "train" / f"{number}.txt").write_text(line)
    assert Documents(str(tmp_path / "set"), "bpe-280").open("train").texts == LINES


def test_a_tfds_text_set_is_read_without_tensorflow(bert, tmp_path):
    import tensorflow_datasets as tfds

    from bigjax.data import builders

    class Reviews(builders.ArraysBuilder, skip_registration=True):
        name = "small_reviews"
        about = "four texts"

        def feature_dict(self):
            return {
                "text": tfds.features.Text(),
                "label": tfds.features.ClassLabel(names=["bad", "good"]),
            }

        def splits(self):
            return {"train": {"text": LINES, "label": [0, 1, 1, 0]}}

    builders.prepare(Reviews, tmp_path / "data")
    source = LabelledText("tfds:small_reviews", bert, length=16).open("train[1:]")
    assert source.texts == LINES[1:]
    assert everything(source)["label"].tolist() == [1, 1, 0]
    assert source.class_names == ("bad", "good")
    assert TFDS("small_reviews").open("train").num_classes == 2


def targets(tmp_path, bert):
    rows = [
        {"text": line, "label": i, "source": line, "target": line, "a": line, "b": line}
        | {"words": line.split(), "tags": ["x"] * len(line.split())}
        for i, line in enumerate(LINES)
    ]
    write_jsonl(tmp_path / "set", "train", rows)
    path = str(tmp_path / "set")
    return [
        Documents(path, bert, length=12),
        Documents(path, "bpe-280", length=12, pack=False),
        LabelledText(path, bert, length=12),
        LabelledText(path, bert, length=12, pair="a"),
        TaggedText(path, bert, length=12),
        TextPairs(path, bert, length=12, target_length=6),
        SentencePairs(path, bert, length=12, label="label"),
    ]


def test_a_users_lines_become_columns_like_the_sources(bert, tmp_path):
    for target in targets(tmp_path, bert):
        source = target.open("train")
        lines = [f"{line}\t{line}" if getattr(target, "pair", None) else line for line in LINES]
        columns, rows = source.encode(lines), everything(source)
        assert set(columns) == set(rows)
        for key in rows:
            assert columns[key].dtype == rows[key].dtype
            assert columns[key].shape == (len(LINES), *rows[key].shape[1:])
        if type(target) in (LabelledText, SentencePairs):
            key = "a" if "a" in rows else "tokens"
            assert np.array_equal(columns[key], rows[key])


def test_a_prompt_may_hold_special_tokens(bert, tmp_path):
    source = documents(tmp_path, length=16, prompt="<|endoftext|>Q: {}\nA:").open("train")
    tokens = source.encode(["cat"])["tokens"][0]
    assert tokens[0] == source.tokenizer.eos and tokens[1] != source.tokenizer.eos
    assert source.tokenizer.decode(tokens).startswith("Q: cat\nA:")


BAD = [
    ("jsonl", b'{"text": "a cat", "label": 0}\n{"text": "do', ["train.jsonl, line 2", "cut off"]),
    ("jsonl", b'{"text": "a cat", "label": 0}\n["cat"]\n', ["line 2", "object"]),
    ("jsonl", b'{"text": "", "label": 0}\n', ["line 1", "'text' is empty"]),
    ("jsonl", b'{"text": "  ", "label": 0}\n', ["line 1", "'text' is empty"]),
    ("jsonl", b'{"txt": "cat", "label": 0}\n', ["line 1", "'text'", "did you mean 'txt'"]),
    ("jsonl", b'{"text": 3, "label": 0}\n', ["line 1", "'text' is int"]),
    ("jsonl", b'{"text": "cat"}\n', ["line 1", "'label'", "it has text"]),
    ("jsonl", b'{"text": "cat", "label": null}\n', ["line 1", "'label' is empty"]),
    ("jsonl", b'{"text": "cat", "label": -1}\n', ["line 1", "'label'", "from 0"]),
    (
        "jsonl",
        b'{"text": "a cat", "label": 0}\n{"text": "d\xe9j\xe0"}',
        ["line 2, byte 12", "0xe9"],
    ),
    ("jsonl", b"", ["no examples"]),
    ("csv", b"text,label\ncat\n", ["train.csv, line 2", "1 cells under 2 columns"]),
    ("csv", b"", ["train.csv is empty"]),
    ("csv", b'text,label\n"cat,0\n', ["train.csv, line 2"]),
    ("bin", b"cat", ["train.bin", ".jsonl"]),
]


@pytest.mark.parametrize(("suffix", "content", "words"), BAD)
def test_bad_text_is_one_clear_line(bert, tmp_path, suffix, content, words):
    (tmp_path / f"train.{suffix}").write_bytes(content)
    with pytest.raises(UserError) as caught:
        LabelledText(str(tmp_path / f"{{split}}.{suffix}"), bert, length=16).open("train")
    assert all(word in str(caught.value) for word in words), caught.value
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [b"", b" \n\n"])
@pytest.mark.parametrize("unit", ["file", "paragraph", "line"])
def test_an_empty_document_is_one_clear_line(bert, tmp_path, content, unit):
    (tmp_path / "train.txt").write_bytes(content)
    with pytest.raises(UserError, match=r"empty|no examples") as caught:
        Documents(str(tmp_path / "{split}.txt"), bert, length=16, unit=unit).open("train")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("target", "words"),
    [
        (dict(path="brown"), ["there: none", "scripts/fetch_data --help"]),
        (dict(path="bronw"), ["did you mean 'brown'", "there: brown"]),
        (dict(path="/nowhere/{split}.jsonl"), ["/nowhere"]),
        (dict(path="tfds:nothing_here"), ["nothing_here", "not prepared"]),
        (dict(length=2), ["at least 4"]),
        (dict(unit="lines"), ["did you mean 'line'"]),
        (dict(prompt="no place"), ["prompt"]),
    ],
)
def test_a_wrong_setting_is_one_clear_line(bert, tmp_path, target, words):
    write_jsonl(tmp_path / "set", "train", [{"text": line} for line in LINES])
    if target.get("path") == "bronw":
        write_jsonl(tmp_path / "data" / "text" / "brown", "train", [{"text": "x"}])
    with pytest.raises(UserError) as caught:
        Documents(**dict(path=str(tmp_path / "set"), tokenizer=bert) | target).open("train")
    assert all(word in str(caught.value) for word in words), caught.value
    assert "\n" not in str(caught.value)


def test_a_split_that_is_not_there_names_the_nearest(bert, tmp_path):
    write_jsonl(tmp_path / "set", "train", [{"text": line} for line in LINES])
    with pytest.raises(UserError, match="did you mean 'train'"):
        Documents(str(tmp_path / "set"), bert).open("trian")


def test_every_text_source_and_masking_have_a_name_in_configs():
    assert {"documents", "labelled_text", "tagged_text", "text_pairs", "sentence_pairs"} <= set(
        names.NAMES["source"]
    )
    assert "mask_tokens" in names.NAMES["transform"]


LONG = 4000


def masked(bert, tmp_path, **options):
    """One long row of known tokens, masked: (before, after, labels, tokenizer)."""
    write_jsonl(tmp_path / "set", "train", [{"text": "cat dog " * LONG}])
    source = Documents(str(tmp_path / "set"), bert, length=LONG).open("train")
    rows = source.read(np.array([0]))
    batch = {key: jax.numpy.asarray(value) for key, value in rows.items()}
    batch |= dict(sample=jax.numpy.array([7]), epoch=jax.numpy.array([3]))
    transform = MaskTokens(**options).fit(source)
    key = jax.random.key(0)
    found = jax.jit(lambda batch: apply_transforms([transform], batch, key))(batch)
    again = apply_transforms([transform], batch, key)
    other = apply_transforms([transform], batch | dict(epoch=jax.numpy.array([4])), key)
    assert np.array_equal(found["tokens"], again["tokens"])
    assert not np.array_equal(found["tokens"], other["tokens"])
    return rows["tokens"][0], *(np.asarray(found[k][0]) for k in ("tokens", "labels")), source


def test_masking_hides_15_percent_in_the_three_ways_of_bert(bert, tmp_path):
    before, after, labels, source = masked(bert, tmp_path)
    chosen = labels != -100
    assert np.array_equal(labels[chosen], before[chosen])
    assert np.array_equal(after[~chosen], before[~chosen])
    share = chosen.mean()
    hidden = (after == source.tokenizer.mask)[chosen].mean()
    kept = (after == before)[chosen].mean()
    deviation = np.sqrt(0.15 * 0.85 / LONG)
    assert abs(share - 0.15) < 4 * deviation
    assert abs(hidden - 0.8) < 4 * np.sqrt(0.8 * 0.2 / chosen.sum())
    vocab = source.vocab_size
    assert abs(kept - 0.1 - 0.1 / vocab) < 4 * np.sqrt(0.1 * 0.9 / chosen.sum())


def test_special_tokens_padding_and_a_users_own_masks_stay(bert, tmp_path):
    write_jsonl(tmp_path / "set", "train", [{"text": line} for line in LINES])
    source = Documents(str(tmp_path / "set"), bert, length=24, pack=False).open("train")
    columns = source.encode(["the cat sat .", "the [MASK] sat ."])
    batch = {key: jax.numpy.asarray(value) for key, value in columns.items()}
    batch |= dict(sample=jax.numpy.arange(2), epoch=jax.numpy.zeros(2, int))
    transform = MaskTokens(rate=1.0, hidden=1.0, random=0.0).fit(source)
    found = apply_transforms([transform], batch, jax.random.key(0))
    shown = [[source.tokenizer.token(int(i)) for i in row[:6]] for row in found["tokens"]]
    assert shown[0] == ["[CLS]", "[MASK]", "[MASK]", "[MASK]", "[MASK]", "[SEP]"]
    assert shown[1] == ["[CLS]", "the", "[MASK]", "sat", ".", "[SEP]"]
    assert (np.asarray(found["labels"][0]) != -100).sum() == 4
    assert (np.asarray(found["labels"][1]) == -100).all()


def test_places_are_where_masked_tokens_stand_and_a_lot_says_which_are_too_many(bert, tmp_path):
    lines = ["the cat sat .", "the [MASK] sat [MASK] .", "cat dog " * 10]
    write_jsonl(tmp_path / "set", "train", [{"text": line} for line in LINES])
    source = Documents(str(tmp_path / "set"), bert, length=24, pack=False).open("train")
    batch = {key: jax.numpy.asarray(value) for key, value in source.encode(lines).items()}
    batch |= dict(sample=jax.numpy.arange(3), epoch=jax.numpy.zeros(3, int))

    @functools.cache
    def masking(places):
        transform = MaskTokens(rate=1.0, hidden=0.5, random=0.5, places=places).fit(source)
        return jax.jit(lambda batch: apply_transforms([transform], batch, jax.random.key(0)))

    def run(places, epoch=0):
        batch["epoch"] = jax.numpy.full(3, epoch)
        return jax.tree.map(np.asarray, masking(places)(batch))

    found, whole = run(6), run(None)
    assert found["places"].tolist()[:2] == [[1, 2, 3, 4, 24, 24], [2, 4, 24, 24, 24, 24]]
    chosen = whole["labels"][0, 1:5]  # as without places
    assert found["labels"].tolist()[:2] == [[*chosen, -100, -100], [-100] * 6]
    np.testing.assert_array_equal(found["tokens"][:2], whole["tokens"][:2])
    before, after, places = batch["tokens"][2], found["tokens"][2], found["places"][2]
    assert len(set(places)) == 6 and list(places) == sorted(places)
    np.testing.assert_array_equal(found["labels"][2], before[places])
    np.testing.assert_array_equal(np.delete(after, places), np.delete(before, places))
    first = np.concatenate([run(6, epoch)["places"][2] for epoch in range(40)])
    assert abs(first.mean() - 10.5) < 4 * 5.77 / np.sqrt(
        len(first)
    )  # of places 1 to 20, each alike


@pytest.mark.parametrize(
    "options", [dict(rate=0.0), dict(rate=2.0), dict(hidden=0.8, random=0.3), dict(places=0)]
)
def test_masking_refuses_shares_that_are_none(options):
    with pytest.raises(UserError, match="mask_tokens"):
        MaskTokens(**options)


def test_masking_needs_a_mask_token(bert, tmp_path):
    with pytest.raises(UserError, match="no tokenizer with a mask token"):
        MaskTokens().fit(documents(tmp_path, length=8).open("train"))
