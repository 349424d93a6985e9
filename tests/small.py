"""A run that trains in a second: digits into a tiny MLP. Shared by the tests of whole runs."""

from ml_collections import ConfigDict

from bigjax.config import resolve as config


def small_config(**changes) -> ConfigDict:
    values = dict(
        seed=0,
        train=dict(steps=12, batch_size=40),
        data=dict(
            source=dict(type="tfds", name="digits"),
            splits=dict(train="train", test="test"),
            preprocess=(dict(type="normalize", scale=16.0),),
        ),
        model=dict(type="mlp", widths=(8,), outputs=10, dropout=0.1),
        task=dict(type="classification"),
        optimizer=dict(type="adam", learning_rate=1e-2),
        mesh=dict(data=-1),
        evaluate=dict(splits=("test",), every=6, batch_size=80),
        checkpoint=dict(every=4, keep=10),
        log=dict(every=1, tensorboard=False),
    )
    values.update(changes)
    return ConfigDict(values)


def small(*overrides: str, **changes) -> config.Config:
    return config.resolve(small_config(**changes), overrides)
