"""A decoder-only Transformer of 1.07 billion parameters, for the benchmarks that need a large one.

python -m scripts.benchmarks.billion sharding --simulate_devices=8
"""

import tempfile
from pathlib import Path

import numpy as np
from ml_collections import ConfigDict

from bigjax.verbs import launch


def get_config():
    folder = Path(tempfile.gettempdir(), "bigjax_billion")
    folder.mkdir(exist_ok=True)
    np.savez(folder / "train.npz", tokens=np.zeros((64, 1024), np.int32))
    config = ConfigDict()
    config.seed = 0
    config.train = dict(steps=10, batch_size=8)
    config.data = dict(source=dict(type="npz", directory=str(folder)), splits=dict(train="train"))
    config.model = dict(
        type="gpt2",
        vocab=32768,
        layers=20,
        width=2048,
        heads=16,
        context=1024,
        scan_layers=True,
        remat="full",
    )
    config.task = dict(type="language_model")
    config.optimizer = dict(type="adamw", learning_rate=1e-4)
    config.mesh = dict(data=1, fsdp=8)
    return config


if __name__ == "__main__":
    launch.run(get_config)
