"""SmolLM2-135M learns Spanish as in smollm2_finetune, with adapters of rank 4 alone."""

from bigjax import launch
from experiments import smollm2_finetune


def get_config():
    config = smollm2_finetune.get_config()
    config.adapt = (dict(type="lora", rank=4, alpha=16.0),)
    config.optimizer.learning_rate = 2e-3
    config.optimizer.weight_decay = 0.0
    return config


if __name__ == "__main__":
    launch.run(get_config)
