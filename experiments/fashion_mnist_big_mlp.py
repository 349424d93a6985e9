"""TITLE.

    scripts/fetch_data fashion_mnist          once
    scripts/run experiments.fashion_mnist_big_mlp
"""

from ml_collections import ConfigDict

from bigjax import launch


def get_config():
    config = ConfigDict()
    config.seed = 0
    config.train = dict(epochs=3, batch_size=64)
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
