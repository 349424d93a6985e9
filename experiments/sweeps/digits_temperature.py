"""At which temperature a 2x400 MLP teaches a 2x30 one: alone against T = 1, 2, 4, 8, 20, 12 seeds.

scripts/run bigjax.sweep experiments.sweeps.digits_temperature --vectorize
"""

from bigjax.sweep import Sweep, chain, over, product


def get_sweep():
    alone = over("stage", ["student_alone"])
    distilled = product(
        over("stage", ["student_distilled"]),
        over("distill.temperature", [1.0, 2.0, 4.0, 8.0, 20.0]),
    )
    return Sweep(
        experiment="experiments.digits_distill",
        points=chain(alone, distilled),
        seeds=12,
        metric="eval/test/accuracy",
        select_on_test=True,  # nothing is chosen: the table is the answer
        baseline={"stage": "student_alone"},
    )
