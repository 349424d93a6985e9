"""A 2x400 MLP's digits in a 2x60 student, distilled, pruned and put in eight bits: 168 times smaller, 0.4 points worse.

    scripts/run experiments.distil_prune_quantize
    scripts/run experiments.distil_prune_quantize shrink --stage=pruned --chain=int8
    scripts/run experiments.distil_prune_quantize shrink --stage=teacher --chain=int8

Three runs a seed: the teacher; a student taught by it (Hinton, Vinyals & Dean 2015); that student, taught on while
four fifths of its weights become zero (Zhu & Gupta 2017). The verb `shrink` then puts its kernels in eight bits. Sizes
are those of the numbers alone, deflated; the teacher's is in the third command's row "before". The gap to the
teacher is within the deviation of the seeds.

Hardware: 2 CPU cores shared with a dozen other jobs; 2 minutes of processor time. Reached on the 797 test images, 5 seeds:

    stage            errors of 797  accuracy           kB
    teacher          42.0 +- 2.5    0.9473 +- 0.0032  705.7
    distilled        44.0 +- 2.4    0.9448 +- 0.0031
    pruned           45.2 +- 3.8    0.9433 +- 0.0048  8.7
    pruned, int8                    0.9430 +- 0.0044  4.2
"""

from bigjax import launch, pipeline
from experiments import digits_distill


def get_config():
    stages = digits_distill.get_config().stages
    teacher = stages.teacher
    distilled = stages.student_distilled
    distilled.model.widths = (60, 60)

    pruned = distilled.copy_and_resolve_references()
    pruned.init = dict(source="../distilled")
    pruned.adapt = (dict(type="prune", sparsity=0.8, end=1500, every=50, scope="global"),)
    return pipeline(
        dict(teacher=teacher, distilled=distilled, pruned=pruned),
        seeds=5,
        table=("eval/test/errors", "eval/test/accuracy"),
    )


if __name__ == "__main__":
    launch.run(get_config)
