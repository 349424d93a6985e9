"""Which learning rate for a 2x30 MLP on digits: 16 rates x 4 seeds (half a minute on 2 CPU cores).

    scripts/run bigjax.sweep experiments.sweeps.digits_learning_rate --vectorize

Adam, 60 epochs of 800 images; chosen on 200 validation images, then tested once on 797 others.
Validation accuracy, 95 % t interval over 4 seeds; difference from 0.001, paired by seed:

    rate      mean    sd      95 % interval     difference  p (Holm)
    0.0251    0.9750  0.0041  [0.9685, 0.9815]   0.0150     0.87      best: test 0.934 (sd 0.011)
    0.00398   0.9725  0.0065  [0.9622, 0.9828]   0.0125     0.87
    0.0158    0.9725  0.0119  [0.9536, 0.9914]   0.0125     0.72
    0.00251   0.9713  0.0111  [0.9536, 0.9889]   0.0113     0.58
    0.01      0.9700  0.0071  [0.9587, 0.9813]   0.0100     0.87
    0.00631   0.9662  0.0025  [0.9623, 0.9702]   0.0063     1
    0.00158   0.9650  0.0122  [0.9455, 0.9845]   0.0050     1
    0.001     0.9600  0.0158  [0.9348, 0.9852]   baseline             test 0.924 (sd 0.009)
    0.000631  0.9537  0.0149  [0.9300, 0.9775]  -0.0062     0.22
    0.0398    0.9537  0.0263  [0.9120, 0.9955]  -0.0062     1
    0.0631    0.9500  0.0242  [0.9116, 0.9884]  -0.0100     1
    0.000398  0.9412  0.0155  [0.9166, 0.9659]  -0.0187     0.72
    0.000251  0.9238  0.0170  [0.8967, 0.9508]  -0.0362     0.36
    0.000158  0.8750  0.0255  [0.8344, 0.9156]  -0.0850     0.22
    0.1       0.8675  0.0587  [0.7741, 0.9609]  -0.0925     0.32
    0.0001    0.7825  0.0253  [0.7422, 0.8228]  -0.1775     0.04

Rates from 0.0016 to 0.025 cannot be told apart with 4 seeds and 200 validation images.
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
