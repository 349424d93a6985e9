"""A model of the Llama family as a GGUF file, which llama.cpp and those who use it run.

Names and the order of rows are those that `gguf` reads, run backwards; blocks are quantized by the package
`gguf`. Fields: github.com/ggml-org/ggml/blob/master/docs/gguf.md.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from bigjax.core.errors import UserError, needed
from bigjax.core.rules import paths
from bigjax.pretrained.decoders import LLAMA
from bigjax.pretrained.export import published_tensors
from bigjax.pretrained.gguf import neighbours, published_names

KINDS = {"f16": "F16", "q8_0": "Q8_0", "q4_0": "Q4_0"}
# What gives the logits is kept finer than 4 bits, as llama.cpp does (there in q6_K).
LOGITS = {"f16": "F16", "q8_0": "Q8_0", "q4_0": "Q8_0"}


def write_gguf(
    path: Path, variables: Any, model: Mapping[str, Any], kind: str, tokenizer: Any = None
) -> None:
    """Writes a model, matrices in `kind` ("f16", "q8_0", "q4_0"), vectors in float32.

    model: the values of `config.model`. tokenizer: a `bigjax.data.tokenizers.Tokenizer`; byte-level BPE
    goes into the file, others only beside it.

    Raises:
      UserError: the package gguf is not installed; the format cannot say this model; a row is no whole
        number of blocks.
    """
    gguf = needed("gguf", "--format=gguf needs")
    config = LLAMA.published_config(dict(model))
    tensors = published_tensors(paths(variables), LLAMA.entries(dict(model)))
    writer = gguf.GGUFWriter(path, "llama")
    _fields(writer, config)
    writer.add_file_type(gguf.LlamaFileType[f"MOSTLY_{KINDS[kind]}"])
    if tokenizer is not None:
        _tokenizer(writer, tokenizer)
    heads = {"q": config["num_attention_heads"], "k": config["num_key_value_heads"]}
    tied = "lm_head.weight" not in tensors
    for name, theirs in published_names(config["num_hidden_layers"]).items():
        if theirs not in tensors:
            continue
        tensor = np.asarray(tensors[theirs], np.float32)
        part = theirs.rpartition(".self_attn.")[2]
        if part in ("q_proj.weight", "k_proj.weight"):
            tensor = neighbours(tensor, heads[part[0]])
        if tensor.ndim == 1:
            writer.add_tensor(name, tensor)
            continue
        logits = name == ("token_embd.weight" if tied else "output.weight")
        to = gguf.GGMLQuantizationType[(LOGITS if logits else KINDS)[kind]]
        block = gguf.GGML_QUANT_SIZES[to][0]
        if tensor.shape[-1] % block:
            raise UserError(
                f"--format=gguf:{kind}: {theirs} has rows of {tensor.shape[-1]} numbers, no multiple of "
                f"{block}; give --format=gguf:f16"
            )
        writer.add_tensor(name, gguf.quants.quantize(tensor, to), raw_dtype=to)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _fields(writer: Any, config: Mapping[str, Any]) -> None:
    """What config.json says, as fields of the header."""
    import gguf

    heads, width = config["num_attention_heads"], config["hidden_size"]
    head = config.get("head_dim") or width // heads
    writer.add_vocab_size(config["vocab_size"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(width)
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(heads)
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_key_length(head)
    writer.add_value_length(head)
    writer.add_rope_dimension_count(head)
    writer.add_rope_freq_base(config["rope_parameters"]["rope_theta"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    rope = config["rope_parameters"].get("rope_type", "default")
    if rope == "linear":
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(config["rope_parameters"]["factor"])
    elif rope != "default":
        raise UserError(
            f"--format=gguf: rope_scaling '{rope}' cannot be said; none and 'linear' can"
        )


def _tokenizer(writer: Any, tokenizer: Any) -> None:
    """A byte-level BPE, as llama.cpp's model "gpt2"; of another kind nothing but the special ids."""
    import gguf

    said = json.loads(tokenizer.to_json())
    if said["model"]["type"] == "BPE" and "ByteLevel" in json.dumps(said["pre_tokenizer"]):
        special = set(tokenizer.special_ids)
        tokens = [tokenizer.token(i) for i in range(tokenizer.vocab_size)]
        writer.add_tokenizer_model("gpt2")
        # How text is cut before merging; llama.cpp knows it by name. SmolLM cuts off single digits.
        writer.add_tokenizer_pre(
            "smollm" if "Digits" in json.dumps(said["pre_tokenizer"]) else "gpt-2"
        )
        kinds = gguf.TokenType
        writer.add_token_list([token or f"[PAD{i}]" for i, token in enumerate(tokens)])
        writer.add_token_types(
            [
                kinds.UNUSED if token is None else kinds.CONTROL if i in special else kinds.NORMAL
                for i, token in enumerate(tokens)
            ]
        )
        merges = said["model"]["merges"]
        writer.add_token_merges([m if isinstance(m, str) else " ".join(m) for m in merges])
    ids = dict(bos=tokenizer.start, eos=tokenizer.end, unk=tokenizer.unk, pad=tokenizer.pad)
    for name, number in ids.items():
        if number is not None:
            getattr(writer, f"add_{name}_token_id")(number)
