"""A checked config: its sections, the targets behind them, and what follows from their annotations.

Made by `bigjax.config.resolve` alone. Nothing in this file may touch a device.
"""

from __future__ import annotations

import copy
import dataclasses
import functools
import hashlib
import importlib
from collections.abc import Callable, Mapping
from typing import Any

from bigjax.config.names import KINDS, NAMED, NAMES
from bigjax.config.signature import parameters
from bigjax.config.values import canonical, fingerprint, flatten
from bigjax.core import marks, optax_names, settings
from bigjax.core.errors import UserError, did_you_mean
from bigjax.core.marks import marked_fields
from bigjax.core.optimizers import OptimizerSettings

# Sections with a fixed set of keys. The others have none: all their keys are their type's.
SETTINGS: dict[str, type] = {
    "train": settings.Train,
    "data": settings.Data,
    "optimizer": OptimizerSettings,
    "precision": settings.Precision,
    "mesh": settings.Mesh,
    "sharding": settings.Sharding,
    "evaluate": settings.Evaluate,
    "checkpoint": settings.Checkpoint,
    "log": settings.Log,
    "check": settings.Check,
    "init": settings.Init,
}

# Typed sections that have a default, and all of them.
DEFAULTS: dict[str, Any] = {"method": {"type": "supervised"}, "adapt": (), "evaluators": {}}
TYPED = ("model", "task", *DEFAULTS)


@dataclasses.dataclass(frozen=True)
class Config:
    """A checked config. `values` is what `config.json` holds: plain, complete, nested."""

    values: dict[str, Any]
    # path -> "default" | "experiment" | "checkpoint" | "data" | "command line"
    origins: dict[str, str]
    trusted: frozenset[str] = frozenset()  # what the configs of other runs' folders may import

    @property
    def seed(self) -> int:
        return self.values["seed"]

    def get(self, path: str) -> Any:
        """The plain value at a dotted path."""
        return functools.reduce(lambda node, key: node[key], path.split("."), self.values)

    def section(self, name: str) -> Any:
        """The settings dataclass of a section such as "train" or "mesh"; None if it is absent."""
        values = self.values[name]
        if values is None:
            return None
        given = {
            key: self.make(f"{name}.{key}") if f"{name}.{key}" in KINDS else values[key]
            for key in parameters(SETTINGS[name])
        }
        return SETTINGS[name](**given)

    def keywords(self, name: str) -> dict[str, Any]:
        """The keys of a section that belong to its `type` and not to its settings."""
        own = ("type", *parameters(SETTINGS[name]))
        return {key: value for key, value in self.values[name].items() if key not in own}

    def make(self, path: str) -> Any:
        """The object (or tuple, or dict by name) that the typed section at `path` describes."""
        return made(path, path, self.get(path))

    def marked(self, mark: str) -> list[str]:
        """Paths of the keys whose field is annotated with a mark (see `bigjax.core.marks`)."""
        sections = [(name, name, self.values[name]) for name in (*TYPED, *SETTINGS)]
        sections += [
            (f"{name}.{own}", name, values)
            for name in NAMED
            for own, values in (_at(self.values, name) or {}).items()
        ]
        found = []
        for path, name, values in sections:
            if path in NAMED or not isinstance(values, dict):
                continue
            targets = [SETTINGS[name]] if name in SETTINGS else []
            if isinstance(values.get("type"), str):
                targets.append(target_of(KINDS[name], values["type"], f"config.{path}"))
            for target in targets:
                own = marked_fields(target, mark)
                found += [f"{path}.{key}" for key in own if values.get(key) is not None]
        return found

    @property
    def traced(self) -> list[str]:
        """Paths of the scalars that are inputs of the compiled step: other values compile nothing."""
        return self.marked(marks.TRACED)

    @property
    def references(self) -> dict[str, str]:
        """Path -> folder, for every key that names another run."""
        published = (self.values["init"] or {}).get("family")
        found = {}
        for path in self.marked(marks.RUN):
            if not (path == "init.source" and published):
                found |= _folders(path, self.get(path))
        return found

    def with_value(self, path: str, value: Any) -> Config:
        """This config with one value changed, e.g. the seed of a stage."""
        values = copy.deepcopy(self.values)
        *parents, last = path.split(".")
        functools.reduce(lambda node, key: node[key], parents, values)[last] = value
        return dataclasses.replace(self, values=values)

    @property
    def fingerprint(self) -> str:
        """sha256 of the canonical JSON of all values."""
        return fingerprint(self.values)

    @property
    def program_fingerprint(self) -> str:
        """sha256 of the values that shape the compiled program: configs that share it can share it."""
        free = ("seed", *self.traced, *self.references)
        elsewhere = ("log", "checkpoint", "evaluate", "evaluators", "init")
        kept = {
            path: value
            for path, value in flatten(self.values).items()
            if path not in free and path.split(".")[0] not in elsewhere
        }
        return hashlib.sha256(canonical(kept).encode()).hexdigest()


def _folders(path: str, named: Any) -> dict[str, str]:
    """Path -> folder of the run, for a folder, dict(source=FOLDER, ...), or several by name."""
    if isinstance(named, str):
        return {path: named}
    if isinstance(named.get("source"), str):
        return {} if named.get("family") else {f"{path}.source": named["source"]}
    found = [_folders(f"{path}.{name}", one) for name, one in named.items()]
    return {key: folder for one in found for key, folder in one.items()}


def _at(values: Mapping[str, Any], path: str) -> Any:
    """The value at a dotted path; None where there is none."""
    for key in path.split("."):
        values = values.get(key) if isinstance(values, Mapping) else None
    return values


def target_of(kind: str, name: str, where: str) -> Callable[..., Any]:
    """The class or function behind a `type`: a short name, or "package.module:Name".

    Raises:
      UserError: naming the nearest known name, or why the import failed.
    """
    if kind == "optimizer" and ":" not in name:
        return optax_names.resolve(name)
    known = NAMES.get(kind, {})
    path = known.get(name, name)
    if ":" not in path:
        raise UserError(
            f"{where}.type: unknown {kind} '{name}'{did_you_mean(name, known)}; "
            f"known: {', '.join(known)}, or give 'package.module:Name'"
        )
    module, _, attribute = path.partition(":")
    try:
        return getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise UserError(f"{where}.type: cannot import '{path}' ({error})") from None


def made(section: str, where: str, values: Any) -> Any:
    """The object (or tuple, or dict by name) of a typed section; `where` is its path for messages."""
    if isinstance(values, tuple):
        return tuple(made(section, where, value) for value in values)
    if section in NAMED and where == section:
        return {n: made(section, f"{where}.{n}", one) for n, one in (values or {}).items()}
    if values is None:
        return None
    target = target_of(KINDS[section], values["type"], f"config.{where}")
    given = {key: value for key, value in values.items() if key != "type"}
    for key in given:
        if f"{section}.{key}" in KINDS:
            given[key] = made(f"{section}.{key}", f"{where}.{key}", given[key])
    try:
        return target(**given)
    except UserError as error:
        said = str(error)
        raise UserError(said if said.startswith("config.") else f"config.{where}: {said}") from None
