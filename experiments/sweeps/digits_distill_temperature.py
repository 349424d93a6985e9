"""At which temperature a 2x400 MLP teaches a 2x30 one: 6 temperatures x 10 seeds (2 minutes on 2 cores).

    scripts/run bigjax.sweep experiments.sweeps.digits_distill_temperature --vectorize

Each seed has one teacher, shared by all its students; the student alone is what they are compared
with, seed by seed (Hinton, Vinyals & Dean 2015 found low temperatures best for small students).
Validation accuracy (200 images), 95 % t interval over 10 seeds, differences from the student alone:

    T      mean    sd      95 % interval     difference  95 % of it          p (Holm)  d_z
    2      0.9635  0.0123  [0.9547, 0.9723]   0.0005     [-0.0063,  0.0073]  0.87       0.05
    1      0.9635  0.0118  [0.9551, 0.9719]   0.0005     [-0.0006,  0.0016]  0.69       0.32
    alone  0.9630  0.0116  [0.9547, 0.9713]   baseline
    4      0.9545  0.0112  [0.9465, 0.9625]  -0.0085     [-0.0153, -0.0017]  0.12      -0.90
    8      0.9525  0.0098  [0.9455, 0.9595]  -0.0105     [-0.0192, -0.0018]  0.12      -0.87
    16     0.9525  0.0150  [0.9418, 0.9632]  -0.0105     [-0.0233,  0.0023]  0.38      -0.59
    32     0.9520  0.0167  [0.9401, 0.9639]  -0.0110     [-0.0247,  0.0027]  0.38      -0.58

On the 797 test images T = 2 gives 0.9228 and the student alone 0.9253, difference -0.0025
[-0.0063, 0.0013], p 0.17; the teachers reach 0.944. With 800 images, all of them labelled and seen by
the teacher, nothing is gained here; low temperatures lose least.
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
