"""A CNN learns Fashion-MNIST by DP-SGD: (2.7, 1e-5)-differentially private."""

from ml_collections import ConfigDict

from bigjax import launch


def get_config():
    config = ConfigDict()
    config.seed = 0
    config.train = dict(steps=293, batch_size=1152)
    config.data = dict(
        source=dict(type="tfds", name="fashion_mnist"),
        splits=dict(train="train", test="test"),
        preprocess=(dict(type="normalize", scale=255.0, mean=0.5, std=0.5),),
    )
    config.model = dict(type="cnn", channels=(16, 32), outputs=10, activation="tanh")
    config.task = dict(type="classification")
    config.method = dict(type="dp_sgd", lot=1024, clip=0.1, noise_multiplier=0.86, delta=1e-5)
    config.optimizer = dict(type="momentum", learning_rate=2.0)
    config.evaluate = dict(splits=("test",), every=98, batch_size=500)
    config.checkpoint = dict(every=98)
    config.log = dict(every=20)
    return config


if __name__ == "__main__":
    launch.run(get_config)
