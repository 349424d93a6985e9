"""bigjax.json, which goes with every export: what the model reads and gives, and how a user's file is read.

Written from a run; read from a folder that may be a stranger's. Then nothing that it names is imported but
bigjax's own short names, and what it says is checked like a config.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

import bigjax
from bigjax.build.parts import Network, fitted
from bigjax.config.config import SETTINGS, made, target_of
from bigjax.config.names import NAMES
from bigjax.config.signature import bind, parameters
from bigjax.config.values import TRUST_ALL, check_trusted, plain
from bigjax.core.errors import UserError
from bigjax.core.method import Method
from bigjax.core.precision import ModelInPrecision
from bigjax.data.sources import Features
from bigjax.data.table import FittedTable
from bigjax.data.tokenizers import Tokenizer, open_tokenizer
from bigjax.export.answer import Answer, Spec

CARD, FORMAT = "bigjax.json", 1
SECTIONS = ("model", "task", "precision", "signature", "features")
KEYS = (*SECTIONS, "kind", "family", "preprocess", "class_names", "table", "text")
LARGEST = 2**28  # numbers of one example
# A source's, and nobody else's.
ELSEWHERE = dict(path="", tokenizer="", directory="", data_dir=None)


def card_of(run: Any, answer: Answer, kind: str, family: str | None) -> dict[str, Any]:
    """The card of a run (`bigjax.loop.open.Opened`) that is exported as `kind`, in a family's layout."""
    config, source = run.config, run.setup.sources["train"]
    transforms = zip(config.get("data.preprocess"), answer.preprocess, strict=False)
    return dict(
        format=FORMAT,
        made_by=dict(bigjax=bigjax.__version__, jax=jax.__version__),
        kind=kind,
        family=family,
        model=config.get("model"),
        task=config.get("task") | ({"corpus": None} if hasattr(answer.task, "corpus") else {}),
        precision=config.get("precision"),
        preprocess=[_said(values, transform) for values, transform in transforms],
        features={name: [list(s), np.dtype(t).name] for name, (s, t) in answer.features.items()},
        class_names=source.class_names,
        table=_table(config, source) if isinstance(_owner(source), FittedTable) else None,
        text=_text(config) if getattr(source, "tokenizer", None) else None,
    )


def signature(answer: Answer, variables: Any, names: Mapping[str, Spec]) -> dict[str, Any]:
    """inputs and outputs: name -> shape, "batch" for the number of examples, and dtype."""
    (batch,) = jax.export.symbolic_shape("batch")
    rows = {n: jax.ShapeDtypeStruct((batch, *s), t) for n, (s, t) in names.items()}
    outputs = jax.eval_shape(answer, variables, rows)
    return dict(
        inputs={name: _array(x) for name, x in rows.items()},
        outputs={name: _array(x) for name, x in outputs.items()},
    )


def _array(x: Any) -> dict[str, Any]:
    return dict(shape=[d if isinstance(d, int) else str(d) for d in x.shape], dtype=x.dtype.name)


@dataclasses.dataclass(frozen=True)
class Card:
    """A card as read.

    values: as the file has them. trust: it may name code outside bigjax.
    features: name -> `Spec`, of what the model is fed.
    reader: stands in for the train split where a user's file is read and an answer is shown.
    """

    folder: Path
    values: Mapping[str, Any]
    trust: bool
    features: Features
    reader: Reader

    @property
    def inputs(self) -> dict[str, Spec]:
        """The features that the answer depends on."""
        return {name: self.features[name] for name in self.values["signature"]["inputs"]}

    @property
    def task(self) -> Any:
        return self._part("task", self.values["task"])

    def network(self) -> Network:
        """The model with its preprocessing.

        Raises:
          UserError: the card names code and is not trusted, or describes no model.
        """
        transforms = self.values["preprocess"]
        if not isinstance(transforms, list | tuple):
            raise UserError(f"{self.folder / CARD}: preprocess should be a list")
        transforms = tuple(self._part("data.preprocess", one) for one in transforms)
        model = self._part("model", self.values["model"])
        known = parameters(SETTINGS["precision"])
        policy = SETTINGS["precision"](
            **bind("precision", "precision", known, self.values["precision"])
        )
        return Network(
            model=model,
            applied=ModelInPrecision(model, policy),
            task=self.task,
            method=Method(),
            preprocess=fitted(transforms, self.reader),
            features=dict(self.features),
        )

    def answer(self, network: Network) -> Answer:
        return Answer(network.applied, network.task, network.preprocess, self.features)

    def _part(self, section: str, values: Mapping[str, Any]) -> Any:
        """A part that the card names, which is imported now.

        Raises:
          UserError: it is none of bigjax's, and the card is not trusted.
        """
        check_trusted(self.folder / CARD, values, {TRUST_ALL} if self.trust else ())
        try:
            return _part(section, values)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise _damaged(self.folder / CARD, error) from None


class Reader:
    """What the train split was to `bigjax.data.inputs`: features, names, and how a user's file is read."""

    def __init__(self, features: Features, names: Sequence[str] | None, num_classes: int | None):
        self.features, self.class_names, self.num_classes = features, names, num_classes

    def reads_text(self, tokenizer: Tokenizer, source: Any) -> None:
        self.tokenizer, self.vocab_size = tokenizer, tokenizer.vocab_size
        if hasattr(source, "reader"):
            self.read_inputs = source.reader(tokenizer)
            return
        self.fields = source.text_fields()
        self.encode: Callable[[list[str]], Any] = lambda lines: source.encode(tokenizer, lines)


def read_card(folder: Path, trust: bool = False) -> Card:
    """The card of an exported folder.

    Raises:
      UserError: there is none, or it is damaged.
    """
    path = folder / CARD
    try:
        values = plain(json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        raise UserError(f"{folder}: holds no {CARD}; `export` writes it") from None
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path}: not readable ({error})") from None
    if not isinstance(values, dict) or values.get("format") != FORMAT:
        raise UserError(f"{path}: should hold a JSON object of format {FORMAT}")
    if missing := [key for key in KEYS if key not in values]:
        raise UserError(f"{path}: lacks '{missing[0]}'")
    try:
        features = {
            name: (tuple(map(int, shape)), np.dtype(kind))
            for name, (shape, kind) in values["features"].items()
        }
        names = values["class_names"]
        reader = Reader(features, names and tuple(map(str, names)), names and len(names))
        if values["table"] is not None:
            fitted = FittedTable.restored(**values["table"])
            reader.read_inputs, reader.read_rows = fitted.read_inputs, fitted.read_rows
        if values["text"] is not None:
            check_trusted(path, values["text"], ())  # sources of text are bigjax's own
            source = _part("data.source", {**values["text"], **_absent(values["text"]["type"])})
            reader.reads_text(open_tokenizer(str(folder / "tokenizer.json")), source)
        card = Card(folder, values, trust, features, reader)
        if not card.inputs or not all(isinstance(values[key], dict) for key in SECTIONS):
            raise ValueError("no inputs, model or task")
        if any(not 0 <= math.prod(shape) <= LARGEST for shape, _ in features.values()):
            raise ValueError("a feature is too large")
        return card
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise _damaged(path, error) from None


def _damaged(path: Path, error: Exception) -> UserError:
    reason = f"{type(error).__name__}: {error}"
    return UserError(f"{path}: not what `export` writes ({reason.splitlines()[0]})")


def _part(section: str, values: Mapping[str, Any]) -> Any:
    """The object of a typed section, its values checked against the signature."""
    kind = {"data.source": "source", "data.preprocess": "transform"}.get(section, section)
    given = {key: value for key, value in values.items() if key != "type"}
    target = target_of(kind, str(values["type"]), f"{CARD}: {section}")
    bound = bind(f"{CARD}: {section}", str(values["type"]), parameters(target), given)
    return made(section, section, {"type": values["type"], **bound})


def _said(values: Mapping[str, Any], transform: Any) -> dict[str, Any]:
    """A transform as a typed section: as fitted where that has a name, else to be fitted again."""
    kind = f"{type(transform).__module__}:{type(transform).__qualname__}"
    short = {path: name for name, path in NAMES["transform"].items()}.get(kind)
    if short is None or short == values["type"]:
        return dict(values)
    fields = {field.name: getattr(transform, field.name) for field in dataclasses.fields(transform)}
    return {"type": short, **fields}


def _owner(source: Any) -> Any:
    """Whose method reads a user's file, if the source has one."""
    return getattr(getattr(source, "read_inputs", None), "__self__", None)


def _table(config: Any, source: Any) -> dict[str, Any]:
    return dict(label_column=_source_values(config).get("label"), fitted=source.fitted)


def _text(config: Any) -> dict[str, Any]:
    return {k: v for k, v in _source_values(config).items() if k not in ELSEWHERE}


def _source_values(config: Any) -> Mapping[str, Any]:
    """The typed section of the source that the train split is of."""
    name, colon, _ = config.get("data.splits")["train"].partition(":")
    others = config.get("data.sources") or {}
    return others[name] if colon and name in others else config.get("data.source")


def _absent(kind: str) -> dict[str, Any]:
    """What a source must be told and is not used here."""
    known = parameters(target_of("source", kind, f"{CARD}: text"))
    return {key: value for key, value in ELSEWHERE.items() if key in known}
