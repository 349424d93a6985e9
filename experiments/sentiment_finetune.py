"""What pre-training is worth: good or bad film reviews from scratch, from a tiny BERT that read the
Brown corpus, and from a published MiniLM.

    scripts/fetch_data sentiment && scripts/fetch_data brown && scripts/fetch_data minilm      once
    scripts/run experiments.sentiment_finetune
    .venv/bin/python -m scripts.baselines.tfidf sentiment        TF-IDF and logistic regression

Four runs: `brown` is experiments.brown_bert, `from_brown` goes on from it with a new head, `scratch`
is the same model without it, and `minilm` is experiments.sentiment_bert.

Hardware: 2 CPU cores shared with other jobs: 15 minutes. Reached in one go on the
1,052 test snippets with seed 0: scratch 71.9 %, from_brown 69.9 %, minilm 85.7 %; TF-IDF and logistic
regression 80.8 %. What pre-training is worth depends on how much there was: eight epochs of a million words (5.98
nats a hidden token) are worth nothing that shows, nor with another seed, with three epochs of fine-tuning or the
learning rate doubled (one seed each).
"""

from ml_collections import ConfigDict

from bigjax import launch, pipeline
from experiments import brown_bert, sentiment_bert


def get_config():
    brown, minilm = brown_bert.get_config(), sentiment_bert.get_config()

    scratch = sentiment_bert.get_config()
    del scratch.init
    scratch.data.source.tokenizer = brown.data.source.tokenizer
    scratch.model = ConfigDict({**brown.model, "head": "sequence", "outputs": 2, "dropout": 0.1})
    scratch.optimizer.learning_rate = 5e-4  # no pre-trained weights to spoil

    from_brown = scratch.copy_and_resolve_references()
    from_brown.init = dict(source="../brown", rules=((r"(pooler|head)/.*", None), (r"(.*)", r"\1")))
    return pipeline(
        dict(brown=brown, scratch=scratch, from_brown=from_brown, minilm=minilm),
        table=("eval/test/errors", "eval/test/accuracy"),
    )


if __name__ == "__main__":
    launch.run(get_config)
