"""BERT and its kin in Hugging Face's layout, both ways: what a row of the table of families says.

All are `bigjax.models.bert.BERT` with other choices. A family is one `Encoder` in
`bigjax.pretrained.encoders`; what the table cannot say is refused by name.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from bigjax.core.errors import UserError
from bigjax.models.transformer import BIASES
from bigjax.pretrained import table, windows
from bigjax.pretrained.entry import Entry, fused_projections, linear, norm, projections
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
# Our choices that no key of most families speaks of, as BERT has them.
PLAIN = dict(
    roberta=False,
    pooled="tanh",
    pool="first",
    transformed=False,
    head_bias=True,
    embedding_width=None,
    norm="layer",
    norm_places="sum",
    gated=False,
    biases=BIASES,
    bare_start=False,
    shared=False,
    positions="learned",
    layer_kinds=("full",),
    window=None,
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
        Two paths are one published matrix, half and half.
    attention: published names of queries, keys, values and output; or of all three in one, and output.
    choices: our fields that are always so, where they are not BERT's.
    biases: a key of config.json -> the biases of ours that it switches.
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
    biases: Mapping[str, Sequence[str]] = field(default_factory=dict)

    TYPE = "bert"
    PREFIXES = ("model.", "bert.", "roberta.", "distilbert.", "electra.", "albert.")
    # Copies of the embedding and of its bias, and the heads of the second pre-training task.
    IGNORED = (
        r"(cls\.predictions|lm_head|predictions)\.decoder\..*",
        r"decoder\.weight",
        r"sop_classifier\..*",
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
        values = {**PLAIN, **table.read(self.keys, published), **self.choices}
        if values["embedding_width"] == values["width"] and not values["shared"]:
            values["embedding_width"] = None
        if self.biases:
            values["biases"] = table.read_biases(self.biases, published)
        if values["positions"] == "rotary":
            values |= windows.read_encoder(published, values["layers"])
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
        table.check_heads(model)
        model = {key: tuple(x) if isinstance(x, list) else x for key, x in model.items()}
        said, biases = table.write_biases(self.biases, model["biases"])
        spoken = {"biases"} | {key.ours for key in self.keys}
        if self.choices.get("positions") == "rotary":
            said |= windows.write_encoder(model)
            spoken |= {"layer_kinds", "window"}
        wanted = {k: x for k, x in {**PLAIN, **self.choices}.items() if k not in spoken}
        left = () if self.biases else BIASES
        if set(biases) != set(left):
            wanted["biases"] = left
        for key, value in wanted.items():
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
            **said,
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
                if not (model["bare_start"] and ours.format(i=i) == "block_0/attention_norm"):
                    found += _lines(theirs.format(i=i), ours.format(i=i), model)
        for i in (0,) if model["shared"] else range(model["layers"]):
            names = [name.format(i=i) for name in self.attention]
            path = f"{'shared_block' if model['shared'] else f'block_{i}'}/attention"
            project = projections if len(names) == 4 else fused_projections
            found += project(names, path, model["width"] // model["heads"], model["biases"])
        # The masked-LM head's matrix is the embedding, and is not listed.
        for ours, theirs in self.heads.get(model["head"], {}).items():
            found += _lines(theirs, ours, model)
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


def _lines(theirs: str, ours: str, model: Mapping[str, Any]) -> list[Entry]:
    """The entries of a published module, or of one tensor (a table, a bias)."""
    if theirs.endswith((".weight", ".bias")):
        return [Entry(theirs, (f"params/{ours}",))]
    if ours.endswith("norm"):
        return norm(theirs, ours, bias=model["norm"] == "layer")
    bias = (
        model["head_bias"]
        if ours == "mlm_dense"
        else "/mlp/" not in ours or "mlp" in model["biases"]
    )
    parts = [f"params/{path}" for path in ours.split()]
    if len(parts) == 1:
        return linear(theirs, ours, bias=bias)
    kinds = (("weight", "kernel", "o i -> i o"), *((("bias", "bias", None),) if bias else ()))
    return [
        Entry(f"{theirs}.{their}", tuple(f"{path}/{our}" for path in parts), pattern, shares=(1, 1))
        for their, our, pattern in kinds
    ]
