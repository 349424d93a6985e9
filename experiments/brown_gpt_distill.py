"""A GPT-2 of 84,000 parameters learns from one of 391,000: 3.13 bits a byte by forward KL, alone 3.26, reverse KL 3.50 (30 minutes).

    scripts/fetch_data brown                                    once
    scripts/run experiments.brown_gpt_distill

The Brown corpus in 512 tokens, rows of 64. The teacher sees all training texts, 400 steps of 32 rows; each student a twentieth
of them, 300 steps of 16, `alone` by the labels and the others by their teacher alone:

    forward    KL(teacher || student)
    reverse    KL(student || teacher)
    jsd        the generalised Jensen-Shannon divergence between them, beta 0.5
    top_k      forward, of the teacher's 64 largest logits, read from a cache
    on_policy  reverse; in half of the steps on text that the student writes (GKD, Agarwal et al. 2024)

Hardware: one CPU core shared with some twenty other jobs, 29 minutes, 585 s of processor time. Reached on 10 of the 53 test
texts, mean and standard deviation over 3 seeds: bits per byte and KL to the teacher on the texts; in nats per token the
log-likelihood that the teacher gives to what the student writes after 8 tokens of them, and the reverse KL there:

    stage      bits per byte    KL               log-likelihood    reverse KL
    teacher    3.080 +- 0.143
    forward    3.134 +- 0.124   0.058 +- 0.030   -4.669 +- 0.161   0.063 +- 0.034
    alone      3.265 +- 0.099
    top_k      3.274 +- 0.190   0.267 +- 0.083   -4.178 +- 0.128   0.141 +- 0.027
    jsd        3.338 +- 0.074   0.335 +- 0.171   -5.100 +- 0.216   0.312 +- 0.173
    reverse    3.499 +- 0.036   0.552 +- 0.214   -5.400 +- 0.171   0.489 +- 0.185
    on_policy  3.683 +- 0.082   0.802 +- 0.074   -6.072 +- 0.191   0.909 +- 0.086

The texts' own tokens have -4.397 there. Forward KL is better than alone with each seed, by 0.131 bits, which three seeds do not prove
(paired, p 0.13): all these runs are short, and their teachers differ by as much. top_k writes what its teacher likes best,
as it was never shown the rest, and pays for that in bits. What seeks modes is behind here: published recipes start it from a
student that can write already, not from scratch. Nothing was tuned. Where the student sees a hundredth of
the texts and the teacher is stronger, forward KL is far above alone, with five seeds: `sweeps.brown_gpt_distill`.
"""

from ml_collections import ConfigDict

from bigjax import launch, pipeline

TAUGHT = {  # what is beside a teacher and alpha = 1: no labels
    "forward": dict(objectives=dict(taught=dict(type="soft"))),
    "reverse": dict(objectives=dict(taught=dict(type="reverse_kl"))),
    "jsd": dict(objectives=dict(taught=dict(type="jsd"))),
    "top_k": dict(objectives=dict(taught=dict(type="soft")), cache="../cache", cache_top=64),
    "on_policy": dict(
        objectives=dict(taught=dict(type="reverse_kl")),
        written=dict(by="student", share=0.5, prompt=8, temperature=1.0),
    ),
}


def get_config():
    teacher = ConfigDict()
    teacher.seed = 0
    teacher.train = dict(steps=400, batch_size=32)
    teacher.data = dict(
        source=dict(type="documents", path="brown", tokenizer="bpe-512", length=64),
        splits=dict(train="train", test="test[:20%]"),
    )
    teacher.model = dict(type="gpt2", vocab=512, layers=3, width=96, heads=3, context=64)
    teacher.task = dict(type="language_model", input=("tokens", "segments"))
    teacher.optimizer = dict(
        type="adamw",
        learning_rate=4e-3,
        weight_decay=0.1,
        schedule=dict(type="cosine", warmup_steps=40),
        clip_norm=1.0,
    )
    teacher.evaluate = dict(splits=("test",), every="end", batch_size=64)
    teacher.checkpoint = dict(every="end")
    teacher.log = dict(every=100)

    alone = teacher.copy_and_resolve_references()
    alone.train = dict(steps=300, batch_size=16)
    alone.data.splits.train = "train[:5%]"
    alone.model = dict(type="gpt2", vocab=512, layers=2, width=48, heads=3, context=64)

    students = {"alone": alone}
    for name, how in TAUGHT.items():
        students[name] = alone.copy_and_resolve_references()
        students[name].method = dict(
            type="distill", teacher="../teacher", temperature=1.0, alpha=1.0, **how
        )
        students[name].evaluators = dict(
            alike=dict(type="agreement", data="test"),
            judged=dict(type="judged", data="test", prompt=8),
        )
    return pipeline(
        dict(teacher=teacher, **students),
        seeds=3,
        table=(
            "eval/test/bits_per_byte",
            "eval/alike/kl",
            "eval/judged/teacher_log_likelihood",
            "eval/judged/reverse_kl",
        ),
    )


if __name__ == "__main__":
    launch.run(get_config)
