"""A CNN teaches a 784-32-10 MLP on Fashion-MNIST, which does not help it (4 minutes on 2 CPU cores).

    scripts/fetch_data fashion_mnist          once
    scripts/run experiments.fashion_mnist_distill

Three runs: the teacher (3x3 conv 16, pool, 3x3 conv 32, pool, linear); the student alone; the same
student taught by the teacher (Hinton, Vinyals & Dean 2015).

Hardware: 2 CPU cores shared with other jobs: 262 s, 173 s of processor time. Reached on the 10,000
test images, one seed: teacher 89.55 %, student alone 87.13 %, student distilled (T = 3, alpha = 0.9)
86.02 %. So small a student does not profit from this teacher at this temperature; neither was tuned.
Why: the teacher is little better on these very images than the student becomes alone, and T = 3 with so little
weight on labels spends the student's room on what it says of unlikely classes. In a bare loop over its outputs (three
seeds, validation images) less of both lost less, down to no difference at T = 1 and a weight of a half; none
of the settings tried, T = 1 to 5, was above training alone there.
"""

from ml_collections import ConfigDict

from bigjax import launch, pipeline


def get_config():
    base = ConfigDict()
    base.seed = 0
    base.train = dict(epochs=8, batch_size=128)
    base.data = dict(
        source=dict(type="tfds", name="fashion_mnist"),
        splits=dict(train="train", test="test"),
        preprocess=(dict(type="normalize", scale=255.0, mean=0.286, std=0.353),),
    )
    base.task = dict(type="classification")
    base.optimizer = dict(type="adamw", learning_rate=2e-3, schedule=dict(type="cosine"))
    base.evaluate = dict(splits=("test",), every="end", batch_size=500)
    base.log = dict(every=200)

    teacher = base.copy_and_resolve_references()
    teacher.train.epochs = 3
    teacher.model = dict(type="cnn", channels=(16, 32), outputs=10, batch_norm=True, dropout=0.3)

    alone = base.copy_and_resolve_references()
    alone.model = dict(type="mlp", widths=(32,), outputs=10)

    distilled = alone.copy_and_resolve_references()
    distilled.distill = dict(teacher="../teacher", temperature=3.0, alpha=0.9)

    return pipeline(
        dict(teacher=teacher, student_alone=alone, student_distilled=distilled),
        seeds=1,
        table=("eval/test/errors", "eval/test/accuracy"),
    )


if __name__ == "__main__":
    launch.run(get_config)
