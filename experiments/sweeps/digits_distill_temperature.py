"""At which temperature a 2x400 MLP teaches a 2x30 one: 6 temperatures x 10 seeds (TIME).

    scripts/run bigjax.sweep experiments.sweeps.digits_distill_temperature --vectorize

Each seed has one teacher, shared by all its students; the student alone is what they are compared
with, seed by seed. Hinton, Vinyals & Dean 2015 found low temperatures best for small students.
"""

from bigjax.sweep import Sweep, chain, over, product


def get_sweep():
    alone = over("stage", ["student_alone"])
    distilled = product(
        over("stage", ["student_distilled"]),
        over("distill.temperature", [1.0, 2.0, 4.0, 8.0, 16.0, 32.0]),
    )
    return Sweep(
        experiment="experiments.digits_distill",
        points=chain(alone, distilled),
        seeds=10,
        metric="eval/validation/accuracy",
        test_metric="eval/test/accuracy",
        baseline={"stage": "student_alone"},
        overrides={
            "data.splits": dict(train="train[:80%]", validation="train[80%:]", test="test"),
            "evaluate.splits": ("validation", "test"),
        },
    )
