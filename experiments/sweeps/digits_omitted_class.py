"""What a student that never sees a 3 knows of threes, alone and distilled: 10 seeds (38 minutes on 2 very busy cores).

    scripts/run bigjax.sweep experiments.sweeps.digits_omitted_class --vectorize

The table is of the accuracy on all test images, 0.9222 distilled and 0.8478 alone; what is known of threes
is in each trial's result.json, and in the docstring of `experiments.digits_omitted_class`. Nothing is chosen
by the test images: there is one setting of each.
"""

from bigjax.sweep import Sweep, over


def get_sweep():
    return Sweep(
        experiment="experiments.digits_omitted_class",
        points=over("stage", ["student_alone", "student_distilled"]),
        seeds=10,
        metric="eval/test/accuracy",
        select_on_test=True,  # nothing is chosen: the table is the answer
        baseline={"stage": "student_alone"},
    )
