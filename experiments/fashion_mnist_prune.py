"""How many weights of a 784-500-10 MLP on Fashion-MNIST can be zero: nine tenths for 0.7 points of accuracy (6 minutes).

    scripts/fetch_data fashion_mnist          once
    scripts/run experiments.fashion_mnist_prune
    scripts/run bigjax.sweep experiments.sweeps.fashion_mnist_prune --vectorize    what was chosen

Seven runs a seed: dense; four whose share of zeros rises to 50, 80, 90 and 95 in a hundred while they are trained (Zhu &
Gupta 2017, eq. 1; of all layers together); and two dense MLPs of 50 and 25 hidden units, which have as many weights as the last two
of those keep. Their ordering holds: the large sparse one is better than the small dense one of as many weights, in each
of the 5 seeds.

The learning rate of each kind and the scope of pruning were chosen on 6,000 validation images, with seed 0.

Hardware: one of 2 CPU cores shared with many other jobs: 30 minutes, 6 of processor time. Reached on the 10,000 test images
by 5 seeds:

    stage      accuracy
    dense      0.8770 +- 0.0009
    pruned 50  0.8763 +- 0.0012
    pruned 80  0.8734 +- 0.0016
    pruned 90  0.8700 +- 0.0023
    pruned 95  0.8610 +- 0.0014
    small 50   0.8602 +- 0.0008
    small 25   0.8509 +- 0.0023

Pruned to 90 less small of 50: 0.0098, p 0.001; pruned to 95 less small of 25: 0.0101, p 0.0002, paired by seed.
"""

from bigjax import launch, pipeline
from experiments import fashion_mnist_mlp_500

SHARES = (0.5, 0.8, 0.9, 0.95)
WIDTHS = (50, 25)  # as many weights as 0.9 and 0.95 leave


def pruned(share, scope="global"):
    return dict(type="prune", sparsity=share, begin=150, end=1050, every=50, scope=scope)


def get_config():
    dense = fashion_mnist_mlp_500.get_config()
    dense.train = dict(epochs=3, batch_size=128)
    dense.data.splits = dict(train="train[:54000]", validation="train[54000:]", test="test")
    dense.evaluate.splits = ("validation", "test")
    dense.checkpoint = dict(every="end")
    dense.optimizer = dict(type="adam", learning_rate=4e-3, schedule=dict(type="cosine"))
    stages = {"dense": dense}
    for share in SHARES:
        sparse = dense.copy_and_resolve_references()
        sparse.adapt = (pruned(share),)
        stages[f"pruned_{round(100 * share)}"] = sparse
    for width in WIDTHS:
        small = dense.copy_and_resolve_references()
        small.model.widths = (width,)
        stages[f"small_{width}"] = small
    return pipeline(stages, seeds=5, table=("eval/test/accuracy",))


if __name__ == "__main__":
    launch.run(get_config)
