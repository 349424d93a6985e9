"""The table of encoders that are BERT with other choices: an `Encoder` a family.

Each has one line in `bigjax.pretrained.families`.
"""

from __future__ import annotations

from collections.abc import Sequence

from bigjax.pretrained.bert import KEYS, Encoder
from bigjax.pretrained.table import Key, activations


def heads(mlm: Sequence[str], sequence: Sequence[str]) -> dict[str, dict[str, str]]:
    """Published names by head: masked LM's dense layer, norm and bias; a text's pooler and last layer."""
    return {
        "mlm": dict(zip(("mlm_dense", "mlm_norm", "mlm_bias"), mlm, strict=True)),
        "tokens": {"head": "classifier"},
        "sequence": dict(zip(("pooler", "head"), sequence, strict=True)),
    }


EMBEDDINGS = {
    "embedding": "embeddings.word_embeddings.weight",
    "positions": "embeddings.position_embeddings.weight",
    "types": "embeddings.token_type_embeddings.weight",
    "embedding_norm": "embeddings.LayerNorm",
}
NAMES = {
    **EMBEDDINGS,
    "block_{i}/attention_norm": "encoder.layer.{i}.attention.output.LayerNorm",
    "block_{i}/mlp/up": "encoder.layer.{i}.intermediate.dense",
    "block_{i}/mlp/down": "encoder.layer.{i}.output.dense",
    "block_{i}/mlp_norm": "encoder.layer.{i}.output.LayerNorm",
}
ATTENTION = (
    *(f"encoder.layer.{{i}}.attention.self.{part}" for part in ("query", "key", "value")),
    "encoder.layer.{i}.attention.output.dense",
)
BERT = Encoder(
    "bert",
    "Bert",
    NAMES,
    ATTENTION,
    heads(
        (
            "cls.predictions.transform.dense",
            "cls.predictions.transform.LayerNorm",
            "cls.predictions.bias",
        ),
        ("pooler.dense", "classifier"),
    ),
    {},
)
ROBERTA = Encoder(
    "roberta",
    "Roberta",
    NAMES,
    ATTENTION,
    heads(
        ("lm_head.dense", "lm_head.layer_norm", "lm_head.bias"),
        ("classifier.dense", "classifier.out_proj"),
    ),
    dict(roberta=True),
)
ELECTRA = Encoder(
    "electra",
    "Electra",
    NAMES | {"embedding_dense": "embeddings_project"},
    ATTENTION,
    heads(
        (
            "generator_predictions.dense",
            "generator_predictions.LayerNorm",
            "generator_lm_head.bias",
        ),
        ("classifier.dense", "classifier.out_proj"),
    ),
    dict(pooled="gelu"),
    # Its heads have a gelu whatever the blocks have.
    (
        *KEYS[:-1],
        Key("hidden_act", "activation", "gelu", {"gelu": "gelu"}),
        Key("embedding_size", "embedding_width", 128),
    ),
    pretraining="none",
)
DISTILBERT = Encoder(
    "distilbert",
    "DistilBert",
    {
        "embedding": "embeddings.word_embeddings.weight",
        "positions": "embeddings.position_embeddings.weight",
        "embedding_norm": "embeddings.LayerNorm",
        "block_{i}/attention_norm": "transformer.layer.{i}.sa_layer_norm",
        "block_{i}/mlp/up": "transformer.layer.{i}.ffn.lin1",
        "block_{i}/mlp/down": "transformer.layer.{i}.ffn.lin2",
        "block_{i}/mlp_norm": "transformer.layer.{i}.output_layer_norm",
    },
    tuple(f"transformer.layer.{{i}}.attention.{part}_lin" for part in ("q", "k", "v", "out")),
    heads(
        ("vocab_transform", "vocab_layer_norm", "vocab_projector.bias"),
        ("pre_classifier", "classifier"),
    ),
    dict(pooled="relu", types=0),
    (
        Key("vocab_size", "vocab"),
        Key("n_layers", "layers"),
        Key("dim", "width"),
        Key("n_heads", "heads"),
        Key("hidden_dim", "mlp_width"),
        Key("max_position_embeddings", "context"),
        Key("dropout", "dropout", 0.1),
        Key("activation", "activation", "gelu", activations("gelu")),
    ),
    {},
)
ALBERT_LAYER = "encoder.albert_layer_groups.0.albert_layers.0"
ALBERT = Encoder(
    "albert",
    "Albert",
    {
        **EMBEDDINGS,
        "embedding_dense": "encoder.embedding_hidden_mapping_in",
        "shared_block/attention_norm": f"{ALBERT_LAYER}.attention.LayerNorm",
        "shared_block/mlp/up": f"{ALBERT_LAYER}.ffn",
        "shared_block/mlp/down": f"{ALBERT_LAYER}.ffn_output",
        "shared_block/mlp_norm": f"{ALBERT_LAYER}.full_layer_layer_norm",
    },
    tuple(f"{ALBERT_LAYER}.attention.{part}" for part in ("query", "key", "value", "dense")),
    heads(
        ("predictions.dense", "predictions.LayerNorm", "predictions.bias"), ("pooler", "classifier")
    ),
    dict(shared=True),
    (
        *KEYS[:-2],
        Key("layer_norm_eps", "norm_epsilon", 1e-12),
        Key("hidden_act", "activation", "gelu_new", activations("gelu_new")),
        Key("embedding_size", "embedding_width", 128),
    ),
    dict(num_hidden_groups=1, inner_group_num=1),
)
MODERNBERT_HEAD = {"mlm_dense": "head.dense", "mlm_norm": "head.norm"}
MODERNBERT = Encoder(
    "modernbert",
    "ModernBert",
    {
        "embedding": "embeddings.tok_embeddings.weight",
        "embedding_norm": "embeddings.norm",
        "block_{i}/attention_norm": "layers.{i}.attn_norm",
        "block_{i}/mlp_norm": "layers.{i}.mlp_norm",
        "block_{i}/mlp/gate block_{i}/mlp/up": "layers.{i}.mlp.Wi",
        "block_{i}/mlp/down": "layers.{i}.mlp.Wo",
        "norm": "final_norm",
    },
    ("layers.{i}.attn.Wqkv", "layers.{i}.attn.Wo"),
    {
        "mlm": {**MODERNBERT_HEAD, "mlm_bias": "decoder.bias"},
        "tokens": {**MODERNBERT_HEAD, "head": "classifier"},
        "sequence": {**MODERNBERT_HEAD, "head": "classifier"},
    },
    dict(
        types=0,
        transformed=True,
        norm_places="before",
        gated=True,
        bare_start=True,
        positions="rotary",
    ),
    (
        *KEYS[:6],
        Key("embedding_dropout", "dropout", 0.0),
        Key("norm_eps", "norm_epsilon", 1e-5),
        Key("hidden_activation", "activation", "gelu", activations("gelu")),
        Key("classifier_activation", "pooled", "gelu", {"gelu": "gelu", "relu": "relu"}),
        Key("classifier_pooling", "pool", "cls", {"cls": "first", "mean": "mean"}),
        Key("classifier_bias", "head_bias", False),
        Key("norm_bias", "norm", False, {True: "layer", False: "layer_no_bias"}),
    ),
    dict(decoder_bias=True),
    biases={"attention_bias": ("qkv", "out"), "mlp_bias": ("mlp",)},
)
