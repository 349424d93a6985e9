"""What four bits cost a small GPT-2 of the Brown corpus: under 0.002 bits a byte, to the nearest level or by GPTQ alike.

    scripts/fetch_data brown                                    once
    scripts/run experiments.brown_gpt_int4
    scripts/run experiments.brown_gpt_int4 shrink --chain=int8 --chain=int4 --chain=gptq:1024 --chain=int4:32 --chain=gptq:32

The run of `brown_gpt` in 600 steps in place of 2,000; the verb `shrink` then says its bits per byte and its size before and
after each (Frantar et al. 2022). The same leaves are in four bits in each: GPTQ rounds tables to the nearest. A group of 1,024
is all of a channel here, as in int4.

Hardware: one of 2 CPU cores shared with many other jobs: 20 minutes, 3 of processor time, and as much again for the table.
Of the 53 test texts, seed 0, one run:

    model      bits a byte  kB in memory
    before     2.2982       5,336
    int8       2.2982       1,439
    int4       2.2999       783
    gptq:1024  2.2997       783
    int4:32    2.2991       912
    gptq:32    2.2991       912

GPTQ is better by 0.0002 and 0.0001, all of it far within the interval of 2.248 to 2.352: a model this small and this little trained
is hardly hurt by four bits, so this does not tell the two apart.
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
