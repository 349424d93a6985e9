"""Twelve ways to distil a CNN into a smaller one that sees 2,000 pictures of Fashion-MNIST: soft targets give most, 84.0 %.

    scripts/fetch_data fashion_mnist                                                         once
    scripts/run experiments.fashion_mnist_distill_methods                                    one seed, 14 stages
    scripts/run bigjax.sweep experiments.sweeps.fashion_mnist_distill_methods --vectorize    5 seeds

The teacher is that of `fashion_mnist_distill`; students of 3x3 conv 4, pool, 3x3 conv 8, pool, dense 32 learn 500 steps of 64,
alone or with one objective beside the labels' loss. No weight and no temperature was tuned (T = 2).

Hardware: one CPU core shared with many jobs, some 3 minutes a stage of 5 seeds. On the 10,000 test pictures the student alone
knows 82.6 %, taught by soft targets 84.0 %, the teacher 88.7 %: all twelve, with spread and p, are in
`experiments.sweeps.fashion_mnist_distill_methods`.
"""

from bigjax import launch, pipeline
from experiments import fashion_mnist_distill

DENSE = dict(student_feature="dense_0", teacher_feature="dense_0")
OBJECTIVES = {  # what is added to the labels' loss
    "soft": {},
    "reverse_kl": {},
    "jsd": {},
    "dkd": dict(beta=2.0),
    "dist": {},
    "logits": dict(weight=0.1),
    "hard": {},
    "hint": DENSE,
    "attention": dict(student_feature="conv_1", teacher_feature="conv_1", weight=10.0),
    "relational": DENSE,
    "similarity": dict(**DENSE, weight=10.0),
    "contrast": DENSE,
}


def get_config():
    stages = fashion_mnist_distill.get_config().stages
    alone = stages.student_alone.copy_and_resolve_references()
    alone.train.steps = 500
    alone.model = dict(type="cnn", channels=(4, 8), dense=(32,), outputs=10, batch_norm=True)

    students = {"alone": alone}
    for name, values in OBJECTIVES.items():
        students[name] = alone.copy_and_resolve_references()
        students[name].method = dict(
            type="distill",
            teacher="../teacher",
            alpha=1.0,
            objectives=dict(labels=dict(type="labels"), taught=dict(type=name, **values)),
        )
    return pipeline(
        dict(teacher=stages.teacher, **students),
        table=("eval/test/errors", "eval/test/accuracy"),
    )


if __name__ == "__main__":
    launch.run(get_config)
