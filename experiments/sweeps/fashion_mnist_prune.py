"""Which learning rate, and which scope of pruning, `fashion_mnist_prune` takes: 12 runs (2 minutes of processor time).

    scripts/fetch_data fashion_mnist          once
    scripts/run bigjax.sweep experiments.sweeps.fashion_mnist_prune --vectorize

Accuracy on 6,000 validation images, seed 0, on one of 2 CPU cores shared with many other jobs (14 minutes):

    stage      scope   rate 0.001  0.002   0.004
    dense              0.8740      0.8792  0.8823
    small 50           0.8533      0.8593  0.8662
    pruned 90  global  0.8562      0.8683  0.8783
    pruned 90  leaf    0.8392      0.8608  0.8733

The largest rate is the best of each kind, so a larger one might be better still: for the dense and the small one, too.
"""

from bigjax.sweep import Sweep, chain, over, product
from experiments.fashion_mnist_prune import pruned


def get_sweep():
    rates = over("optimizer.learning_rate", [1e-3, 2e-3, 4e-3])
    return Sweep(
        experiment="experiments.fashion_mnist_prune",
        points=chain(
            product(over("stage", ["dense", "small_50"]), rates),
            product(
                over("stage", ["pruned_90"]),
                rates,
                over("adapt", [(pruned(0.9, scope),) for scope in ("leaf", "global")]),
            ),
        ),
        seeds=1,
        metric="eval/validation/accuracy",
        test_metric="eval/test/accuracy",
        by=("stage",),
        baseline={"stage": "small_50"},
    )
