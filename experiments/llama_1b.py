"""A Llama of 1.1 billion parameters (TinyLlama's sizes): two million tokens a step, parameters over 16 GPUs.

    scripts/run experiments.llama_1b --workdir=runs/llama_1b

Before: your corpus as train.jsonl and test.jsonl, one {"text": ...} a line, in
~/tensorflow_datasets/text/slimpajama, and a folder with a tokenizer.json of 32,000 in
~/tensorflow_datasets/weights/llama_tokenizer.

Recipe of Zhang et al. 2024, "TinyLlama", section 2: AdamW 0.9, 0.95, 4e-4 with 2,000 steps of warm-up and
a cosine down to a tenth, weight decay 0.1 on everything, clipped at 1, 3 trillion tokens (the number of
steps is that of their pretrain/tinyllama.py).

Hardware: 16 GPUs of 40 GB or more. Published, not reproduced here: HellaSwag 59.2 %, 53.0 % on average
over seven tasks of common sense (Zhang et al. 2024, table 2).
"""

from ml_collections import ConfigDict

from bigjax import launch
from bigjax.models import llama


def get_config():
    config = ConfigDict()
    config.seed = 0
    config.train = dict(steps=1_430_512, batch_size=1024, accumulate=8)  # 1024 x 2048 tokens
    config.data = dict(
        source=dict(type="documents", path="slimpajama", tokenizer="llama_tokenizer", length=2048),
        splits=dict(train="train", test="test"),
    )
    config.model = dict(type="llama", **llama.PRESETS["1b"], remat="names", scan_layers=True)
    config.task = dict(type="language_model", input=("tokens", "segments"))
    config.precision = dict(policy="bfloat16")
    config.mesh = dict(data=1, fsdp=-1)
    config.optimizer = dict(
        type="adamw",
        learning_rate=4e-4,
        b2=0.95,
        weight_decay=0.1,
        schedule=dict(type="cosine", warmup_steps=2000, final=0.1),
        clip_norm=1.0,
    )
    config.evaluate = dict(splits=("test",), every=5000)
    config.checkpoint = dict(every=5000)
    config.log = dict(every=100)
    return config


if __name__ == "__main__":
    launch.run(get_config)
