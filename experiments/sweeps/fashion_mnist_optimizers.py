"""Seven optimizers under one tuning budget, on 10,000 Fashion-MNIST images (under 2 minutes on 2 cores).

    scripts/fetch_data fashion_mnist          once
    scripts/run bigjax.sweep experiments.sweeps.fashion_mnist_optimizers --vectorize

Each optimizer gets 5 learning rates, a factor of 3.16 apart around what its authors advise, x 3
seeds, and is judged at its best rate; a 784-128-10 MLP, 3 epochs, chosen on 6,000 validation images
and tested once on the 10,000 test images. Accuracy; differences from sgd, paired by seed:

    optimizer  rate      validation       difference  95 % of it         p (Holm)  test
    muon       0.01      0.8602 (0.0044)   0.0417     [ 0.0150, 0.0684]  0.13      0.8513 (0.0055)
    lion       0.000949  0.8471 (0.0058)   0.0286     [ 0.0044, 0.0529]  0.18      0.8369 (0.0072)
    adamw      0.00316   0.8357 (0.0102)   0.0173     [-0.0343, 0.0689]  1         0.8257 (0.0108)
    adam       0.00316   0.8348 (0.0136)   0.0163     [-0.0347, 0.0674]  1         0.8240 (0.0130)
    rmsprop    0.00316   0.8253 (0.0224)   0.0069     [-0.0261, 0.0399]  1         0.8209 (0.0213)
    sgd        0.316     0.8184 (0.0146)   baseline                                0.8143 (0.0165)
    momentum   0.00949   0.8183 (0.0094)  -0.0002     [-0.0316, 0.0313]  1         0.8089 (0.0078)

In parentheses: standard deviation over the seeds. On the test images muon is 0.0370 [0.0033, 0.0707]
above sgd, p 0.25 after Holm's correction: 3 seeds are few. No optimizer's best rate lies at an
end of its five.
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
