"""A 30-10-10-1 sigmoid MLP tells benign from malignant tumours.

    scripts/run experiments.breast_cancer_mlp
    scripts/run experiments.breast_cancer_mlp predict --input=tumours.csv
"""

from ml_collections import ConfigDict

from bigjax import launch


def get_config():
    config = ConfigDict()
    config.seed = 0
    config.train = dict(epochs=100, batch_size=32)
    config.data = dict(
        source=dict(type="tfds", name="breast_cancer"),
        splits=dict(train="train", test="test"),
        preprocess=(dict(type="standardize"),),
    )
    config.model = dict(type="mlp", widths=(10, 10), outputs=1, activation="sigmoid")
    config.task = dict(type="binary")
    config.optimizer = dict(type="adam", learning_rate=1e-3)
    config.evaluate = dict(splits=("test",), every="end")
    config.log = dict(every=100)
    return config


if __name__ == "__main__":
    launch.run(get_config)
