"""Which learning rate for a 2x30 MLP on digits: 16 rates x 4 seeds (1.5 minutes on 2 busy cores).

    scripts/run bigjax.sweep experiments.sweeps.digits_learning_rate --vectorize

Adam, 60 epochs of 800 images; chosen on 200 validation images, then tested once on 797 others.
Validation accuracy, 95 % t interval over 4 seeds; difference from 0.001, paired by seed:

    rate      mean    sd      95 % interval     difference  p (Holm)
    0.0158    0.9750  0.0108  [0.9578, 0.9922]   0.0100     1     best: test 0.937 (sd 0.007)
    0.01      0.9712  0.0063  [0.9612, 0.9813]   0.0063     1
    0.0251    0.9712  0.0063  [0.9612, 0.9813]   0.0063     1
    0.00398   0.9700  0.0091  [0.9555, 0.9845]   0.0050     1
    0.00631   0.9688  0.0048  [0.9611, 0.9764]   0.0037     1
    0.00251   0.9675  0.0096  [0.9523, 0.9827]   0.0025     1
    0.001     0.9650  0.0147  [0.9416, 0.9884]   baseline         test 0.926 (sd 0.010)
    0.00158   0.9637  0.0132  [0.9428, 0.9847]  -0.0013     1
    0.000631  0.9563  0.0155  [0.9316, 0.9809]  -0.0088     0.69
    0.0398    0.9562  0.0075  [0.9443, 0.9682]  -0.0088     1
    0.000398  0.9475  0.0150  [0.9236, 0.9714]  -0.0175     0.02
    0.0631    0.9475  0.0050  [0.9395, 0.9555]  -0.0175     1
    0.000251  0.9300  0.0204  [0.8975, 0.9625]  -0.0350     0.21
    0.1       0.9263  0.0063  [0.9162, 0.9363]  -0.0387     0.084
    0.000158  0.9000  0.0234  [0.8627, 0.9373]  -0.0650     0.28
    0.0001    0.8275  0.0310  [0.7782, 0.8768]  -0.1375     0.085

Rates from 0.0006 to 0.1 cannot be told apart from 0.001 with 4 seeds and 200 validation images; on the
test images the best is 0.0113 [0.0035, 0.0191] above it, p 0.02.
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
