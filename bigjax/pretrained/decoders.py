"""The table of decoders that are Llama with other choices: a `Decoder` a family.

Each has one line in `bigjax.pretrained.families`.
"""

from __future__ import annotations

from bigjax.pretrained.llama import Decoder
from bigjax.pretrained.table import Key, activations

ATTENTION_BIAS = {"attention_bias": ("qkv", "out")}
GEMMA = dict(norm="rms_from_one", norm_places="both", scaled_embedding=True)
GEMMA_KEYS = (
    Key("head_dim", "head_width", 256),
    Key("hidden_activation", "activation", "gelu_pytorch_tanh", activations("gelu_pytorch_tanh")),
    Key("tie_word_embeddings", "tied", True),
    Key("query_pre_attn_scalar", "query_width", 256),
)
LLAMA = Decoder("llama", "LlamaForCausalLM", biases={**ATTENTION_BIAS, "mlp_bias": ("mlp",)})
MISTRAL = Decoder("mistral", "MistralForCausalLM", local="all", window=4096)
QWEN2 = Decoder("qwen2", "Qwen2ForCausalLM", dict(biases=("qkv",)), local="from", window=4096)
QWEN3 = Decoder(
    "qwen3",
    "Qwen3ForCausalLM",
    dict(qk_norm="head"),
    (Key("head_dim", "head_width", 128),),
    ATTENTION_BIAS,
    local="from",
    window=4096,
)
GEMMA2 = Decoder(
    "gemma2",
    "Gemma2ForCausalLM",
    GEMMA,
    (
        *GEMMA_KEYS,
        Key("attn_logit_softcapping", "softcap", 50.0, null=True),
        Key("final_logit_softcapping", "logit_softcap", 30.0, null=True),
    ),
    ATTENTION_BIAS,
    local=2,
    window=4096,
)
GEMMA3 = Decoder(
    "gemma3_text",
    "Gemma3ForCausalLM",
    {**GEMMA, "qk_norm": "head", "local_rope_theta": 10000.0},
    (
        *GEMMA_KEYS,
        Key("final_logit_softcapping", "logit_softcap", None),
    ),
    ATTENTION_BIAS,
    local=6,
    window=4096,
    theta=1e6,
    # transformers has the key, and computes nothing with it
    fixed=dict(attn_logit_softcapping=None),
)
PHI3 = Decoder(
    "phi3",
    "Phi3ForCausalLM",
    keys=(Key("rms_norm_eps", "norm_epsilon", 1e-5),),
    local="all",
    fused=True,
)
OLMO2 = Decoder(
    "olmo2",
    "Olmo2ForCausalLM",
    dict(norm_places="after", qk_norm="all"),
    (Key("rms_norm_eps", "norm_epsilon", 1e-5),),
    ATTENTION_BIAS,
)
SMOLLM3 = Decoder(
    "smollm3",
    "SmolLM3ForCausalLM",
    keys=(Key("tie_word_embeddings", "tied", True), Key("num_key_value_heads", "kv_heads", 4)),
    biases={**ATTENTION_BIAS, "mlp_bias": ("mlp",)},
    local="no_rope",
    theta=2e6,
)
MIXTRAL = Decoder(
    "mixtral",
    "MixtralForCausalLM",
    dict(renormalized_gates=True),
    (
        Key("rms_norm_eps", "norm_epsilon", 1e-5),
        Key("num_local_experts", "experts", 8),
        Key("num_experts_per_tok", "experts_used", 2),
    ),
    local="all",
    theta=1e6,
    experts=("block_sparse_moe", "w1", "w3", "w2"),
    fixed=dict(router_jitter_noise=0.0),
)
QWEN3_MOE = Decoder(
    "qwen3_moe",
    "Qwen3MoeForCausalLM",
    dict(qk_norm="head"),
    (
        Key("moe_intermediate_size", "mlp_width", 768),
        Key("num_experts", "experts", 128),
        Key("num_experts_per_tok", "experts_used", 8),
        Key("norm_topk_prob", "renormalized_gates", False),
    ),
    ATTENTION_BIAS,
    local="switched",
    window=4096,
    experts=("mlp", "gate_proj", "up_proj", "down_proj"),
    fixed=dict(decoder_sparse_step=1, mlp_only_layers=[]),
    renamed=dict(num_local_experts="num_experts"),
)
