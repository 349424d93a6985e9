"""MiniLM's meaning of sentences in a BERT of two of its six blocks: a beginning, not run here.

    scripts/fetch_data manpages && scripts/fetch_data minilm           once
    scripts/run experiments.minilm_to_tiny

Semantic search kept against size, on `minilm_search`'s pairs (a manual page's description and its own one-line summary).
The student starts from the published blocks 1 and 4; alone it learns the pairs (InfoNCE), taught it also learns which
sentences of a batch its teacher finds alike. The teacher is all-MiniLM-L6-v2 as published.

Hardware: meant for 2 CPU cores, some 10 minutes. Only two steps were run; there is no figure yet.
"""

from bigjax import launch, pipeline
from experiments import minilm_search


def get_config():
    alone = minilm_search.get_config()
    alone.train = dict(epochs=3, batch_size=32)
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
        objectives=dict(labels=dict(type="labels"), alike=dict(type="soft", temperature=1.0)),
    )
    return pipeline(
        dict(student_alone=alone, student_distilled=distilled),
        table=("eval/test/accuracy", "eval/test/loss"),
    )


if __name__ == "__main__":
    launch.run(get_config)
