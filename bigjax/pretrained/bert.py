"""BERT and RoBERTa in Hugging Face's layout: config.json and the names of the tensors, both ways."""

from __future__ import annotations

from typing import Any

from bigjax.core.errors import UserError
from bigjax.pretrained.entry import Entry

TYPE = "bert"
# An encoder under a head has names with a prefix, a bare one without; transformers reads both.
PREFIXES = ("bert.", "roberta.")
# Copies of the embedding and of its bias, and the head of BERT's second pre-training task.
IGNORED = (r"(cls\.predictions|lm_head)\.decoder\..*", r"cls\.seq_relationship\..*")

HEADS = {
    "BertModel": "none",
    "BertForMaskedLM": "mlm",
    "BertForPreTraining": "mlm",
    "BertForSequenceClassification": "sequence",
    "BertForTokenClassification": "tokens",
}


def model_values(published: dict[str, Any]) -> dict[str, Any]:
    """The keyword arguments of `bigjax.models.bert.BERT` from a published config.json.

    Raises:
      UserError: it describes something that this family is not.
    """
    kind = published.get("model_type", "bert")
    if kind not in ("bert", "roberta"):
        raise UserError(f"config.init: model_type '{kind}' is not of the family bert or roberta")
    for key, wanted in (("hidden_act", "gelu"), ("position_embedding_type", "absolute")):
        if published.get(key, wanted) != wanted:
            raise UserError(
                f"config.init: {key} '{published[key]}' is not known here; '{wanted}' is"
            )
    roberta = kind == "roberta"
    architecture = (published.get("architectures") or ["BertModel"])[0].replace("Roberta", "Bert")
    values = dict(
        vocab=published["vocab_size"],
        layers=published["num_hidden_layers"],
        width=published["hidden_size"],
        heads=published["num_attention_heads"],
        mlp_width=published["intermediate_size"],
        context=published["max_position_embeddings"] - 2 * roberta,
        types=published["type_vocab_size"],
        roberta=roberta,
        head=HEADS.get(architecture, "none"),
        dropout=published.get("hidden_dropout_prob", 0.1),
        norm_epsilon=published.get("layer_norm_eps", 1e-12),
    )
    if values["head"] in ("sequence", "tokens"):
        values["outputs"] = len(published.get("id2label") or (0, 1))
    return values


def published_config(model: dict[str, Any]) -> dict[str, Any]:
    """The config.json of a model with these values."""
    roberta, bare = model["roberta"], model["head"] in ("none", "embedding")
    name = "BertModel" if bare else next(n for n, head in HEADS.items() if head == model["head"])
    values = dict(
        model_type="roberta" if roberta else "bert",
        architectures=[name.replace("Bert", "Roberta") if roberta else name],
        vocab_size=model["vocab"],
        num_hidden_layers=model["layers"],
        hidden_size=model["width"],
        num_attention_heads=model["heads"],
        intermediate_size=model["mlp_width"] or 4 * model["width"],
        max_position_embeddings=model["context"] + 2 * roberta,
        type_vocab_size=model["types"],
        hidden_act="gelu",
        hidden_dropout_prob=model["dropout"],
        layer_norm_eps=model["norm_epsilon"],
        pad_token_id=1 if roberta else 0,
    )
    if model["outputs"]:
        values["id2label"] = {str(i): f"LABEL_{i}" for i in range(model["outputs"])}
        values["label2id"] = {f"LABEL_{i}": i for i in range(model["outputs"])}
    return values


def entries(model: dict[str, Any]) -> list[Entry]:
    """Every published tensor of a model with these values and the leaf it becomes."""
    found = [
        Entry("embeddings.word_embeddings.weight", ("params/embedding",)),
        Entry("embeddings.position_embeddings.weight", ("params/positions",)),
        Entry("embeddings.token_type_embeddings.weight", ("params/types",)),
        *norm("embeddings.LayerNorm", "embedding_norm"),
    ]
    for i in range(model["layers"]):
        found += block(f"encoder.layer.{i}", f"block_{i}", model["heads"])
    return found + head(model)


def block(name: str, path: str, heads: int) -> list[Entry]:
    """The tensors of one block."""
    found = []
    for part in ("query", "key", "value"):
        there, here = f"{name}.attention.self.{part}", f"params/{path}/attention/{part}"
        sizes = {"n": heads}
        found.append(Entry(f"{there}.weight", (f"{here}/kernel",), "(n h) d -> d n h", sizes))
        found.append(Entry(f"{there}.bias", (f"{here}/bias",), "(n h) -> n h", sizes))
    there, here = f"{name}.attention.output.dense", f"params/{path}/attention/out"
    pattern = "d (n h) -> n h d"
    found.append(Entry(f"{there}.weight", (f"{here}/kernel",), pattern, {"n": heads}))
    found.append(Entry(f"{there}.bias", (f"{here}/bias",)))
    return [
        *found,
        *norm(f"{name}.attention.output.LayerNorm", f"{path}/attention_norm"),
        *linear(f"{name}.intermediate.dense", f"{path}/mlp/up"),
        *linear(f"{name}.output.dense", f"{path}/mlp/down"),
        *norm(f"{name}.output.LayerNorm", f"{path}/mlp_norm"),
    ]


def head(model: dict[str, Any]) -> list[Entry]:
    """The tensors of the head; the masked-LM head's matrix is the embedding, and is not listed."""
    roberta = model["roberta"]
    if model["head"] == "mlm":
        there = "lm_head" if roberta else "cls.predictions.transform"
        return [
            *linear(f"{there}.dense", "mlm_dense"),
            *norm(f"{there}.{'layer_norm' if roberta else 'LayerNorm'}", "mlm_norm"),
            Entry("lm_head.bias" if roberta else "cls.predictions.bias", ("params/mlm_bias",)),
        ]
    if model["head"] == "tokens":
        return linear("classifier", "head")
    if model["head"] == "sequence":
        pooler, last = (
            ("classifier.dense", "classifier.out_proj")
            if roberta
            else ("pooler.dense", "classifier")
        )
        return linear(pooler, "pooler") + linear(last, "head")
    return []


def linear(name: str, path: str) -> list[Entry]:
    return [
        Entry(f"{name}.weight", (f"params/{path}/kernel",), "o i -> i o"),
        Entry(f"{name}.bias", (f"params/{path}/bias",)),
    ]


def norm(name: str, path: str) -> list[Entry]:
    return [
        Entry(f"{name}.weight", (f"params/{path}/scale",)),
        Entry(f"{name}.bias", (f"params/{path}/bias",)),
    ]
