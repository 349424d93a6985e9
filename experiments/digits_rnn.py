"""An LSTM reads digits row by row.

    scripts/run experiments.digits_rnn
"""

from ml_collections import ConfigDict

from bigjax import launch


def get_config():
    config = ConfigDict()
    config.seed = 0
    config.train = dict(epochs=60, batch_size=50)
    config.data = dict(
        source=dict(type="tfds", name="digits"),
        splits=dict(train="train", test="test"),
        augment=(dict(type="shift", pixels=1),),
        preprocess=(dict(type="normalize", scale=16.0),),
    )
    config.model = dict(type="rnn", widths=(128,), outputs=10, cell="lstm")
    config.task = dict(type="classification")
    config.optimizer = dict(
        type="adam", learning_rate=5e-3, clip_norm=1.0, schedule=dict(type="cosine")
    )
    config.evaluate = dict(splits=("test",), every="end")
    config.log = dict(every=200)
    return config


if __name__ == "__main__":
    launch.run(get_config)
