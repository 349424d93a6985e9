"""A 2x400 MLP teaches a 2x30 student on scikit-learn's digits, 5 seeds (2 minutes on 2 CPU cores).

    scripts/run experiments.digits_distill

Three runs a seed: the teacher; the student alone; the same student taught by the teacher (Hinton,
Vinyals & Dean 2015, section 3, on a smaller data set). 1,000 training and 797 test images of 8x8.
"""

from ml_collections import ConfigDict

from bigjax import launch
from bigjax.stages import pipeline


def get_config():
    base = ConfigDict()
    base.seed = 0
    base.train = dict(epochs=60, batch_size=50)
    base.data = dict(
        source=dict(type="tfds", name="digits"),
        splits=dict(train="train", test="test"),
        preprocess=(dict(type="normalize", scale=16.0),),
    )
    base.task = dict(type="classification")
    base.optimizer = dict(type="adam", learning_rate=1e-3)
    base.evaluate = dict(splits=("test",), every="end")
    base.log = dict(every=200)

    teacher = base.copy_and_resolve_references()
    teacher.model = dict(type="mlp", widths=(400, 400), outputs=10, dropout=0.5)

    alone = base.copy_and_resolve_references()
    alone.model = dict(type="mlp", widths=(30, 30), outputs=10)

    distilled = alone.copy_and_resolve_references()
    distilled.distill = dict(teacher="../teacher", temperature=2.0, alpha=0.9)

    return pipeline(
        dict(teacher=teacher, student_alone=alone, student_distilled=distilled),
        seeds=5,
        table=("eval/test/errors", "eval/test/accuracy"),
    )


if __name__ == "__main__":
    launch.run(get_config)
