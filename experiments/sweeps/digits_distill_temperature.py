"""At which temperature a 2x400 MLP teaches a 2x30 one: 6 temperatures x 10 seeds (5 minutes on 2 busy cores).

    scripts/run bigjax.sweep experiments.sweeps.digits_distill_temperature --vectorize

Each seed has one teacher, shared by all its students; the student alone is what they are compared
with, seed by seed (Hinton, Vinyals & Dean 2015 found low temperatures best for small students).
Validation accuracy (200 images), 95 % t interval over 10 seeds, differences from the student alone:

    T      mean    sd      95 % interval     difference  95 % of it          p (Holm)  d_z
    2      0.9710  0.0057  [0.9669, 0.9751]   0.0050     [-0.0029,  0.0129]  1           0.45
    8      0.9700  0.0111  [0.9621, 0.9779]   0.0040     [-0.0039,  0.0119]  1           0.36
    1      0.9685  0.0058  [0.9644, 0.9726]   0.0025     [-0.0020,  0.0070]  1           0.39
    16     0.9685  0.0113  [0.9604, 0.9766]   0.0025     [-0.0069,  0.0119]  1           0.19
    4      0.9680  0.0067  [0.9632, 0.9728]   0.0020     [-0.0061,  0.0101]  1           0.18
    alone  0.9660  0.0070  [0.9610, 0.9710]   baseline
    32     0.9650  0.0120  [0.9564, 0.9736]  -0.0010     [-0.0108,  0.0088]  1          -0.07

On the 797 test images T = 2 gives 0.9360 and the student alone 0.9331, difference 0.0029
[-0.0004, 0.0062], p 0.08; the teachers reach 0.941. Ten seeds are too few to tell that gain from nothing;
`digits_distill_again` does, with thirty new ones at this temperature. An older tree chose T = 8: ten
seeds do not tell the first two apart.
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
