"""What four bits cost a small GPT-2 of the Brown corpus: 0.002 bits a byte to the nearest level; a run stopped half way.

    scripts/fetch_data brown                                    once
    scripts/run experiments.brown_gpt_int4
    scripts/run experiments.brown_gpt_int4 shrink --chain=int8 --chain=int4:32 --chain=gptq:32

The run of `brown_gpt`; the verb `shrink` then says its bits per byte and its size before and after each (Frantar et al. 2022).
GPTQ is of dense kernels alone and leaves the table of words in full numbers, hence its size.

Hardware: 2 CPU cores shared with a dozen other jobs: 16 minutes of training, stopped after 950 of its 2,000 steps for want of time,
and 18 minutes for the table. Of the 53 test texts, seed 0, one run:

    model     bits a byte  kB in memory
    before    2.167        5,336
    int8      2.167        1,439
    int4:32   2.169        912
    gptq:32   2.167        2,682

All of it is within the interval of 2.117 to 2.223: a model this small and this little trained is hardly hurt by four bits, so this does
not tell the two formats apart.
"""

from bigjax import launch
from experiments.brown_gpt import get_config

if __name__ == "__main__":
    launch.run(get_config)
