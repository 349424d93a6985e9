"""GPT-2 350M (GPT-2 medium) on OpenWebText: half a million tokens a step, 600,000 steps.

    scripts/run experiments.gpt2_350m --workdir=runs/gpt2_350m

Data and recipe are those of gpt2_124m; the learning rate is GPT-3 Medium's (Brown et al. 2020, table
2.1), and a block's insides are computed again in the backward pass.

Hardware: 8 GPUs of 80 GB. Published, not reproduced here: OpenAI's own weights, trained on WebText, have
2.84 nats a token on OpenWebText (github.com/karpathy/nanoGPT, README).
"""

from bigjax import launch
from bigjax.models import gpt2
from experiments import gpt2_124m


def get_config():
    config = gpt2_124m.get_config()
    config.model = dict(type="gpt2", **gpt2.PRESETS["350m"], remat="names")
    config.optimizer.learning_rate = 3e-4
    return config


if __name__ == "__main__":
    launch.run(get_config)
