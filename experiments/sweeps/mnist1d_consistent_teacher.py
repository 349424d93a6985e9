"""Five ways to learn MNIST-1D, with and without a teacher: consistent 70.2 %, the control 66.3 %, 10 seeds (7 minutes of one core).

    scripts/fetch_data mnist1d          once
    scripts/run bigjax.sweep experiments.sweeps.mnist1d_consistent_teacher --vectorize

What the stages are: `experiments.mnist1d_consistent_teacher`. Test accuracy (nothing is chosen), differences from the
control, labels with moved and mixed signals, paired by seed:

    stage        mean    sd      difference  95 % of it            p (Holm)
    consistent   0.7023  0.0098   0.0390     [ 0.0310,  0.0470]    5.3e-06
    fixed        0.7008  0.0102   0.0375     [ 0.0260,  0.0490]    8.4e-05
    matching     0.6829  0.0112   0.0196     [ 0.0109,  0.0283]    0.0007
    alone_mixed  0.6633  0.0087   baseline
    alone        0.5954  0.0193  -0.0679     [-0.0815, -0.0543]    5.3e-06
"""

from bigjax.sweep import Sweep, over


def get_sweep():
    return Sweep(
        experiment="experiments.mnist1d_consistent_teacher",
        points=over("stage", ["alone", "alone_mixed", "fixed", "consistent", "matching"]),
        seeds=10,
        metric="eval/test/accuracy",
        select_on_test=True,  # nothing is chosen: the table is the answer
        baseline={"stage": "alone_mixed"},
    )
