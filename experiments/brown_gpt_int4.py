"""What four bits cost a small GPT-2 of the Brown corpus, to the nearest level and by GPTQ: a beginning, not run here.

    scripts/fetch_data brown                                    once
    scripts/run experiments.brown_gpt_int4
    scripts/run experiments.brown_gpt_int4 shrink --chain=int8 --chain=int4:32 --chain=gptq:32

The run of `brown_gpt`; the verb `shrink` then says its bits per byte and its size before and after each (Frantar et
al. 2022: the second of the two formats of four bits should lose less).

Hardware: meant for 2 CPU cores, for some 40 minutes. Not run here: there are no figures yet.
"""

from bigjax import launch
from experiments.brown_gpt import get_config

if __name__ == "__main__":
    launch.run(get_config)
