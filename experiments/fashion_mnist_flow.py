"""Flow."""

from ml_collections import ConfigDict

from bigjax import launch, pipeline


def get_config():
    base = ConfigDict()
    base.seed = 0
    base.data = dict(
        source=dict(type="tfds", name="fashion_mnist"),
        splits=dict(train="train", test="test"),
        preprocess=(dict(type="normalize", scale=255.0, mean=0.5, std=0.5),),
    )
    base.evaluate = dict(splits=("test",), every="end", batch_size=500)
    base.log = dict(every=100)

    classifier = base.copy_and_resolve_references()
    classifier.train = dict(epochs=3, batch_size=128)
    classifier.task = dict(type="classification")
    classifier.model = dict(type="cnn", channels=(16, 32), outputs=10, batch_norm=True, dropout=0.3)
    classifier.optimizer = dict(type="adamw", learning_rate=2e-3, schedule=dict(type="cosine"))

    flow = base.copy_and_resolve_references()
    flow.train = dict(steps=3000, batch_size=128, ema_decay=0.995)
    flow.task = dict(type="velocity_field")
    flow.method = dict(type="flow_matching")
    flow.model = dict(type="dit", image=28, patch=7, classes=10, layers=4, width=96, heads=3)
    flow.optimizer = dict(
        type="adamw",
        learning_rate=2e-3,
        clip_norm=1.0,
        schedule=dict(type="cosine", warmup_steps=100),
    )
    flow.checkpoint = dict(every=250)

    return pipeline(dict(classifier=classifier, flow=flow), table=("eval/test/loss",))


if __name__ == "__main__":
    launch.run(get_config)
