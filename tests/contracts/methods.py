"""One tiny config for each method and adapter: NAME -> what it changes of `tests.small.small_config`."""

METHODS = {
    "supervised": {},
    "distill": dict(method=dict(type="distill", teacher="../teacher", temperature=3.0)),
    "lora": dict(
        adapt=(dict(type="lora", rank=2, rules=((".*kernel", "adapt"), (".*", None))),),
    ),
    "dp_sgd": dict(
        method=dict(type="dp_sgd", lot=20, clip=0.5, noise_multiplier=0.8),
        optimizer=dict(type="sgd", learning_rate=0.5),
    ),
    "fedavg": dict(
        method=dict(type="fedavg", rows=5, clients=250, local_epochs=2, local_batch=5),
        optimizer=dict(type="sgd", learning_rate=1.0),
    ),
}

# (method, promise) -> what the refusal of a promise that the method cannot keep says.
REFUSED: dict[tuple[str, str], str] = {}
