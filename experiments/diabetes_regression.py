"""A 10-20-1 MLP predicts the progression of diabetes after a year.

    scripts/run experiments.diabetes_regression
"""

from ml_collections import ConfigDict

from bigjax import launch


def get_config():
    config = ConfigDict()
    config.seed = 0
    config.train = dict(epochs=100, batch_size=32)
    config.data = dict(
        source=dict(type="tfds", name="diabetes"),
        splits=dict(train="train", test="test"),
        preprocess=(
            dict(type="standardize"),
            dict(type="normalize", key="label", mean=152.0, std=77.0),
        ),
    )
    config.model = dict(type="mlp", widths=(20,), outputs=1)
    config.task = dict(type="regression", criterion="mse")
    config.optimizer = dict(type="sgd", learning_rate=1e-2)
    config.evaluate = dict(splits=("test",), every="end")
    config.log = dict(every=100)
    return config


if __name__ == "__main__":
    launch.run(get_config)
