"""One tiny config for each mesh axis that only some models can use: NAME -> its changes, and its meshes.

The first mesh of an axis is that of its whole runs; the others are what the axis goes together with.
"""

TOKENS = dict(
    data=dict(
        source=dict(type="markov_tokens", vocab=16, length=16, examples=120, branches=2),
        splits=dict(train="train", test="test"),
    ),
    task=dict(type="language_model"),
    optimizer=dict(type="momentum", learning_rate=0.05),
    train=dict(steps=8, batch_size=32),
    sharding=dict(rules=((".*", "tensor + fsdp"),)),
)
DECODER = dict(vocab=16, layers=4, width=8, heads=2, context=16, scan_layers=True)
EXPERTS = dict(experts=4, expert_capacity=1.0, kv_heads=2, mlp_width=8)

MESHES = {
    "sequence": (
        dict(data=4, sequence=2),
        dict(data=1, fsdp=2, tensor=2, sequence=2),
        dict(data=1, dcn=2, fsdp=2, sequence=2),
    ),
    "expert": (
        dict(data=2, expert=4),
        dict(data=1, fsdp=2, expert=4),
        dict(data=1, dcn=2, fsdp=2, expert=2),
    ),
    "pipeline": (
        dict(data=4, pipeline=2),
        dict(data=1, fsdp=4, pipeline=2),
        dict(data=1, dcn=2, fsdp=2, pipeline=2),
    ),
    "rounds": (
        dict(data=4, pipeline=2),
        dict(data=1, fsdp=2, tensor=2, pipeline=2),
    ),
}
MODELS = {
    "sequence": dict(type="gpt2", **DECODER),
    "expert": dict(type="llama", **DECODER, **EXPERTS),
    "pipeline": dict(type="gpt2", **DECODER, dropout=0.1),
    "rounds": dict(type="gpt2", **DECODER),
}
AXES = {name: {**TOKENS, "model": MODELS[name], "mesh": MESHES[name][0]} for name in MESHES}
AXES["rounds"]["sharding"] = {**TOKENS["sharding"], "rounds": 2, "microbatches": 4}
# What every mesh of an axis sends over it: (kind, axis).
SENT = {
    "sequence": ("collective-permute", "sequence"),
    "expert": ("all-to-all", "expert"),
    "pipeline": ("collective-permute", "pipeline"),
    "rounds": ("all-to-all", "pipeline"),  # layers to their stages and back
}

# (config, mesh, what the refusal says): before a device is touched, and by the name of what is wrong.
TWO_OF_THEM = dict(data=2, sequence=2, pipeline=2)
REFUSED_MESHES = [
    ("sequence", dict(data=2, expert=4), r"mesh\.expert: nothing in GPT2 is split"),
    ("pipeline", TWO_OF_THEM, r"sequence and pipeline do not go together"),
    ("expert", dict(data=4, sequence=2), r"mesh\.sequence: experts decide over whole rows"),
    ("expert", dict(data=4, pipeline=2), r"mesh\.pipeline: experts decide over whole rows"),
    ("expert", dict(data=1, expert=8), r"expert 8 does not divide dimension 4"),
    ("pipeline", dict(data=1, pipeline=8), r"8 stages do not share 4 layers evenly; 1, 2 or 4"),
]
