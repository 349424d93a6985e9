"""Which learning rate for a 2x30 MLP on digits: 16 rates x 4 seeds (TIME).

    scripts/run bigjax.sweep experiments.sweeps.digits_learning_rate --vectorize

Adam, 60 epochs of 800 images; chosen on 200 validation images, then tested once on 797 others.
"""

from bigjax.sweep import Sweep, over


def get_sweep():
    rates = [float(f"{10 ** (-4 + i / 5):.3g}") for i in range(16)]
    return Sweep(
        experiment="experiments.digits_distill",
        stage="student_alone",
        points=over("optimizer.learning_rate", rates),
        seeds=4,
        metric="eval/validation/accuracy",
        test_metric="eval/test/accuracy",
        baseline={"optimizer.learning_rate": 1e-3},
        overrides={
            "data.splits": dict(train="train[:80%]", validation="train[80%:]", test="test"),
            "evaluate.splits": ("validation", "test"),
            "checkpoint.every": "never",  # a trial takes seconds: sooner run again than saved
        },
    )
