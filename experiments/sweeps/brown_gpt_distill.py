"""What a strong teacher is worth where texts are scarce: 2.575 bits a byte by forward KL, 3.035 alone, 5 seeds (26 minutes).

    scripts/fetch_data brown                    once
    scripts/run experiments.brown_gpt_int4      once: the teacher, runs/brown_gpt_int4
    scripts/run bigjax.sweep experiments.sweeps.brown_gpt_distill --vectorize

Two stages of `experiments.brown_gpt_distill` that see four of the 447 training texts, a hundredth: 300 steps of 4 rows of 128
tokens, 12 times each row. "forward" has no labels; its teacher is a `brown_gpt` of 600 steps, which saw all texts (2.298 bits
a byte). Bits per byte of five test texts, nothing chosen:

    stage    mean   sd     difference  95 % of it          p
    forward  2.575  0.020  -0.4602     [-0.4771, -0.4432]  1.8e-07
    alone    3.035  0.015  baseline

Paired by the seed of the students, which share one teacher: p is of other students, not of other teachers or other texts. Measured on
one core shared with many jobs, some 230 s of processor time.
An earlier setting (teachers of 400 steps) was given up after its students alone had been scored on the test texts; its forward arm never ran.
"""

from bigjax.sweep import Sweep, over

TEACHER = "runs/brown_gpt_int4"


def get_sweep():
    return Sweep(
        experiment="experiments.brown_gpt_distill",
        points=over("stage", ["alone", "forward"]),
        seeds=5,
        metric="eval/test/bits_per_byte",
        mode="min",
        select_on_test=True,  # nothing is chosen: the table is the answer
        baseline={"stage": "alone"},
        overrides={
            "data.source.tokenizer": "bpe-4096",
            "data.source.length": 128,
            "data.splits.train": "train[:1%]",
            "data.splits.test": "test[:10%]",
            "model.vocab": 4096,
            "model.context": 128,
            "train.steps": 300,
            "train.batch_size": 4,
            "evaluate.batch_size": 16,
            "evaluators": {},
            "stages.forward.method.teacher": TEACHER,
        },
    )
