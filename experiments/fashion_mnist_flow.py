"""A small Transformer draws clothes of the kind asked for, by flow matching: 88.1 % are found to be of it.

    scripts/fetch_data fashion_mnist          once
    scripts/run experiments.fashion_mnist_flow

Two runs. A small CNN that classifies. Then a diffusion Transformer of 0.7 M
parameters on 28x28 pixels in patches of 7, trained to the velocity from noise to picture (Lipman et
al. 2023), a tenth of the labels dropped so that it can be guided (Ho & Salimans 2022); judged is its
moving average. Twice in the run 100 pictures of each class are drawn and the classifier is asked what
they are; the report shows ten of each.

Hardware: 2 CPU cores: 4 minutes, both runs. Reached, one seed: the classifier is right on 89.49 % of the test pictures; of 1,000 drawn pictures
it finds 88.1 % to be what was asked for (65.8 % half way), pullovers least often. Loss of the velocity 0.3158. Within a class the
pixels of drawn pictures deviate by 0.123, those of the test pictures by 0.195: guidance narrows. The
threshold of 85 % was reached with the first setting of 1,200 steps and w = 2 that was tried.
"""

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
    classifier.model = dict(type="cnn", channels=(16, 32), outputs=10, batch_norm=True, dropout=0.3)
    classifier.task = dict(type="classification")
    classifier.optimizer = dict(type="adamw", learning_rate=2e-3, schedule=dict(type="cosine"))

    flow = base.copy_and_resolve_references()
    flow.train = dict(steps=1200, batch_size=128, ema_decay=0.99)
    flow.model = dict(type="dit", image=28, patch=7, classes=10, layers=4, width=96, heads=3)
    flow.task = dict(type="velocity_field")
    flow.method = dict(type="flow_matching")
    flow.optimizer = dict(
        type="adamw",
        learning_rate=2e-3,
        clip_norm=1.0,
        schedule=dict(type="cosine", warmup_steps=100),
    )
    flow.evaluators = dict(
        samples=dict(type="samples", classifier="../classifier", steps=16, guidance=2.0, every=600)
    )
    flow.checkpoint = dict(every=200)

    return pipeline(
        dict(classifier=classifier, flow=flow),
        table=("eval/test/accuracy", "eval/test/loss", "eval/samples/accuracy"),
    )


if __name__ == "__main__":
    launch.run(get_config)
