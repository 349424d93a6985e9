"""Twenty clients of unlike digits train one MLP by federated averaging, 5 seeds."""

from ml_collections import ConfigDict

from bigjax import launch, pipeline


def get_config():
    central = ConfigDict()
    central.seed = 0
    central.train = dict(epochs=60, batch_size=20)
    central.data = dict(
        source=dict(type="tfds", name="digits"),
        splits=dict(train="train", test="test"),
        preprocess=(dict(type="normalize", scale=16.0),),
    )
    central.model = dict(type="mlp", widths=(100,), outputs=10)
    central.task = dict(type="classification")
    central.optimizer = dict(type="sgd", learning_rate=0.1)
    central.evaluate = dict(splits=("test",), every="end")
    central.log = dict(every=500)

    stages = dict(central=central)
    for name, epochs, batch in (("fedsgd", 1, None), ("fedavg", 5, 20)):
        stage = central.copy_and_resolve_references()
        stage.train = dict(steps=100, batch_size=5 * 120)
        stage.method = dict(
            type="fedavg",
            rows=120,
            local_epochs=epochs,
            local_batch=batch,
            local_rate=0.1,
            clients=20,
            concentration=0.3,
        )
        stage.optimizer = dict(type="sgd", learning_rate=1.0)
        stages[name] = stage
    return pipeline(stages, seeds=5, table=("eval/test/errors", "eval/test/accuracy"))


if __name__ == "__main__":
    launch.run(get_config)
