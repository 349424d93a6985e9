"""TF-IDF and logistic regression on a labelled text set: what a fine-tuned encoder has to beat.

    .venv/bin/python -m scripts.baselines.tfidf sentiment

Words and pairs of words, sublinear counts; the regularisation is chosen by 5-fold cross-validation on
the training split. Prints the accuracy on the test split.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline

from bigjax.data.sources import default_data_dir


def read(name: str, split: str) -> tuple[list[str], list[int]]:
    """Texts and labels of DATA_DIR/text/NAME/SPLIT.jsonl."""
    file = Path(default_data_dir()) / "text" / name / f"{split}.jsonl"
    rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    return [row["text"] for row in rows], [row["label"] for row in rows]


def accuracy(name: str) -> tuple[float, float]:
    """(accuracy on the test split, the inverse regularisation chosen)."""
    features = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True, min_df=2)
    pipeline = make_pipeline(features, LogisticRegression(max_iter=2000))
    grid = {"logisticregression__C": [0.3, 1.0, 3.0, 10.0, 30.0]}
    search = GridSearchCV(pipeline, grid, cv=5).fit(*read(name, "train"))
    return search.score(*read(name, "test")), search.best_params_["logisticregression__C"]


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    start = time.perf_counter()
    reached, strength = accuracy(sys.argv[1])
    seconds = time.perf_counter() - start
    print(f"{sys.argv[1]}: test accuracy {reached:.4f} (C = {strength:g}), {seconds:.0f} s")
