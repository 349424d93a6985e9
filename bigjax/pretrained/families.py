"""The families of published checkpoints that can be read and written, and what a family's file holds.

A family is a module of this package, or an object in one, with:

    TYPE                       the `config.model.type` it belongs to
    model_values(published)    the config.json of a checkpoint -> keyword arguments of our model
    published_config(model)    the way back: what transformers needs to load an export
    entries(model)             the name map, a list of `Entry`; model is `config.model`'s values

and where they apply:

    PREFIXES                   prefixes that some checkpoints of the family put before every name
    IGNORED                    regexes of published names that hold nothing of ours (tied copies)
    GENERATES                  whether the model writes text: an export then says how
    from_gguf(published)       a GGUF file as if it were a folder in Hugging Face layout
    for_padding(model, leaves, pad)  what an export must change where the padding token is `pad`
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bigjax.core.errors import UserError, did_you_mean
from bigjax.data.sources import default_data_dir
from bigjax.pretrained.peft import base_of, is_adapter
from bigjax.pretrained.reader import read_json

# name in `config.init.family` -> (module or module:object, `model_type` of the config.json it reads)
FAMILIES: dict[str, tuple[str, tuple[str, ...]]] = {
    "gpt2": ("gpt2", ("gpt2",)),
    "llama": ("decoders:LLAMA", ("llama",)),
    "mistral": ("decoders:MISTRAL", ("mistral",)),
    "qwen2": ("decoders:QWEN2", ("qwen2",)),
    "qwen3": ("decoders:QWEN3", ("qwen3",)),
    "gemma2": ("decoders:GEMMA2", ("gemma2",)),
    "gemma3": ("decoders:GEMMA3", ("gemma3_text",)),
    "phi3": ("decoders:PHI3", ("phi3",)),
    "olmo2": ("decoders:OLMO2", ("olmo2",)),
    "smollm3": ("decoders:SMOLLM3", ("smollm3",)),
    "mixtral": ("decoders:MIXTRAL", ("mixtral",)),
    "qwen3_moe": ("decoders:QWEN3_MOE", ("qwen3_moe",)),
    "bert": ("encoders:BERT", ("bert",)),
    "roberta": ("encoders:ROBERTA", ("roberta", "xlm-roberta")),
    "distilbert": ("encoders:DISTILBERT", ("distilbert",)),
    "electra": ("encoders:ELECTRA", ("electra",)),
    "albert": ("encoders:ALBERT", ("albert",)),
    "modernbert": ("encoders:MODERNBERT", ("modernbert",)),
    "t5": ("t5", ("t5",)),
    "whisper": ("whisper", ("whisper",)),
    "vit": ("vit", ("vit", "deit")),
    "clip": ("clip:CLIP", ("clip",)),
    "siglip": ("clip:SIGLIP", ("siglip",)),
    "resnet": ("resnet", ("resnet",)),
    "resnet_torchvision": ("resnet_torchvision", ("resnet",)),
    "vgg": ("vgg", ("vgg",)),
    "mobilenet": ("mobilenet", ("mobilenet_v2",)),
    "efficientnet": ("efficientnet", ("efficientnet",)),
    "efficientnet_lite": ("efficientnet_lite", ("efficientnet_lite",)),
}


def open_family(name: str, where: str = "config.init.family") -> Any:
    """A family by name; raises UserError, with the nearest name, if there is none."""
    if name not in FAMILIES:
        raise UserError(
            f"{where}: unknown family '{name}'{did_you_mean(name, FAMILIES)}; "
            f"known: {', '.join(FAMILIES)}"
        )
    module, _, member = FAMILIES[name][0].partition(":")
    found = importlib.import_module(f"bigjax.pretrained.{module}")
    return getattr(found, member) if member else found


def family_of_source(source: str) -> str | None:
    """The family of a published folder; None if the source is something else, such as a run.

    Raises:
      UserError: its config.json says a model of no family that is known.
    """
    folder = folder_of(source)
    published = {} if folder is None else read_json(folder / "config.json")
    if "model_type" not in published:
        return None
    if found := family_of_config(published):
        return found
    kind = published["model_type"]
    kinds = [k for _, kinds in FAMILIES.values() for k in kinds]
    raise UserError(
        f"config.init.source: {folder} holds a '{kind}'{did_you_mean(str(kind), kinds)}; "
        f"known: {', '.join(dict.fromkeys(kinds))}"
    )


def folder_of(source: str) -> Path | None:
    """The folder with a config.json that a source names by its path or as fetched weights, if it is here."""
    source = base_of(source) if is_adapter(source) else source
    weights = Path(default_data_dir()) / "weights"
    folders = (Path(os.path.expanduser(source)), weights / source)
    return next((folder for folder in folders if (folder / "config.json").is_file()), None)


def family_of_config(published: Mapping[str, Any]) -> str | None:
    """The first family that reads a config.json of this `model_type`; None if it says none that is known."""
    kind = published.get("model_type")
    return next((name for name, (_, kinds) in FAMILIES.items() if kind in kinds), None)


def family_of_model(model: Mapping[str, Any]) -> str | None:
    """The first family whose layout can say a model of these values; None for a type of no family.

    Raises:
      UserError: families of its type cannot say it; the first one's reason.
    """
    reasons = []
    for name in FAMILIES:
        family = open_family(name)
        if model["type"] != family.TYPE:
            continue
        try:
            family.published_config(dict(model))
            return name
        except UserError as reason:
            reasons.append(reason)
    if reasons:
        raise reasons[0]
    return None
