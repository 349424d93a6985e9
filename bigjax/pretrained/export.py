"""Our variables as a folder that `transformers` loads and its `pipeline` runs.

config.json and model.safetensors; with a tokenizer its files, the special ids in config.json, and for a
model that writes text generation_config.json; for images preprocessor_config.json. The name map is the
one that loading reads, run backwards.
"""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bigjax.core.errors import UserError
from bigjax.core.rules import paths
from bigjax.pretrained.entry import STACKS, Entry
from bigjax.pretrained.families import open_family
from bigjax.pretrained.preprocessor import preprocessor_config
from bigjax.pretrained.reader import read_json
from bigjax.pretrained.table import labels_of
from bigjax.run.files import write_json

WEIGHTS = "model.safetensors"
NO_IDS = dict(pad_token_id=None, bos_token_id=None, eos_token_id=None)
IDS = (*NO_IDS, "decoder_start_token_id")
# Published names of what stands on a bare model.
HEAD = re.compile(
    r"(lm_head|cls|classifier|pre_classifier|cls_classifier|distillation_classifier|vocab_transform|"
    r"vocab_layer_norm|vocab_projector|predictions|generator_predictions|generator_lm_head|head)(\..*)?|"
    r"decoder(\.(weight|bias))?"
)


def fill_published(
    folder: Path,
    variables: Any,
    model: Mapping[str, Any],
    family: str,
    source: Any = None,
    preprocess: Sequence[Any] = (),
    origin: Path | None = None,
) -> None:
    """Writes variables as a published checkpoint into a folder.

    Args:
      folder: exists, and is nobody else's (see `bigjax.run.files.publish`).
      variables: {"params": ..., other collections}: arrays that this process can read whole.
      model: the values of `config.model`.
      family: a name of `bigjax.pretrained.families`.
      source: the train split: its `tokenizer` and its `class_names`, where it has them, go along.
      preprocess: the transforms of every batch, which say how a picture becomes the model's input.
      origin: the published folder that the weights started from; its special ids hold where there is no
        tokenizer, and every one of its ends of a text where the tokenizer's is among them.

    Raises:
      UserError: a leaf has no published name; the family has no such model.
    """
    layout, values, leaves = open_family(family, "export --family"), dict(model), paths(variables)
    tokenizer, names = (getattr(source, name, None) for name in ("tokenizer", "class_names"))
    pad = None if tokenizer is None else _padding(tokenizer)
    if pad is not None and hasattr(layout, "for_padding"):
        values, leaves = layout.for_padding(values, leaves, pad)
    config = layout.published_config(values)
    if "id2label" in config:
        config |= labels_of(len(config["id2label"]), names)
    generates = getattr(layout, "GENERATES", False)
    if "vocab" in values:  # said, or transformers has its own ids, outside our vocabulary
        config = {**NO_IDS, **config}
    special = ids_of(origin, values["vocab"]) if origin and "vocab" in values else {}
    if tokenizer is not None:
        start = getattr(source, "start", None)
        special = special_ids(tokenizer, config, special.get("eos_token_id"), start)
    if "text_config" in config:  # of two towers, where one reads text
        config["text_config"] |= {key: ids for key, ids in special.items() if ids is not None}
    tensors = published_tensors(leaves, layout.entries(values))
    if any(map(HEAD.fullmatch, tensors)):  # or transformers 4 takes it for a bare model's file
        before = base_prefix(layout, config)
        tensors = {whole_name(name, before): tensor for name, tensor in tensors.items()}
    save_tensors(folder / WEIGHTS, tensors, {"format": "pt"})
    write_json(folder / "config.json", {**config, **special})
    if tokenizer is not None:
        tokenizer.save(folder)
        file = folder / "tokenizer_config.json"
        _tell_tokenizer(file, config, generates, None if pad is None else tokenizer.token(pad))
        if hasattr(layout, "TOKENIZER"):
            settings = json.loads(file.read_text(encoding="utf-8"))
            write_json(file, settings | dict(tokenizer_class=layout.TOKENIZER))
    if generates and special:
        kept = said_of(origin, "generation_config.json", getattr(layout, "GENERATION", ()))
        write_json(folder / "generation_config.json", {**kept, **special, "do_sample": False})
    if hasattr(layout, "preprocessor"):
        write_json(folder / "preprocessor_config.json", layout.preprocessor(values))
    if "image" in values:
        picture = preprocessor_config(preprocess, values["image"], config["model_type"])
        write_json(folder / "preprocessor_config.json", picture)


def base_prefix(layout: Any, config: Mapping[str, Any]) -> str:
    """What a model with a head puts before the names of the bare model."""
    known = getattr(layout, "PREFIXES", ())
    architecture = config.get("architectures", ("Model",))[0]
    if not known or (architecture.endswith("Model") and not architecture.endswith("LMHeadModel")):
        return ""
    own = f"{config['model_type'].replace('-', '_')}."
    return own if own in known else known[0]


def whole_name(name: str, before: str) -> str:
    """The name of a bare model's tensor or module, or of its head's, in a model with a head."""
    return name if HEAD.fullmatch(name) else before + name


def fill_own(folder: Path, variables: Any, model: Mapping[str, Any]) -> None:
    """Writes variables under our own names into a folder, for a model that has no published layout.

    model.safetensors holds each leaf by its path ("params/dense_0/kernel"), in our layout; config.json
    the values of `config.model`.
    """
    save_tensors(folder / WEIGHTS, paths(variables))
    write_json(folder / "config.json", {"model": dict(model)})


def save_tensors(
    path: Path, tensors: Mapping[str, Any], metadata: Mapping[str, str] | None = None
) -> None:
    """Writes arrays by name as a safetensors file."""
    from safetensors.numpy import save_file

    path.touch()
    mode = path.stat().st_mode  # as the umask says; safetensors makes files for their owner alone
    save_file({name: np.asarray(x, order="C") for name, x in tensors.items()}, path, metadata)
    path.chmod(mode)


def ids_of(folder: Path, vocab: int) -> dict[str, Any]:
    """The special ids that a published folder says and a model of so many tokens has."""
    found = {}
    for name in ("config.json", "generation_config.json"):
        found |= said_of(folder, name, IDS)
    return {key: ids for key, ids in found.items() if np.max(ids) < vocab}


def said_of(folder: Path | None, name: str, keys: Sequence[str]) -> dict[str, Any]:
    """What a file of a published folder says of these keys; nothing where there is no such file."""
    if folder is None or not (folder / name).is_file():
        return {}
    said = read_json(folder / name)
    return {key: said[key] for key in keys if said.get(key) is not None}


def special_ids(
    tokenizer: Any, config: Mapping[str, Any], ends: Any = None, start: int | None = None
) -> dict[str, Any]:
    """The ids of config.json that say where a text begins and ends, as the run's data has them.

    ends: ids, of which each ends a text if the tokenizer's end does. start: of the data's targets, where it
    is not as usual.
    """
    several = isinstance(ends, Sequence) and tokenizer.end in ends
    ids = dict(
        pad_token_id=_padding(tokenizer),
        bos_token_id=tokenizer.start,
        eos_token_id=list(ends) if several else tokenizer.end,
    )
    if "decoder_start_token_id" in config:  # see bigjax.data.text.TextPairs
        usual = (start, tokenizer.bos, tokenizer.cls, tokenizer.pad)
        known = (i for i in usual if i is not None)
        ids["decoder_start_token_id"] = next(known, 0)
    return ids


def _padding(tokenizer: Any) -> int | None:
    """What fills a batch: the end token where there is none for it, as transformers does."""
    return tokenizer.end if tokenizer.pad is None else tokenizer.pad


def _tell_tokenizer(
    file: Path, config: Mapping[str, Any], generates: bool, padding: str | None
) -> None:
    """What the model reads, and with what and on which side a batch is filled up."""
    types = config.get("type_vocab_size", 0) > 1
    settings = json.loads(file.read_text(encoding="utf-8"))
    settings["model_input_names"] = ["input_ids", *["token_type_ids"] * types, "attention_mask"]
    decoder = generates and "decoder_start_token_id" not in config
    settings |= dict(padding_side="left" if decoder else "right", pad_token=padding)
    write_json(file, settings)


def published_tensors(leaves: Mapping[str, Any], entries: list[Entry]) -> dict[str, np.ndarray]:
    """Our leaves under their published names and in the published layout.

    Raises:
      UserError: a leaf has no published name.
    """
    tensors, used = {}, set()
    for entry in entries:
        arrays = []
        for path in entry.paths:
            found = find_leaf(path, leaves)
            if found is not None:
                used.add(found[0])
                arrays.append(np.asarray(found[1]))
        if len(arrays) == len(entry.paths):
            tensors[entry.name] = np.asarray(entry.save(arrays), order="C")
        elif not entry.optional:
            raise UserError(f"export: the run has no {' and '.join(entry.paths)}")
    if left := sorted(set(leaves) - used):
        raise UserError(f"export: no published name for {', '.join(left[:6])}")
    return tensors


def find_leaf(path: str, leaves: Mapping[str, Any]) -> tuple[str, Any] | None:
    """The leaf of a path as the name map writes it, also where it is stacked: (path, array)."""
    found = place_of(path, leaves)
    return (found[0], leaves[found[0]][found[1]]) if found else None


def place_of(path: str, names: Collection[str]) -> tuple[str, tuple[int, ...]] | None:
    """Which of the leaves' names holds the leaf of a path, and where within, as it may be stacked."""
    choices: list[list[tuple[str, tuple[int, ...]]]] = []
    for part in path.split("/"):
        name, _, number = part.rpartition("_")
        stacks = [(stack, (int(number),)) for stack, one in STACKS.items() if one == name]
        choices.append([(part, ()), *stacks])
    for chosen in itertools.product(*choices):
        own = "/".join(part for part, _ in chosen)
        if own in names:
            return own, sum((index for _, index in chosen), ())
    return None
