"""Twelve ways to distil a small CNN, at equal steps, 5 seeds: six are surely above the student alone (14 minutes of one core).

    scripts/fetch_data fashion_mnist          once
    scripts/run bigjax.sweep experiments.sweeps.fashion_mnist_distill_methods --vectorize

What the stages are: `experiments.fashion_mnist_distill_methods`. Test accuracy (nothing is chosen), differences from
the student alone, paired by seed (paired t test, Holm's correction over the twelve):

    stage       mean    sd      difference  95 % of it          p (Holm)
    soft        0.8398  0.0062   0.0139     [ 0.0127,  0.0150]  5.8e-05
    dist        0.8390  0.0069   0.0131     [ 0.0111,  0.0150]  5.2e-04
    dkd         0.8386  0.0062   0.0126     [ 0.0104,  0.0149]  8.6e-04
    reverse_kl  0.8361  0.0068   0.0102     [ 0.0089,  0.0115]  3.2e-04
    logits      0.8338  0.0056   0.0079     [ 0.0060,  0.0098]  0.0022
    jsd         0.8335  0.0060   0.0075     [ 0.0060,  0.0090]  0.0012
    contrast    0.8327  0.0074   0.0068     [ 0.0025,  0.0110]  0.07
    hard        0.8324  0.0069   0.0064     [ 0.0024,  0.0105]  0.07
    relational  0.8272  0.0067   0.0013     [-0.0016,  0.0042]  0.57
    alone       0.8259  0.0064  baseline
    similarity  0.8259  0.0061  -0.0000     [-0.0014,  0.0013]  0.94
    attention   0.8219  0.0064  -0.0041     [-0.0089,  0.0007]  0.31
    hint        0.8215  0.0061  -0.0045     [-0.0107,  0.0018]  0.36

The five teachers reach 0.8868. What compares outputs helps, most of all the soft targets of 2015; what compares features of
two such unlike networks, with weights that nobody tuned, does not. One core shared with many jobs: some 14 minutes of
processor time for the 70 runs.
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
