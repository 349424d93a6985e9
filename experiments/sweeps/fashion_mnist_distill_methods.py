"""Ways to distil a small CNN, at equal steps, 5 seeds: a beginning, three of twelve were run, all better than alone.

    scripts/fetch_data fashion_mnist          once
    scripts/run bigjax.sweep experiments.sweeps.fashion_mnist_distill_methods --vectorize

What the stages are: `experiments.fashion_mnist_distill_methods`. Test accuracy (nothing is chosen), differences from
the student alone, paired by seed; p of the t test times 12, for as many comparisons as the whole table has:

    stage       mean    sd      difference  95 % of it          p
    soft        0.8398  0.0062   0.0139     [0.0127, 0.0150]    5.8e-05
    reverse_kl  0.8361  0.0068   0.0102     [0.0089, 0.0115]    0.00035
    jsd         0.8335  0.0060   0.0075     [0.0060, 0.0090]    0.0018
    alone       0.8259  0.0064   baseline

The five teachers reach 0.8868. The other nine objectives wait for 60 minutes of two quiet cores.
"""

from bigjax.sweep import Sweep, over
from experiments.fashion_mnist_distill_methods import OBJECTIVES


def get_sweep():
    return Sweep(
        experiment="experiments.fashion_mnist_distill_methods",
        points=over("stage", ["alone", *OBJECTIVES]),
        seeds=5,
        metric="eval/test/accuracy",
        select_on_test=True,  # nothing is chosen: the table is the answer
        baseline={"stage": "alone"},
    )
