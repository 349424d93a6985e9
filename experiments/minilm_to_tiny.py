"""MiniLM's meaning of sentences in a BERT of two of its six blocks: 65.5 % found, with and without its teacher, one seed (7 minutes).

    scripts/fetch_data manpages && scripts/fetch_data minilm           once
    scripts/run experiments.minilm_to_tiny

Semantic search kept against size, on `minilm_search`'s pairs (a manual page's description and its own one-line summary).
The student starts from the published blocks 1 and 4; alone it learns the pairs (InfoNCE), taught it also learns which
sentences of a batch its teacher finds alike. The teacher is all-MiniLM-L6-v2 as published, its embeddings read from a cache.

Hardware: one CPU core shared with some twenty other jobs, 7 minutes. Reached after two epochs of 982 pairs, seed 0, on the 116
test descriptions, among the summaries of a batch of 64:

    stage              found   loss
    student alone      65.5 %  1.4957
    student distilled  65.5 %  1.4958

The published teacher finds 92.2 % at twice the length (`minilm_search`). Its likenesses are nearly those of the labels, so they
taught nothing more: at this length of training the two students are the same. Nothing was tuned.
"""

from bigjax import launch, pipeline
from experiments import minilm_search


def get_config():
    alone = minilm_search.get_config()
    alone.train = dict(epochs=2, batch_size=32)
    alone.data.source.length = 32
    alone.model = dict(type="bert", head="embedding", dropout=0.1, layers=2)
    alone.init.layers = (1, 4)

    distilled = alone.copy_and_resolve_references()
    teacher = dict(
        source="minilm",
        family="bert",
        model=dict(head="embedding"),
        task=alone.task,
        unused=alone.init.unused,
    )
    distilled.method = dict(
        type="distill",
        teacher=teacher,
        alpha=1.0,
        cache="../cache",
        objectives=dict(labels=dict(type="labels"), alike=dict(type="soft", temperature=1.0)),
    )
    return pipeline(
        dict(student_alone=alone, student_distilled=distilled),
        table=("eval/test/accuracy", "eval/test/loss"),
    )


if __name__ == "__main__":
    launch.run(get_config)
