"""GPT-2 124M on OpenWebText: half a million tokens a step, 600,000 steps.

    scripts/run experiments.gpt2_124m --workdir=runs/gpt2_124m

Before: OpenWebText (Gokaslan and Cohen 2019) as train.jsonl and test.jsonl, one {"text": ...} a line, in
~/tensorflow_datasets/text/openwebtext, and GPT-2's tokenizer.json (byte-level BPE of 50,257) in
~/tensorflow_datasets/weights/gpt2. A corpus of your own: `--config.data.source.path=FOLDER`.

Hardware: 8 GPUs of 80 GB. Published, not reproduced here: a validation loss of 2.85 nats a token with
this recipe and a GPT-2 without biases; OpenAI's own weights, trained on WebText, have 3.12
(github.com/karpathy/nanoGPT, README).
"""

from ml_collections import ConfigDict

from bigjax import launch
from bigjax.models import gpt2


def get_config():
    config = ConfigDict()
    config.seed = 0
    config.train = dict(steps=600_000, batch_size=480, accumulate=5)  # 480 x 1024 tokens
    config.data = dict(
        source=dict(type="documents", path="openwebtext", tokenizer="gpt2", length=1024),
        splits=dict(train="train", test="test"),
    )
    config.model = dict(type="gpt2", **gpt2.PRESETS["124m"])
    config.task = dict(type="language_model", input=("tokens", "segments"))
    config.precision = dict(policy="bfloat16")
    config.optimizer = dict(
        type="adamw",
        learning_rate=6e-4,
        b2=0.95,
        weight_decay=0.1,
        weight_decay_rules=((r".*(norm/.*|bias)", 0.0), (r".*", 1.0)),
        schedule=dict(type="cosine", warmup_steps=2000, final=0.1),
        clip_norm=1.0,
    )
    config.evaluate = dict(splits=("test",), every=2000)
    config.checkpoint = dict(every=2000)
    config.log = dict(every=100)
    return config


if __name__ == "__main__":
    launch.run(get_config)
