"""A 784-4096-4096-10 MLP on Fashion-MNIST: 84.3 % in 2 epochs (5 minutes on 2 CPU cores).

    scripts/fetch_data fashion_mnist          once
    scripts/run experiments.fashion_mnist_big_mlp

On a machine without accelerators, XLA_FLAGS=--xla_force_host_platform_device_count=2 splits the batch
over two simulated devices; the global batch of every step stays the same 64 pictures.

The batch is split over all devices. Hardware: 2 CPU cores shared with other jobs: 1,875 steps in
280 s. Reached on the 10,000 test images: 84.33 % (seed 0).
"""

from ml_collections import ConfigDict

from bigjax import launch


def get_config():
    config = ConfigDict()
    config.seed = 0
    config.train = dict(epochs=2, batch_size=64)
    config.data = dict(
        source=dict(type="tfds", name="fashion_mnist"),
        splits=dict(train="train", test="test"),
        preprocess=(dict(type="normalize", scale=255.0),),
    )
    config.model = dict(type="mlp", widths=(4096, 4096), outputs=10, activation="relu")
    config.task = dict(type="classification")
    config.optimizer = dict(type="sgd", learning_rate=0.01)
    config.evaluate = dict(splits=("test",), every="end", batch_size=1000)
    config.log = dict(every=100)
    return config


if __name__ == "__main__":
    launch.run(get_config)
