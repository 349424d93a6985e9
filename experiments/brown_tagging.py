"""A small BERT tells the part of speech of every word of the Brown corpus, from scratch.

    scripts/fetch_data brown_tagged                                    once
    scripts/run experiments.brown_tagging
    scripts/run experiments.brown_tagging predict --workdir=runs/brown_tagging --input=sentences.txt
    .venv/bin/python -m scripts.baselines.frequent_tag brown_tagged    each word's most frequent tag

50,965 sentences with one of 104 tags for each word, 6,375 to test; words of a sentence beyond its first
62 pieces are not scored. `predict` reads sentences whose words and full stops are parted by spaces.

Hardware: 2 CPU cores, 8 minutes. Reached with seed 0: 95.93 %
of the test words, macro F1 0.900; each word's most frequent tag gives 89.96 %.
"""

from ml_collections import ConfigDict

from bigjax import launch
from bigjax.models import bert


def get_config():
    config = ConfigDict()
    config.seed = 0
    config.train = dict(epochs=3, batch_size=32)
    config.data = dict(
        source=dict(type="tagged_text", path="brown_tagged", tokenizer="wordpiece-4096", length=64),
        splits=dict(train="train", test="test"),
    )
    config.model = dict(
        type="bert",
        vocab=4096,
        context=64,
        head="tokens",
        outputs=104,
        dropout=0.1,
        **bert.PRESETS["tiny"],
    )
    config.task = dict(type="token_tagging")
    config.optimizer = dict(
        type="adamw",
        learning_rate=2e-3,
        weight_decay=1e-2,
        weight_decay_rules=((r".*(norm/.*|bias)", 0.0), (r".*", 1.0)),
        schedule=dict(type="linear", warmup_steps=200),
        clip_norm=1.0,
    )
    config.evaluate = dict(splits=("test",), every="end", batch_size=125)
    config.checkpoint = dict(every=500)
    config.log = dict(every=100)
    return config


if __name__ == "__main__":
    launch.run(get_config)
