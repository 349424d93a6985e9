"""A Llama 2 of 7 billion parameters: four million tokens a step, two trillion in all, parameters over 256 chips.

    scripts/run experiments.llama_7b plan --topology=v5p:256
    scripts/run experiments.llama_7b plan --topology=h200:16 --config.train.batch_size=16 --scale=64,256,1024

Data as for llama_1b, of 4,096 tokens a row. Recipe of Touvron et al. 2023, "Llama 2", section 2.2: AdamW
0.9, 0.95, 1e-5, 2,000 steps of warm-up to 3e-4 and a cosine down to a tenth, weight decay 0.1, clipped at 1.

Hardware: as many GPUs or TPU chips as `plan` says that it fits on. Published, not reproduced here: HellaSwag
77.2 % (appendix A.2 there).
"""

from bigjax import launch
from bigjax.models import llama
from experiments import llama_1b


def get_config():
    config = llama_1b.get_config()
    config.train = dict(steps=476_837, batch_size=1024)  # 1024 x 4096 tokens
    config.data.source.length = 4096
    config.model = dict(type="llama", **llama.PRESETS["7b"], remat="full", scan_layers=True)
    config.optimizer.learning_rate = 3e-4
    config.optimizer.eps = 1e-5
    return config


if __name__ == "__main__":
    launch.run(get_config)
