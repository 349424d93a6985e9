"""ResNet-18 on Fashion-MNIST, one epoch: 87.7 % (17 minutes on 2 busy CPU cores).

    scripts/fetch_data fashion_mnist          once
    scripts/run experiments.fashion_mnist_resnet18

The published network with its ImageNet stem, as it is: the 28x28 pictures are 7x7 after the stem and
1x1 in the last stage, which makes an epoch of 60,000 cheap.

Hardware: 2 CPU cores shared with other jobs, 17 minutes. Reached on the 10,000 test pictures, seed 0:
87.7 % after this one epoch (`fashion_mnist_cnn` has 92.0 % after ten; more epochs were not run).
"""

from ml_collections import ConfigDict

from bigjax import launch
from bigjax.models.resnet import PRESETS


def get_config():
    config = ConfigDict()
    config.seed = 0
    config.train = dict(epochs=1, batch_size=128)
    config.data = dict(
        source=dict(type="tfds", name="fashion_mnist"),
        splits=dict(train="train", test="test"),
        augment=(dict(type="flip"),),
        preprocess=(dict(type="normalize", scale=255.0, mean=0.286, std=0.353),),
    )
    config.model = dict(type="resnet", outputs=10, **PRESETS["18"])
    config.task = dict(type="classification")
    config.optimizer = dict(
        type="momentum",
        learning_rate=0.05,
        weight_decay=5e-4,
        weight_decay_rules=((".*kernel", 1.0), (".*", 0.0)),
        schedule=dict(type="cosine", warmup_steps=100),
    )
    config.evaluate = dict(splits=("test",), every="end", batch_size=500)
    config.log = dict(every=50)
    return config


if __name__ == "__main__":
    launch.run(get_config)
