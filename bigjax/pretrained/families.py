"""The families of published checkpoints that can be read and written, and what a family's file holds.

Each is one module of this package with:

    TYPE                       the `config.model.type` it belongs to
    model_values(published)    the config.json of a checkpoint -> keyword arguments of our model
    published_config(model)    the way back: what transformers needs to load an export
    entries(model)             the name map, a list of `Entry`; model is `config.model`'s values

and where they apply:

    PREFIXES                   prefixes that some checkpoints of the family put before every name
    IGNORED                    regexes of published names that hold nothing of ours (tied copies)
    from_gguf(published)       a GGUF file as if it were a folder in Hugging Face layout
"""

from __future__ import annotations

import importlib
from types import ModuleType

from bigjax.core.errors import UserError, did_you_mean

# name in `config.init.family` -> (module, `model_type` of the config.json files it reads)
FAMILIES: dict[str, tuple[str, tuple[str, ...]]] = {
    "gpt2": ("gpt2", ("gpt2",)),
    "llama": ("llama", ("llama",)),
    "bert": ("bert", ("bert",)),
    "roberta": ("bert", ("roberta", "xlm-roberta")),
    "t5": ("t5", ("t5",)),
    "vit": ("vit", ("vit", "deit")),
    "resnet": ("resnet", ("resnet",)),
    "resnet_torchvision": ("resnet_torchvision", ("resnet",)),
    "vgg": ("vgg", ("vgg",)),
    "mobilenet": ("mobilenet", ("mobilenet_v2",)),
    "efficientnet_lite": ("efficientnet_lite", ("efficientnet_lite",)),
}


def open_family(name: str, where: str = "config.init.family") -> ModuleType:
    """The module of a family; raises UserError, with the nearest name, if there is none."""
    if name not in FAMILIES:
        raise UserError(
            f"{where}: unknown family '{name}'{did_you_mean(name, FAMILIES)}; "
            f"known: {', '.join(FAMILIES)}"
        )
    return importlib.import_module(f"bigjax.pretrained.{FAMILIES[name][0]}")


def family_of_type(model_type: str, where: str) -> str:
    """The first family whose model is of this `config.model.type`.

    Raises:
      UserError: no published layout is known for it.
    """
    for name in FAMILIES:
        if model_type == open_family(name).TYPE:
            return name
    raise UserError(f"{where}: no published layout is known for the model '{model_type}'")
