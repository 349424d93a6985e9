"""Experiments and sweeps of a second or two, for the tests of sweeps."""

from bigjax.loop.stages import pipeline
from bigjax.sweep import Sweep, chain, over, product
from tests.small import small_config

SPLITS = dict(train="train[:80%]", validation="train[80%:]", test="test")


def get_config(**changes):
    config = small_config(
        data=dict(
            source=dict(type="tfds", name="digits"),
            splits=SPLITS,
            preprocess=(dict(type="normalize", scale=16.0),),
        ),
        model=dict(type="mlp", widths=(8,), outputs=10),
        optimizer=dict(type="sgd", learning_rate=1e-2),  # little to compile
        mesh=dict(data=-1),
        evaluate=dict(splits=("validation", "test"), every=6, batch_size=200),
        checkpoint=dict(every="never"),
        log=dict(every=1, tensorboard=False),
    )
    config.update(changes)
    return config


def get_pipeline():
    teacher, alone, distilled = get_config(), get_config(), get_config()
    teacher.checkpoint.every = "end"
    distilled.distill = dict(teacher="../teacher", temperature=2.0, alpha=0.9)
    return pipeline(dict(teacher=teacher, alone=alone, distilled=distilled), table=())


def rates(*values, **more):
    settings = dict(
        experiment="tests.sweep.toy",
        points=over("optimizer.learning_rate", values),
        seeds=2,
        metric="eval/validation/accuracy",
        mode="max",
        test_metric="eval/test/accuracy",
    )
    return Sweep(**{**settings, **more})


def temperatures(*values, **more):
    points = chain(
        over("stage", ["alone"]),
        product(over("stage", ["distilled"]), over("distill.temperature", values)),
    )
    settings = dict(
        experiment="tests.sweep.toy_pipeline",
        points=points,
        seeds=2,
        baseline={"stage": "alone"},
        metric="eval/validation/loss",
        mode="min",
    )
    return Sweep(**{**settings, **more})
