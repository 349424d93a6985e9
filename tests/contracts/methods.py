"""One tiny config for each method and adapter: NAME -> what it changes of `tests.small.small_config`.

NAME+VARIANT is another config of a method, that adds a promise of its own.
"""

TEXT = dict(  # of what the variants of distill that read text change
    data=dict(
        source=dict(type="markov_tokens", vocab=16, length=8, examples=80),
        splits=dict(train="train", test="test"),
    ),
    task=dict(type="language_model"),
)

METHODS = {
    "supervised": {},
    "distill": dict(method=dict(type="distill", teacher="../teacher", temperature=3.0)),
    "distill+features": dict(
        method=dict(
            type="distill",
            teacher="../teacher",
            alpha=0.7,
            objectives=dict(
                kd=dict(type="dkd", temperature=3.0, schedule=dict(type="linear")),
                hint=dict(type="hint", student_feature="dense_0", teacher_feature="dense_0"),
                own=dict(type="soft", teacher="ema", student_output="head"),
                dino=dict(type="dino", teacher="ema", outputs=10, weight=0.1),
            ),
        ),
        train=dict(steps=12, batch_size=40, ema_decay=0.9),
    ),
    "distill+outputs": dict(
        model=dict(type="cnn", channels=(4,), outputs=10),
        method=dict(
            type="distill",
            teacher="../teacher",
            alpha=1.0,
            objectives=dict(
                labels=dict(type="labels"),
                reverse=dict(type="reverse_kl", weight=0.5),
                jsd=dict(type="jsd", weight=0.5),
                logits=dict(type="logits", weight=0.1),
                outputs=dict(type="outputs", weight=0.1),
                hard=dict(type="hard", weight=0.5),
                maps=dict(type="attention", student_feature="conv_0", teacher_feature="conv_0"),
            ),
        ),
    ),
    "distill+examples": dict(
        method=dict(
            type="distill",
            teacher="../teacher",
            objectives={
                "dist": dict(type="dist"),
                **{
                    name: dict(type=name, student_feature="dense_0", teacher_feature="dense_0")
                    for name in ("relational", "similarity", "contrast")
                },
            },
        ),
    ),
    "distill+layers": dict(
        model=dict(type="bert", head="mlm", vocab=16, layers=2, width=8, heads=2, context=8),
        method=dict(
            type="distill",
            teacher="../teacher",
            objectives=dict(
                hidden=dict(type="hidden_states", layers=((0, 0), (1, 1)), segments=None),
                scores=dict(type="attention_scores", layers=((0, 1),), segments=None),
                relations=dict(type="relations", layers=((1, 1),), heads=4, segments=None),
            ),
        ),
        **TEXT,
    ),
    "distill+written": dict(
        model=dict(type="gpt2", vocab=16, layers=1, width=8, heads=2, context=8),
        method=dict(
            type="distill",
            teacher="../teacher",
            objectives=dict(reverse=dict(type="reverse_kl")),
            written=dict(by="student", share=0.5, prompt=2, temperature=1.0),
        ),
        **TEXT,
    ),
    "lora": dict(
        adapt=(dict(type="lora", rank=2, rules=((".*kernel", "adapt"), (".*", None))),),
    ),
    "dora": dict(adapt=(dict(type="dora", rank=1),)),
    "quantize": dict(  # QLoRA
        adapt=(
            dict(type="quantize", rules=((".*kernel", "nf4"), (".*", None)), group=16),
            dict(type="lora", rank=1),
        ),
    ),
    "qat": dict(adapt=(dict(type="qat"),)),
    "quantize_inputs": dict(adapt=(dict(type="quantize_inputs"),)),
    "low_rank": dict(adapt=(dict(type="low_rank", rules=((".*kernel", 1), (".*", None))),)),
    "prune": dict(adapt=(dict(type="prune", begin=4, end=6, every=2),)),
    "movement": dict(adapt=(dict(type="movement", begin=2, end=6),)),
    "dp_sgd": dict(
        method=dict(type="dp_sgd", lot=20, clip=0.5, noise_multiplier=0.8),
        optimizer=dict(type="sgd", learning_rate=0.5),
    ),
    "fedavg": dict(
        method=dict(type="fedavg", rows=5, clients=250, local_epochs=2, local_batch=5),
        optimizer=dict(type="sgd", learning_rate=1.0),
    ),
    "flow_matching": dict(
        data=dict(
            source=dict(type="tfds", name="digits"),
            splits=dict(train="train", test="test[:100]"),
            preprocess=(dict(type="normalize", scale=16.0, mean=0.5, std=0.5),),
        ),
        method=dict(type="flow_matching"),
        task=dict(type="velocity_field"),
        model=dict(type="dit", image=8, patch=4, classes=10, layers=1, width=16, heads=2),
    ),
    "ppo": dict(
        data=dict(source=dict(type="blank", examples=80), splits=dict(train="train", test="test")),
        method=dict(type="ppo", environment="CartPole-v1", rollout=16, passes=2, minibatches=2),
        task=dict(type="actor_critic"),
        model=dict(type="actor_critic", widths=(8,), actions=2),
    ),
}

# (method, promise) -> what the refusal of a promise that the method cannot keep says.
REFUSED: dict[tuple[str, str], str] = {
    ("distill+examples", "accumulate"): "config.train.accumulate must be 1",
    ("flow_matching", "predict"): "a velocity field predicts nothing",
    ("ppo", "lora"): "rank 2 is more than value/head/kernel",
}
