"""BERT, RoBERTa, DistilBERT and ELECTRA in Hugging Face's layout, both ways: one table says what each is.

An encoder under a head has names with a prefix, a bare one without; transformers reads both.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from bigjax.core.errors import UserError
from bigjax.pretrained import table
from bigjax.pretrained.entry import Entry, linear, norm, projections
from bigjax.pretrained.table import Key, activations

KEYS = (
    Key("vocab_size", "vocab"),
    Key("num_hidden_layers", "layers"),
    Key("hidden_size", "width"),
    Key("num_attention_heads", "heads"),
    Key("intermediate_size", "mlp_width"),
    Key("max_position_embeddings", "context"),
    Key("type_vocab_size", "types"),
    Key("hidden_dropout_prob", "dropout", 0.1),
    Key("layer_norm_eps", "norm_epsilon", 1e-12),
    Key("hidden_act", "activation", "gelu", activations("gelu")),
)
# Our heads -> what a class of transformers is called after the family's name; of several the last is
# written.
HEADS = {
    "Model": "none",
    "ForPreTraining": "mlm",
    "ForMaskedLM": "mlm",
    "ForSequenceClassification": "sequence",
    "ForTokenClassification": "tokens",
}


@dataclass(frozen=True)
class Encoder:
    """One family.

    model_type, kind: its name in config.json, and in the names of its classes.
    names: our parameters' paths, "{i}" for the layer -> published names. A head's stand under its name.
    choices: our fields that are always so.
    keys: of config.json; fixed: what is written beside them, and the only values known.
    pretraining: our head of the class ForPreTraining.
    """

    model_type: str
    kind: str
    names: Mapping[str, str]
    attention: Sequence[str]
    heads: Mapping[str, Mapping[str, str]]
    choices: Mapping[str, Any]
    keys: Sequence[Key] = KEYS
    fixed: Mapping[str, Any] = field(
        default_factory=lambda: {"position_embedding_type": "absolute"}
    )

    pretraining: str = "mlm"

    TYPE = "bert"
    PREFIXES = ("bert.", "roberta.", "distilbert.", "electra.")
    # Copies of the embedding and of its bias, and the heads of BERT's second and ELECTRA's pre-training task.
    IGNORED = (
        r"(cls\.predictions|lm_head)\.decoder\..*",
        r"cls\.seq_relationship\..*",
        r"vocab_projector\.weight",
        r"generator_lm_head\.weight",
        r"discriminator_predictions\..*",
    )

    def model_values(self, published: dict[str, Any]) -> dict[str, Any]:
        """The keyword arguments of `bigjax.models.bert.BERT` from a published config.json.

        Raises:
          UserError: it describes something that this family is not.
        """
        kinds = ("xlm-roberta",) if self.model_type == "roberta" else ()
        if published.get("model_type") not in (None, self.model_type, *kinds):
            table.check({"model_type": self.model_type}, published)
        table.check({**self.fixed, "tie_word_embeddings": True, "is_decoder": False}, published)
        values = {**table.read(self.keys, published), **self.choices}
        if values["embedding_width"] == values["width"]:
            values["embedding_width"] = None
        if values["roberta"]:  # positions start behind the padding token's
            padding = published.get("pad_token_id")
            first = 1 + (1 if padding is None else padding)
            values["context"] -= first
            values["first_position"] = None if first == 2 else first  # as our model has it
        name = (published.get("architectures") or ["Model"])[0]
        endings = HEADS | {"ForPreTraining": self.pretraining}
        heads = [head for ending, head in endings.items() if name.endswith(ending)]
        values["head"] = heads[0] if heads else "none"
        if values["head"] in ("sequence", "tokens"):
            values["outputs"] = table.outputs_of(published, default=2)
        return values

    def published_config(self, model: dict[str, Any]) -> dict[str, Any]:
        """The config.json of a model with these values; UserError where the family is another model."""
        for key, value in self.choices.items():
            if model[key] != value:
                raise UserError(
                    f"export: the layout of '{self.model_type}' cannot say model.{key} {model[key]!r}"
                )
        first = first_position(model)
        if first and not model["roberta"]:
            raise UserError(
                f"export: the positions of '{self.model_type}' start at 0, not at {first}"
            )
        endings = {head: ending for ending, head in HEADS.items()}
        head = "none" if model["head"] == "embedding" else model["head"]
        filled = {**model, "mlp_width": model["mlp_width"] or 4 * model["width"]}
        filled["embedding_width"] = model["embedding_width"] or model["width"]
        values = dict(
            model_type=self.model_type,
            architectures=[self.kind + endings[head]],
            **table.write(self.keys, {**filled, "context": model["context"] + first}),
            pad_token_id=first - 1 if model["roberta"] else 0,
            **self.fixed,
        )
        if self.model_type == "distilbert" and abs(model["norm_epsilon"] - 1e-12) > 1e-15:
            raise UserError("export: the layout of 'distilbert' has a norm_epsilon of 1e-12 alone")
        return values | (table.labels_of(model["outputs"]) if model["outputs"] else {})

    def entries(self, model: dict[str, Any]) -> list[Entry]:
        """Every published tensor of a model with these values and the leaf it becomes."""
        found = []
        for ours, theirs in self.names.items():
            if ours == "embedding_dense" and model["embedding_width"] is None:
                continue
            layers = range(model["layers"]) if "{i}" in theirs else (0,)
            for i in layers:
                found += _lines(theirs.format(i=i), ours.format(i=i))
        for i in range(model["layers"]):
            names = [name.format(i=i) for name in self.attention]
            width = model["width"] // model["heads"]
            found += projections(names, f"block_{i}/attention", width)
        # The masked-LM head's matrix is the embedding, and is not listed.
        for ours, theirs in self.heads.get(model["head"], {}).items():
            found += _lines(theirs, ours)
        return found

    def for_padding(
        self, model: dict[str, Any], leaves: Mapping[str, Any], pad: int
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """The model and its leaves as they must be where the padding token is `pad`.

        transformers counts a RoBERTa's positions from the padding token's id on, so the rows of the
        table move to where it looks for them.
        """
        first = first_position(model)
        if not model["roberta"] or first == pad + 1:
            return model, dict(leaves)
        rows = np.asarray(leaves["params/positions"])[first:]
        moved = np.concatenate([np.zeros((pad + 1, rows.shape[1]), rows.dtype), rows])
        return {**model, "first_position": pad + 1}, {**leaves, "params/positions": moved}


def first_position(model: Mapping[str, Any]) -> int:
    """The row of the table in which the model's positions start."""
    first = model["first_position"]
    return 2 * model["roberta"] if first is None else first


def _lines(theirs: str, ours: str) -> list[Entry]:
    """The entries of a published module, or of one tensor (a table, a bias)."""
    if theirs.endswith((".weight", ".bias")):
        return [Entry(theirs, (f"params/{ours}",))]
    return norm(theirs, ours) if ours.endswith("norm") else linear(theirs, ours)


NAMES = {
    "embedding": "embeddings.word_embeddings.weight",
    "positions": "embeddings.position_embeddings.weight",
    "types": "embeddings.token_type_embeddings.weight",
    "embedding_norm": "embeddings.LayerNorm",
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
    {
        "mlm": {
            "mlm_dense": "cls.predictions.transform.dense",
            "mlm_norm": "cls.predictions.transform.LayerNorm",
            "mlm_bias": "cls.predictions.bias",
        },
        "tokens": {"head": "classifier"},
        "sequence": {"pooler": "pooler.dense", "head": "classifier"},
    },
    dict(roberta=False, pooled="tanh", embedding_width=None),
)
ROBERTA = Encoder(
    "roberta",
    "Roberta",
    NAMES,
    ATTENTION,
    {
        "mlm": {
            "mlm_dense": "lm_head.dense",
            "mlm_norm": "lm_head.layer_norm",
            "mlm_bias": "lm_head.bias",
        },
        "tokens": {"head": "classifier"},
        "sequence": {"pooler": "classifier.dense", "head": "classifier.out_proj"},
    },
    dict(roberta=True, pooled="tanh", embedding_width=None),
)
ELECTRA = Encoder(
    "electra",
    "Electra",
    NAMES | {"embedding_dense": "embeddings_project"},
    ATTENTION,
    {
        "mlm": {
            "mlm_dense": "generator_predictions.dense",
            "mlm_norm": "generator_predictions.LayerNorm",
            "mlm_bias": "generator_lm_head.bias",
        },
        "tokens": {"head": "classifier"},
        "sequence": {"pooler": "classifier.dense", "head": "classifier.out_proj"},
    },
    dict(roberta=False, pooled="gelu"),
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
    {
        "mlm": {
            "mlm_dense": "vocab_transform",
            "mlm_norm": "vocab_layer_norm",
            "mlm_bias": "vocab_projector.bias",
        },
        "tokens": {"head": "classifier"},
        "sequence": {"pooler": "pre_classifier", "head": "classifier"},
    },
    dict(roberta=False, pooled="relu", types=0, embedding_width=None),
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
