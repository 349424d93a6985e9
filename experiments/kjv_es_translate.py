"""A small T5 translates Bible verses from English to Spanish, from scratch.

    scripts/fetch_data kjv_es                                          once
    scripts/run experiments.kjv_es_translate
    scripts/run experiments.kjv_es_translate predict --workdir=runs/kjv_es_translate \\
        --input=verses.txt

27,917 verse pairs (King James 1611, Valera 1909), one vocabulary of 4,000 unigram pieces; of the
3,167 verses to test the first 256 are translated, each time the most likely next token.

Hardware: 2 CPU cores, 3 minutes. Reached with seed 0 after one epoch: BLEU 1.8, a
test perplexity of 127 a token. That is the beginning of a translation, not one: many more epochs are
needed (`--config.train.epochs=20`, not run here).
"""

from ml_collections import ConfigDict

from bigjax import launch


def get_config():
    config = ConfigDict()
    config.seed = 0
    config.train = dict(epochs=1, batch_size=32)
    config.data = dict(
        source=dict(type="text_pairs", path="kjv_es", tokenizer="unigram-4000", length=48),
        splits=dict(train="train", test="test[:256]"),
    )
    config.model = dict(
        type="t5", vocab=4000, layers=2, width=128, heads=4, mlp_width=512, dropout=0.1
    )
    config.task = dict(type="seq2seq", scores=("bleu",), label_smoothing=0.1)
    config.optimizer = dict(
        type="adamw",
        learning_rate=2e-3,
        weight_decay=1e-2,
        schedule=dict(type="cosine", warmup_steps=100),
        clip_norm=1.0,
    )
    config.evaluate = dict(splits=("test",), every="end", batch_size=64)
    config.checkpoint = dict(every="end")
    config.log = dict(every=20)
    return config


if __name__ == "__main__":
    launch.run(get_config)
