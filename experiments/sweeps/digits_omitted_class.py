"""What a student that never sees a 3 knows of threes, alone and distilled: 10 seeds (2 minutes on 2 cores).

    scripts/run bigjax.sweep experiments.sweeps.digits_omitted_class --vectorize

The table is of the accuracy on all test images: 0.9349 shifted, 0.9222 distilled and 0.8478 alone; what is known of threes
is in each trial's result.json, and in the docstring of `experiments.digits_omitted_class`. Nothing is chosen
by the test images: there is one setting of each, and of the second a student of 2x100 too, 0.9320.
"""

from bigjax.sweep import Sweep, chain, over, product


def get_sweep():
    return Sweep(
        experiment="experiments.digits_omitted_class",
        points=chain(
            over("stage", ["student_alone", "student_distilled", "student_shifted"]),
            product(over("stage", ["student_distilled"]), over("model.widths", [(100, 100)])),
        ),
        seeds=10,
        metric="eval/test/accuracy",
        select_on_test=True,  # nothing is chosen: the table is the answer
        baseline={"stage": "student_alone"},
    )
