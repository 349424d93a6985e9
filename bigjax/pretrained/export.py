"""Our variables as a folder that `transformers` loads: config.json, model.safetensors, tokenizer.json.

The name map is the one that loading reads, run backwards. The folder appears whole or not at all.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from bigjax.core.errors import UserError
from bigjax.core.rules import paths
from bigjax.pretrained.entry import Entry
from bigjax.pretrained.families import open_family
from bigjax.run.files import publish, write_json


def export_folder(
    variables: Any,
    model: Mapping[str, Any],
    family: str,
    folder: Path,
    tokenizer: Any = None,
) -> None:
    """Writes variables as a published checkpoint.

    Args:
      variables: {"params": ..., other collections}: arrays that this process can read whole.
      model: the values of `config.model`.
      family: a name of `bigjax.pretrained.families`.
      folder: must not exist yet.
      tokenizer: a `bigjax.data.tokenizers.Tokenizer` to go with it.

    Raises:
      UserError: the folder is there or cannot be written; a leaf has no published name.
    """
    from safetensors.numpy import save_file

    module = open_family(family, "export --family")
    tensors = published_tensors(paths(variables), module.entries(dict(model)))
    if folder.exists():
        raise UserError(f"--output={folder}: is there already")

    def write(private: Path) -> None:
        save_file(tensors, private / "model.safetensors", metadata={"format": "pt"})
        write_json(private / "config.json", module.published_config(dict(model)))
        if tokenizer is not None:
            tokenizer.save(private)

    publish(folder, write)


def published_tensors(leaves: Mapping[str, Any], entries: list[Entry]) -> dict[str, np.ndarray]:
    """Our leaves under their published names and in the published layout.

    Raises:
      UserError: a leaf has no published name.
    """
    tensors, used = {}, set()
    for entry in entries:
        arrays = []
        for path in entry.paths:
            found = _find(path, leaves)
            if found is not None:
                used.add(found[0])
                arrays.append(np.asarray(found[1]))
        if len(arrays) == len(entry.paths):
            tensors[entry.name] = np.ascontiguousarray(entry.save(arrays))
        elif not entry.optional:
            raise UserError(f"export: the run has no {' and '.join(entry.paths)}")
    if left := sorted(set(leaves) - used):
        raise UserError(f"export: no published name for {', '.join(left[:6])}")
    return tensors


def _find(path: str, leaves: Mapping[str, Any]) -> tuple[str, Any] | None:
    """The leaf of a path as the name map writes it, also where layers are stacked: (path, array)."""
    if path in leaves:
        return path, leaves[path]
    before, found, rest = path.partition("/block_")
    number, _, rest = rest.partition("/")
    stacked = f"{before}/blocks/{rest}"
    return (stacked, leaves[stacked][int(number)]) if found and stacked in leaves else None
