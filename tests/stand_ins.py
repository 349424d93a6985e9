"""Small stand-ins for the data sets and published weights that experiments name, made offline.

They have the real ones' files, fields and tensor names, and nothing of their content or size.
"""

import importlib.util
import json
from pathlib import Path

import numpy as np
import tensorflow_datasets as tfds
import tokenizers
from tokenizers import models, pre_tokenizers, processors, trainers

from bigjax.data import builders
from scripts.fetch.emoji import CATEGORIES, Emoji
from scripts.fetch.mnist1d import Mnist1D

WORDS = """
the of a and to in that it was he for on his with as is be at by had not are but from or have an they
which one you were all her she there would their we him been has when who will no more if out so up
said what its about than into them can only other time new some could these two may first then do any
like my now over such our man me even most made after also did many off before must well back through
years where much your way down should because long each just state those people too mister how little
"""


def sentences(seed: int, count: int) -> list[str]:
    numbers = np.random.default_rng(seed)
    return [
        " ".join(numbers.choice(WORDS.split(), numbers.integers(6, 14))) + "." for _ in range(count)
    ]


def text_sets(folder: Path) -> None:
    """DATA_DIR/text/NAME/{train,test}.jsonl of every set that an experiment reads."""
    for seed, split in enumerate(("train", "test")):
        lines = sentences(seed, 48)
        halves = list(zip(lines[::2], lines[1::2], strict=True))
        rows = {
            "brown": [{"text": text, "id": i, "genre": "news"} for i, text in enumerate(lines)],
            "austen": [{"text": text, "book": "x", "chapter": 1} for text in lines],
            "brown_tagged": [
                {"words": (words := text[:-1].split()), "tags": ["nn"] * len(words), "id": "x"}
                for text in lines
            ],
            "sentiment": [
                {"text": text, "label": i % 2, "score": i % 2 - 0.5, "id": i}
                for i, text in enumerate(lines)
            ],
            "reviews": [{"text": t, "label": i % 2, "product": "p"} for i, t in enumerate(lines)],
            "kjv_es": [{"source": a, "target": b, "id": "x"} for a, b in halves],
            "manpages": [{"source": a, "target": b, "id": "x"} for a, b in halves],
        }
        for name, values in rows.items():
            path = folder / "text" / name / f"{split}.jsonl"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("".join(json.dumps(value) + "\n" for value in values))


def minilm(folder: Path) -> None:
    """DATA_DIR/weights/minilm: a BERT of two narrow layers and its WordPiece tokenizer."""
    import transformers

    tokenizer = tokenizers.Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    trainer = trainers.WordPieceTrainer(vocab_size=300, special_tokens=special)
    tokenizer.train_from_iterator(sentences(0, 200), trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
    )
    config = transformers.BertConfig(
        vocab_size=tokenizer.get_vocab_size(),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=64,
    )
    _save(transformers.BertModel(config), tokenizer, folder / "weights" / "minilm")


def smollm2(folder: Path) -> None:
    """DATA_DIR/weights/smollm2: a Llama of two narrow layers and its byte-level tokenizer."""
    import transformers

    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    tokenizer.train_from_iterator(sentences(0, 200), trainer)
    config = transformers.LlamaConfig(
        vocab_size=tokenizer.get_vocab_size(),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        intermediate_size=64,
        max_position_embeddings=256,
        tie_word_embeddings=True,
    )
    target = folder / "weights" / "smollm2"
    _save(transformers.LlamaForCausalLM(config), tokenizer, target)
    names = {"bos_token": special[1], "eos_token": special[2], "pad_token": special[2]}
    (target / "tokenizer_config.json").write_text(json.dumps(names))


def _save(model, tokenizer, folder: Path) -> None:
    folder.mkdir(parents=True)
    model.save_pretrained(folder)
    tokenizer.save(str(folder / "tokenizer.json"))


def efficientnet_lite0(folder: Path) -> None:
    """DATA_DIR/weights/efficientnet_lite0: random numbers in the published shapes, as torch wrote them."""
    import jax
    import torch
    from flax import linen as nn

    from bigjax.core.rules import paths
    from bigjax.models.efficientnet_lite import EfficientNetLite
    from bigjax.pretrained import efficientnet_lite
    from bigjax.pretrained.export import published_tensors

    model = EfficientNetLite(outputs=1000)
    image = np.zeros((1, 32, 32, 3), np.float32)
    shapes = nn.unbox(jax.eval_shape(lambda: model.init(jax.random.key(0), image, train=False)))
    numbers = np.random.default_rng(0)
    leaves = {
        path: numbers.uniform(0.01, 0.1, leaf.shape).astype(np.float32)
        for path, leaf in paths(shapes).items()
    }
    values = {"outputs": 1000, "width": model.width, "depth": model.depth}
    tensors = published_tensors(leaves, efficientnet_lite.entries(values))
    target = folder / "weights" / "efficientnet_lite0"
    target.mkdir(parents=True)
    torch.save({name: torch.tensor(value) for name, value in tensors.items()}, target / "w.pth")


def emoji(folder: Path) -> None:
    """bigjax_emoji: 100 random pictures, ten of each category."""
    numbers = np.random.default_rng(0)
    columns = {
        "image": numbers.integers(0, 256, (100, 64, 64, 3)).astype(np.uint8),
        "label": np.arange(100) % len(CATEGORIES),
    }
    builders.prepare(Emoji, folder, columns=columns, order=np.arange(100))


def mnist1d(folder: Path) -> None:
    """bigjax_mnist1d, of ten lines that are random walks."""
    lines = np.cumsum(np.random.default_rng(0).normal(size=(10, 12)), axis=1)
    builders.prepare(Mnist1D, folder, lines=lines)


class Imagenet256(builders.ArraysBuilder, skip_registration=True):
    """The data set that a user prepares for imagenet_vit_s16: 16 + 16 random pictures."""

    name = "imagenet2012_256"

    def feature_dict(self) -> dict:
        return {
            "image": tfds.features.Tensor(shape=(256, 256, 3), dtype=np.uint8),
            "label": tfds.features.ClassLabel(num_classes=1000),
        }

    def splits(self) -> dict:
        numbers = np.random.default_rng(0)
        return {
            split: {
                "image": numbers.integers(0, 256, (16, 256, 256, 3)).astype(np.uint8),
                "label": np.arange(16),
            }
            for split in ("train", "validation")
        }


def imagenet(folder: Path) -> None:
    builders.prepare(Imagenet256, folder)


HAS_TORCH = importlib.util.find_spec("torch") is not None


def write_all(folder: Path) -> None:
    """All of them; without torch, those that it does not write."""
    by_torch = (minilm, smollm2, efficientnet_lite0) if HAS_TORCH else ()
    for write in (text_sets, *by_torch, emoji, mnist1d, imagenet):
        write(folder)
