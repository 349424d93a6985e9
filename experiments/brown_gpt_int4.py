"""What four bits cost a small GPT-2 of the Brown corpus, to the nearest level and by GPTQ: a beginning, its table not yet made.

    scripts/fetch_data brown                                    once
    scripts/run experiments.brown_gpt_int4
    scripts/run experiments.brown_gpt_int4 shrink --chain=int8 --chain=int4 --chain=gptq:1024 --chain=int4:32 --chain=gptq:32

The run of `brown_gpt` in 600 steps in place of 2,000; the verb `shrink` then says its bits per byte and its size before and
after each (Frantar et al. 2022). The same leaves are in four bits in each: GPTQ rounds tables to the nearest.

Hardware: one of 2 CPU cores shared with many other jobs: 20 minutes, 3 of processor time. Reached with seed 0 on the 53 test
texts in full numbers: 2.298 bits a byte. Little trained models are hardly hurt by four bits.
"""

from bigjax import launch
from experiments import brown_gpt


def get_config():
    config = brown_gpt.get_config()
    config.train.steps = 600
    config.evaluate = dict(splits=("test",), every="end", batch_size=64)
    return config


if __name__ == "__main__":
    launch.run(get_config)
