"""Semantic search: which lines of a text file are nearest in meaning to a question?

    scripts/fetch_data manpages && scripts/fetch_data minilm           once
    scripts/run experiments.minilm_search --workdir=runs/search
    scripts/run experiments.minilm_search predict --workdir=runs/search --input=questions.txt \\
        --config.task.corpus=sentences.txt

all-MiniLM-L6-v2, tuned further on 982 manual pages: the description of each has to find its own
one-line summary among those of the batch (InfoNCE). `predict` embeds both files, a sentence a line, and
prints the five nearest sentences for each question; without a corpus, the embeddings.

Hardware: 2 CPU cores.
"""

from ml_collections import ConfigDict

from bigjax import launch


def get_config():
    config = ConfigDict()
    config.seed = 0
    config.train = dict(epochs=1, batch_size=16)
    config.data = dict(
        source=dict(
            type="sentence_pairs",
            path="manpages",
            a="source",
            b="target",
            tokenizer="minilm",
            length=64,
        ),
        splits=dict(train="train", test="test"),
    )
    config.model = dict(type="bert", head="embedding", dropout=0.1)
    config.init = dict(source="minilm", family="bert", unused=(r"pooler\..*",))
    config.task = dict(type="contrastive", temperature=0.05)
    config.optimizer = dict(
        type="adamw",
        learning_rate=2e-5,
        schedule=dict(type="linear", warmup_steps=6),
        clip_norm=1.0,
    )
    config.evaluate = dict(splits=("test",), every="end", batch_size=64)
    config.checkpoint = dict(every="end")
    config.log = dict(every=5)
    return config


if __name__ == "__main__":
    launch.run(get_config)
