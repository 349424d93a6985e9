"""What a student that never sees a 3 knows of threes, alone and distilled, over 10 seeds.

    scripts/run bigjax.sweep experiments.sweeps.digits_omitted_class --vectorize

See `experiments.digits_omitted_class`.
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
