"""Seven optimizers under one tuning budget, on 10,000 Fashion-MNIST images (TIME).

    scripts/fetch_data fashion_mnist          once
    scripts/run bigjax.sweep experiments.sweeps.fashion_mnist_optimizers --vectorize

Each optimizer gets 5 learning rates, a factor of 3.16 apart around what its authors advise, x 3
seeds, and is judged at its best rate; a 784-128-10 MLP, 3 epochs, chosen on 6,000 validation images.
"""

from bigjax.sweep import Sweep, chain, over, product

CENTRES = {
    "sgd": 0.1,
    "momentum": 0.03,
    "rmsprop": 1e-3,
    "adam": 1e-3,
    "adamw": 1e-3,
    "lion": 3e-4,
    "muon": 0.01,
}


def get_sweep():
    points = chain(
        *(
            product(
                over("optimizer.type", [name]),
                over("optimizer.weight_decay", [0.1 if name == "adamw" else 0.0]),
                over(
                    "optimizer.learning_rate",
                    [float(f"{centre * 10 ** (i / 2):.3g}") for i in range(-2, 3)],
                ),
            )
            for name, centre in CENTRES.items()
        )
    )
    return Sweep(
        experiment="experiments.fashion_mnist_mlp_128_64",
        points=points,
        seeds=3,
        metric="eval/validation/accuracy",
        test_metric="eval/test/accuracy",
        by=("optimizer.type",),
        baseline={"optimizer.type": "sgd"},
        overrides={
            "train.epochs": 3,
            "model.widths": (128,),
            "data.splits": dict(train="train[:10000]", validation="train[90%:]", test="test"),
            "evaluate.splits": ("validation", "test"),
            "checkpoint.every": "never",  # a trial takes seconds: sooner run again than saved
        },
    )
