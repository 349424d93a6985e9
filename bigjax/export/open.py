"""An exported folder, opened: it answers as the run did, without the run, its data or its config.

The folder may be a stranger's: nothing in it is run but the model's own arithmetic (see README.md).
"""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from bigjax.core.errors import UserError
from bigjax.data import inputs
from bigjax.export.answer import OUTPUTS
from bigjax.export.card import Card, read_card

BATCH = 64  # rows that are answered at once
READERS = {  # kind of export -> `module:function` of (card) -> run
    "safetensors": "bigjax.export.weights:read",
    "gguf": "bigjax.export.weights:read",
    "stablehlo": "bigjax.export.stablehlo:read",
    "onnx": "bigjax.export.onnx:read",
}


@dataclasses.dataclass(frozen=True)
class Exported:
    """What `export` wrote.

    card: what it says of itself.
    run: {feature: (B, ...)} -> {"outputs": ..., and what the task predicts}.
    """

    card: Card
    run: Callable[[Mapping[str, np.ndarray]], Mapping[str, Any]]

    def predict(self, rows: Mapping[str, Any] | Sequence[Any]) -> list[dict[str, Any]]:
        """One dict a row: of arrays by the name of the feature, of texts, or of a table's rows.

        Raises:
          UserError: the model cannot read them.
        """
        self._check_predicts()
        given = inputs.given(rows, self.card.reader, self.card.task.input)
        return [{"row": i, **line} for i, line in enumerate(self.answers(given))]

    def read(self, path: Path) -> inputs.Inputs:
        """A user's file or folder as examples; see `bigjax.data.inputs.read`."""
        self._check_predicts()
        return inputs.read(path, self.card.reader, self.card.task.input)

    def _check_predicts(self) -> None:
        """Raises UserError where the task says nothing of an example."""
        if not self.card.task.PREDICTS:
            self.card.task.predict(None)

    def answers(self, source: Any) -> Iterator[dict[str, Any]]:
        """What a person is shown of each example of a source: JSON-able, with the names of classes.

        Raises:
          UserError: the task writes text token by token, and this folder cannot.
        """
        for start in range(0, len(source), BATCH):
            ids = np.arange(start, min(start + BATCH, len(source)))
            batch = source.read(ids)
            # Rows are added to a last batch, so that one size is compiled.
            filled = np.resize(ids, BATCH) if len(source) > BATCH else ids
            found = self.run(
                {n: x for n, x in source.read(filled).items() if n in self.card.inputs}
            )
            predicted = {
                name: np.asarray(value)[: len(ids)]
                for name, value in found.items()
                if name.partition("/")[0] != OUTPUTS
            }
            if self.card.task.writes and "written" not in predicted:
                raise UserError(
                    f"{self.card.folder}: holds the model's forward pass alone, and its task writes text "
                    "token by token; export as safetensors or stablehlo for that"
                )
            shown = self.card.task.present(predicted, batch, self.card.reader, None)
            yield from inputs.json_rows(shown, self.card.reader.class_names)


def open_exported(folder: Path, trust: bool = False) -> Exported:
    """Opens an exported folder.

    trust: it may name code outside bigjax, which is then imported.

    Raises:
      UserError: there is none, or it is damaged; what it needs is not installed.
    """
    card = read_card(folder, trust)
    kind = str(card.values["kind"]).partition(":")[0]
    if kind not in READERS:
        raise UserError(
            f"{folder}: an export of kind '{kind}', which is none of {', '.join(READERS)}"
        )
    module, _, function = READERS[kind].partition(":")
    return Exported(card, getattr(importlib.import_module(module), function)(card))


def on_cpu(run: Callable[[Any], Any], rows: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """What a run gives of some rows, computed on the CPU, where float32 is float32."""
    with jax.default_device(jax.local_devices(backend="cpu")[0]):
        return {name: np.asarray(value) for name, value in run(rows).items()}
