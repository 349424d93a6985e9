"""Seven optimizers under one tuning budget, on 10,000 Fashion-MNIST images (7 minutes on 2 busy cores).

    scripts/fetch_data fashion_mnist          once
    scripts/run bigjax.sweep experiments.sweeps.fashion_mnist_optimizers --vectorize

Each optimizer gets 5 learning rates, a factor of 3.16 apart around what its authors advise, x 3
seeds, and is judged at its best rate; a 784-128-10 MLP, 3 epochs, chosen on 6,000 validation images
and tested once on the 10,000 test images. Accuracy; differences from sgd, paired by seed:

    optimizer  rate      validation       difference  95 % of it         p (Holm)  test
    muon       0.01      0.8595 (0.0052)   0.0369     [ 0.0166, 0.0573]  0.10      0.8511 (0.0056)
    lion       0.000949  0.8465 (0.0031)   0.0239     [-0.0073, 0.0552]  0.40      0.8358 (0.0056)
    adamw      0.001     0.8345 (0.0008)   0.0119     [-0.0226, 0.0465]  1         0.8251 (0.0020)
    adam       0.00316   0.8341 (0.0147)   0.0115     [-0.0492, 0.0722]  1         0.8232 (0.0143)
    rmsprop    0.00316   0.8286 (0.0179)   0.0061     [-0.0305, 0.0426]  1         0.8210 (0.0212)
    sgd        0.316     0.8226 (0.0134)   baseline                                0.8174 (0.0148)
    momentum   0.00949   0.8183 (0.0094)  -0.0043     [-0.0443, 0.0358]  1         0.8089 (0.0078)

In parentheses: standard deviation over the seeds. On the test images muon is 0.0337 [0.0080, 0.0594]
above sgd, p 0.18 after Holm's correction: 3 seeds are few. No optimizer's best rate lies at an
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
