"""A Llama 2 of 70 billion parameters, of which eight heads share keys and values: four million tokens a step.

    scripts/run experiments.llama_70b plan --topology=v5p:1024
    scripts/run experiments.llama_70b plan --topology=h200:16 --config.train.batch_size=16 --scale=64,256,1024

Data and recipe are those of llama_7b with half its learning rate (Touvron et al. 2023, "Llama 2", table 1).

Hardware: 16 GPUs of 141 GB with a row each, as `plan` has it, or more. Published, not reproduced here: HellaSwag
85.3 % (appendix A.2 there).
"""

from bigjax import launch
from bigjax.models import llama
from experiments import llama_7b


def get_config():
    config = llama_7b.get_config()
    config.model = dict(type="llama", **llama.PRESETS["70b"], remat="full", scan_layers=True)
    config.optimizer.learning_rate = 1.5e-4
    return config


if __name__ == "__main__":
    launch.run(get_config)
