"""An exported folder of weights alone, run by bigjax's own model: safetensors, and GGUF of the Llama family."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

from bigjax.build.program import from_leaves
from bigjax.core.errors import UserError, first_line
from bigjax.core.rules import paths
from bigjax.core.settings import Init
from bigjax.export.card import Card
from bigjax.pretrained.load import open_checkpoint, read_published
from bigjax.pretrained.reader import open_published

GGUF = "model.gguf"


def read(card: Card) -> Callable[[Mapping[str, np.ndarray]], dict[str, Any]]:
    """`run(inputs)` of the weights in a folder.

    Raises:
      UserError: a leaf is missing or of another shape; the model is not what its card says.
    """
    family, kind = card.values["family"], card.values["kind"]
    path = card.folder / GGUF if kind.startswith("gguf") else card.folder
    if family is None:
        network = card.network()
    else:
        published, module = open_checkpoint(str(path), family)
        if card.values["model"].get("type") != module.TYPE:
            raise UserError(
                f"{card.folder}: its card and its family '{family}' name different models"
            )
        # What is in the folder may be laid out otherwise than in the run, such as RoBERTa's positions.
        model = {**card.values["model"], **module.model_values(published.config)}
        card = dataclasses.replace(card, values={**card.values, "model": model})
        network = card.network()
    try:
        abstract = jax.eval_shape(network.variables, jax.random.key(0))
    except Exception as error:  # whatever a model makes of sizes and inputs that are not its own
        reason = first_line(error)
        raise UserError(
            f"{card.folder}: its card describes no model that works ({reason})"
        ) from None
    here = jax.sharding.SingleDeviceSharding(jax.local_devices(backend="cpu")[0])
    wanted = {
        name: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=here)
        for name, leaf in paths(abstract).items()
    }
    if family is None:
        leaves = _own(card, wanted)
    else:
        init = Init(source=str(path), family=family)
        leaves = read_published(init, card.values["model"], wanted, _nothing)
    variables, answer = from_leaves(abstract, leaves), jax.jit(card.answer(network))
    return lambda inputs: answer(variables, dict(inputs))


def _own(card: Card, wanted: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """The leaves of a file that has them under our names."""
    published = open_published(str(card.folder))
    for name, leaf in wanted.items():
        found = published.shapes.get(name)
        if found != leaf.shape:
            raise UserError(
                f"{card.folder}: '{name}' should have shape {leaf.shape}, and has {found}"
            )
    return {name: published.read(name) for name in wanted}


def _nothing(names: list[str]) -> dict[str, Any]:
    raise UserError(f"the exported folder lacks {', '.join(names[:6])}")
