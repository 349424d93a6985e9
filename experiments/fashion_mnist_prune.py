"""How many weights of a 784-500-10 MLP on Fashion-MNIST can be zero: a beginning, not run here.

    scripts/fetch_data fashion_mnist          once
    scripts/run experiments.fashion_mnist_prune

Six runs a seed: dense; four whose share of zeros rises to 50, 80, 90 and 95 in a hundred while they are trained (Zhu &
Gupta 2017, eq. 1); and a dense 784-50-10 MLP, which has as many weights as the fourth keeps. Their question is
whether the large sparse one is better than the small dense one.

Hardware: meant for 2 CPU cores, for some 60 minutes. Not run here: there are no figures yet.
"""

from bigjax import launch, pipeline
from experiments import fashion_mnist_mlp_500

SHARES = (0.5, 0.8, 0.9, 0.95)


def get_config():
    dense = fashion_mnist_mlp_500.get_config()
    stages = {"dense": dense}
    for share in SHARES:
        pruned = dense.copy_and_resolve_references()
        pruned.adapt = (dict(type="prune", sparsity=share, begin=500, end=3500, every=100),)
        stages[f"pruned_{round(100 * share)}"] = pruned
    small = dense.copy_and_resolve_references()
    small.model.widths = (50,)
    stages["small_dense"] = small
    return pipeline(stages, seeds=5, table=("eval/test/accuracy",))


if __name__ == "__main__":
    launch.run(get_config)
