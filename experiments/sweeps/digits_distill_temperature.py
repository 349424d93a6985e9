"""At which temperature a 2x400 MLP teaches a 2x30 one: 6 temperatures x 10 seeds (5 minutes on 2 busy cores).

    scripts/run bigjax.sweep experiments.sweeps.digits_distill_temperature --vectorize

Each seed has one teacher, shared by all its students; the student alone is what they are compared
with, seed by seed (Hinton, Vinyals & Dean 2015 found low temperatures best for small students).
Validation accuracy (200 images), 95 % t interval over 10 seeds, differences from the student alone:

    T      mean    sd      95 % interval     difference  95 % of it          p (Holm)  d_z
    8      0.9710  0.0105  [0.9635, 0.9785]   0.0045     [-0.0040,  0.0130]  1          0.38
    2      0.9705  0.0050  [0.9669, 0.9741]   0.0040     [-0.0031,  0.0111]  1          0.40
    16     0.9680  0.0111  [0.9601, 0.9759]   0.0015     [-0.0077,  0.0107]  1          0.12
    4      0.9670  0.0063  [0.9625, 0.9715]   0.0005     [-0.0065,  0.0075]  1          0.05
    1      0.9670  0.0071  [0.9619, 0.9721]   0.0005     [-0.0044,  0.0054]  1          0.07
    alone  0.9665  0.0075  [0.9612, 0.9718]   baseline
    32     0.9655  0.0126  [0.9565, 0.9745]  -0.0010     [-0.0114,  0.0094]  1         -0.07

On the 797 test images T = 8 gives 0.9325 and the student alone 0.9331, difference -0.0006
[-0.0043, 0.0031], p 0.71; the teachers reach 0.941. With 800 images, all of them labelled and seen
by the teacher, nothing is gained here at any temperature.
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
