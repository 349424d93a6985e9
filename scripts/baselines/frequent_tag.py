"""Each word's most frequent tag: what a tagger has to beat.

    .venv/bin/python -m scripts.baselines.frequent_tag brown_tagged

Counted on the training split; a word that is not there gets the tag that such words most often have,
read off the words that come once. Prints the accuracy on the test split.
"""

from __future__ import annotations

import json
import sys
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path

from bigjax.data.sources import default_data_dir


def read(name: str, split: str) -> Iterator[tuple[str, str]]:
    """The words and tags of DATA_DIR/text/NAME/SPLIT.jsonl."""
    file = Path(default_data_dir()) / "text" / name / f"{split}.jsonl"
    for line in file.read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        yield from zip(row["words"], row["tags"], strict=True)


def accuracy(train: list[tuple[str, str]], test: list[tuple[str, str]]) -> float:
    """The share of the test words whose tag is the one they have most often in training."""
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    for word, tag in train:
        counts[word][tag] += 1
    best = {word: tags.most_common(1)[0][0] for word, tags in counts.items()}
    rare = Counter(tag for word, tag in train if counts[word].total() == 1)
    unknown = (rare or Counter(tag for _, tag in train)).most_common(1)[0][0]
    return sum(best.get(word, unknown) == tag for word, tag in test) / len(test)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    name = sys.argv[1]
    reached = accuracy(list(read(name, "train")), list(read(name, "test")))
    print(f"{name}: test accuracy {reached:.4f}")
