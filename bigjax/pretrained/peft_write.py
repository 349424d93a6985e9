"""A run's LoRA as the library `peft` keeps it; see `bigjax.pretrained.peft`."""

from __future__ import annotations

import itertools
import math
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bigjax.core.errors import UserError
from bigjax.core.rules import paths
from bigjax.pretrained.entry import Entry
from bigjax.pretrained.export import base_prefix, find_leaf, place_of, save_tensors, whole_name
from bigjax.pretrained.families import open_family
from bigjax.pretrained.peft import CONFIG, PREFIX, VIT, WEIGHTS, renamed
from bigjax.run.files import write_json

TASKS = {  # the end of an architecture's name -> peft's task_type
    "ForCausalLM": "CAUSAL_LM",
    "LMHeadModel": "CAUSAL_LM",
    "ForConditionalGeneration": "SEQ_2_SEQ_LM",
    "ForSequenceClassification": "SEQ_CLS",
    "ForTokenClassification": "TOKEN_CLS",
    "Model": "FEATURE_EXTRACTION",
}


def write_adapters(
    folder: Path,
    lora: Any,
    trained: Any,
    variables: Any,
    model: Mapping[str, Any],
    family: str,
    base: str,
) -> None:
    """Writes adapters into a folder, which exists.

    A published matrix of several of our leaves (GPT-2's queries, keys and values) gets one adapter: the A
    of each below each other, the B in blocks, its rank their sum.

    Args:
      lora: a `bigjax.methods.lora.LoRA` or `DoRA`. trained: the trained leaves, by its NAME and "model".
      variables: the merged model's. model: the values of `config.model`.
      base: what the base is found by.

    Raises:
      UserError: a leaf's adapter is none of a published matrix.
    """
    layout, leaves = open_family(family, "export --family"), paths(variables)
    config = layout.published_config(dict(model))
    own = {f"params/{path}": leaf for path, leaf in paths(trained.get(lora.NAME, {})).items()}
    kept = {f"params/{path}" for path in paths(trained.get("model", {}))}
    before = base_prefix(layout, config)
    tensors, ranks, alphas, used = {}, {}, {}, set()
    entries = layout.entries(dict(model))

    def full(module: str) -> str:
        if family == "vit":
            module = renamed(module, {file: own for own, file in VIT.items()})
        return whole_name(module, before)

    for entry in entries:
        module = entry.name.rpartition(".")[0]
        name = full(module)
        found = [_adapter(path, own) for path in entry.paths]
        used |= {where for one in found if one for where in one[2]}
        used |= {one[0] for path in entry.paths if (one := find_leaf(f"{path}/m", own))}
        if any(found):
            a, b, scale = _fused(entry, found, leaves, lora)
            tensors[f"{PREFIX}{name}.lora_A.weight"] = a
            tensors[f"{PREFIX}{name}.lora_B.weight"] = b
            if magnitudes := _magnitudes(entry, own, leaves, inputs=a.shape[1]):
                tensors[f"{PREFIX}{name}.lora_magnitude_vector"] = np.concatenate(magnitudes)
            rank = len(a)
            ranks[name] = rank
            alphas[name] = scale * (math.sqrt(rank) if lora.rank_stabilized else rank)
    of_kept = {entry.name: _places(entry, kept) for entry in entries}
    whole = {name.rpartition(".")[0] for name, places in of_kept.items() if places}
    used |= set().union(*of_kept.values())
    for entry in entries:
        module, _, last = entry.name.rpartition(".")
        if module in whole and full(module) in ranks:
            raise UserError(f"--format=peft: {module} has an adapter and is trained itself")
        if module in whole:
            arrays = [np.asarray(find_leaf(path, leaves)[1]) for path in entry.paths]
            tensors[f"{PREFIX}{full(module)}.{last}"] = entry.save(arrays)
    if left := sorted((set(own) | kept) - used):
        raise UserError(f"--format=peft: no published name for {', '.join(left[:6])}")
    save_tensors(folder / WEIGHTS, tensors, {"format": "pt"})
    write_json(
        folder / CONFIG,
        _config(lora, config, ranks, alphas, sorted(map(full, whole)), base, family),
    )


def _config(lora, config, ranks, alphas, whole, base, family) -> dict[str, Any]:
    """adapter_config.json; a rank and an alpha of their own where they are not the run's."""
    kind = config["architectures"][0]
    return dict(
        peft_type="LORA",
        task_type=next((task for end, task in TASKS.items() if kind.endswith(end)), None),
        base_model_name_or_path=base,
        r=lora.rank,
        lora_alpha=lora.alpha,
        rank_pattern={name: r for name, r in ranks.items() if r != lora.rank},
        alpha_pattern={name: a for name, a in alphas.items() if a != lora.alpha},
        target_modules=sorted(ranks),
        modules_to_save=whole or None,
        use_rslora=lora.rank_stabilized,
        use_dora=lora.NAME == "dora",
        fan_in_fan_out=family == "gpt2",
        lora_dropout=0.0,
        bias="none",
        inference_mode=True,
    )


def _places(entry: Entry, names: Collection[str]) -> set[str]:
    """Which of some leaves' names an entry speaks of."""
    found = (place_of(path, names) for path in entry.paths)
    return {place[0] for place in found if place}


def _adapter(path: str, own: Mapping[str, Any]) -> tuple[np.ndarray, np.ndarray, list[str]] | None:
    """(A, B, the leaves that they are) of one of our leaves; None if it has none."""
    a, b = (find_leaf(f"{path}/{part}", own) for part in "ab")
    return (np.asarray(a[1]), np.asarray(b[1]), [a[0], b[0]]) if a and b else None


def _magnitudes(
    entry: Entry, own: Mapping[str, Any], leaves: Mapping[str, Any], inputs: int
) -> list[np.ndarray]:
    """DoRA's, of a published matrix's outputs; where a part of it has none, the norms that it has."""
    found = [find_leaf(f"{path}/m", own) for path in entry.paths]
    if not any(found):
        return []
    matrices = [np.reshape(find_leaf(path, leaves)[1], (inputs, -1)) for path in entry.paths]
    return [
        np.asarray(one[1]) if one else np.linalg.norm(matrix, axis=0)
        for one, matrix in zip(found, matrices, strict=True)
    ]


def _fused(
    entry: Entry, found: Sequence[Any], leaves: Mapping[str, Any], lora: Any
) -> tuple[np.ndarray, np.ndarray, float]:
    """(A (r, in), B (out, r), scale) of a published matrix."""
    shapes = [np.shape(find_leaf(path, leaves)[1]) for path in entry.paths]
    cuts = [(one[0].shape[0], one[1].shape[1]) if one else None for one in found]
    inputs = next(cut[0] for cut in cuts if cut)
    outputs = [math.prod(shape) // inputs for shape in shapes]
    _check_matrix(entry, shapes, inputs, outputs, cuts)
    scales = [lora.scale(one[0].shape[1]) if one else None for one in found]
    scale = next(s for s in scales if s is not None)
    rank = sum(one[0].shape[1] for one in found if one)
    a = np.concatenate([one[0].T for one in found if one])
    b = np.zeros((sum(outputs), rank), np.float32)
    row = column = 0
    for one, own, size in zip(found, scales, outputs, strict=True):
        if one:
            width = one[1].shape[0]
            b[row : row + size, column : column + width] = one[1].T * np.float32(own / scale)
            column += width
        row += size
    return a, b, scale


def _check_matrix(entry: Entry, shapes, inputs: int, outputs: Sequence[int], cuts) -> None:
    """Refuses a leaf whose rows and columns are not those of the published matrix."""
    if all(cut in (None, (inputs, n)) for cut, n in zip(cuts, outputs, strict=True)):
        starts = np.cumsum([0, *map(math.prod, shapes)])
        numbered = [np.arange(s, e) for s, e in itertools.pairwise(starts)]
        published = entry.save([n.reshape(s) for n, s in zip(numbered, shapes, strict=True)])
        ours = np.concatenate([n.reshape(inputs, -1) for n in numbered], axis=1)
        if any(np.array_equal(published, matrix) for matrix in (ours, ours.T)):
            return
    raise UserError(
        f"--format=peft: the adapter of {' and '.join(entry.paths)} is none of the published matrix "
        f"'{entry.name}'; say None for it in config.adapt's rules"
    )
