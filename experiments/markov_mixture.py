"""Two Markov chains mixed 4 to 1, for the last fifth 1 to 1: a small Transformer learns both (2 minutes on 2 CPU cores).

    scripts/run experiments.markov_mixture

Hardware: 2 CPU cores shared with many other jobs, 363 s, half of it waiting for them. Reached with seed 0: 0.668 nats on
the common chain and 0.689 on the rare one, of which 0.637 are the entropy of each; before the weights changed, at step
400, it was 0.655 and 0.731. 23,680 rows of the one and 8,320 of the other were read: 80 % of 400 and 50 % of 100 steps.
"""

from ml_collections import ConfigDict

from bigjax import launch


def get_config():
    config = ConfigDict()
    config.seed = 0
    config.train = dict(steps=500, batch_size=64)
    chain = dict(type="markov_tokens", vocab=32, length=32, branches=2, examples=8192)
    config.data = dict(
        source=dict(**chain, seed=0),
        sources=dict(rare=dict(**chain, seed=1)),
        splits=dict(train="train", rare="rare:train", test="test", rare_test="rare:test"),
        mixture=dict(train=4.0, rare=1.0),
        mixture_schedules=dict(train=dict(type="piecewise", pieces=((400, 0.25),))),
    )
    config.model = dict(type="gpt2", vocab=32, layers=2, width=64, heads=4, context=32)
    config.task = dict(type="language_model")
    config.optimizer = dict(
        type="adamw",
        learning_rate=3e-3,
        schedule=dict(type="cosine", warmup_steps=50),
        clip_norm=1.0,
    )
    config.evaluate = dict(splits=("test", "rare_test"), every=100, batch_size=256)
    config.log = dict(every=50)
    return config


if __name__ == "__main__":
    launch.run(get_config)
