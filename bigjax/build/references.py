"""Other models that a method reads and does not train: of runs, and of published checkpoints.

A published checkpoint is read as the run that would start from it: on this run's data and task, but for
what its section says otherwise. From here on the two are one: a config, and where its variables are.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from bigjax.build.classes import Translated, Words, read_vocabulary, words_of_run
from bigjax.build.program import from_leaves
from bigjax.build.weights import read_variables, run_folder, seen_from
from bigjax.config.config import Config
from bigjax.config.resolve import load, resolve
from bigjax.core import marks, settings
from bigjax.core.errors import UserError
from bigjax.core.rules import paths
from bigjax.data.tokenizers import open_tokenizer
from bigjax.pretrained.families import open_family
from bigjax.pretrained.load import check_published, open_checkpoint, read_published


@dataclasses.dataclass(frozen=True)
class ReadModel:
    """A model that is read.

    config: of its run. folder: the run's; None of a published checkpoint.
    vocabulary: its id of each of our tokens, int32 (V,), where the user says them.
    """

    config: Config
    folder: Path | None
    vocabulary: np.ndarray | None = None

    @property
    def words(self) -> Words:
        """What its outputs mean, as far as it is known."""
        if self.folder is not None:
            known = words_of_run(self.folder)
        else:
            known = _words_of_published(self.config.section("init"))
        return known._replace(mapped=None if self.vocabulary is None else len(self.vocabulary))

    def variables(self, abstract: Any) -> Any:
        """Its Linen variables, laid out as `abstract` says.

        Raises:
          UserError: they lack a leaf, or have it in another shape.
        """
        own = {name: tree for name, tree in abstract.items() if name != Translated.COLLECTION}
        found = self._read(own)
        if self.vocabulary is None:
            return found
        layout = abstract[Translated.COLLECTION]["ids"].sharding
        return {**found, Translated.COLLECTION: {"ids": jax.device_put(self.vocabulary, layout)}}

    def _read(self, abstract: Any) -> Any:
        if self.folder is not None:
            return read_variables(self.folder, abstract)
        init, model = self.config.section("init"), self.config.get("model")
        values = read_published(init, model, paths(abstract), _nothing_from_scratch)
        narrowed = jax.tree.map(lambda x, a: x.astype(a.dtype), values, paths(abstract))
        return from_leaves(abstract, narrowed)


def read_models(
    config: Config, workdir: Path, stages: Mapping[str, Config] | None = None
) -> dict[str, ReadModel]:
    """Field of the method, such as "teacher" or "teachers.big" -> the model that it names.

    stages: configs of runs beside this one that need not have begun, by name.

    Raises:
      UserError: there is no such run or checkpoint, or its section says what it cannot be.
    """
    found = {}
    for name, section in named_models(config).items():
        if section.family is None:
            found[name] = _of_run(config, name, section, workdir, stages or {})
            continue
        try:
            found[name] = ReadModel(_published(config, section), None)
        except UserError as error:
            raise UserError(f"config.method.{name}: {error}") from None
    if file := config.make("method").vocabulary:
        path = seen_from(workdir, file)
        for name, model in found.items():
            theirs = model.config.get("model").get("vocab", 0)
            found[name] = dataclasses.replace(model, vocabulary=read_vocabulary(path, theirs))
    return found


def named_models(config: Config) -> dict[str, settings.Teacher]:
    """Field of the method -> what its section says of the model."""
    found = {}
    for path in config.marked(marks.RUN):
        field, named = path.removeprefix("method."), config.get(path)
        if field == path:
            continue
        several = isinstance(named, Mapping) and "source" not in named
        by_name = (
            {f"{field}.{own}": one for own, one in named.items()} if several else {field: named}
        )
        for name, one in by_name.items():
            found[name] = settings.Teacher(**({"source": one} if isinstance(one, str) else one))
    return found


def _of_run(
    config: Config,
    name: str,
    section: settings.Teacher,
    workdir: Path,
    stages: Mapping[str, Config],
) -> ReadModel:
    """The model of a run, which may be a stage beside this one."""
    beside = stages.get(section.source.removeprefix("../"))
    if beside is not None:
        folder, run = workdir / section.source, beside
    else:
        folder = run_folder(workdir, section.source, f"config.method.{name}")
        run = load(folder / "config.json", trusted=config.trusted)
    if not section.changes:
        return ReadModel(run, folder)
    values = copy.deepcopy(run.values)
    for part, changed in section.changes.items():
        values[part] = {**values[part], **changed}
    try:
        return ReadModel(resolve(values, trusted=config.trusted), folder)
    except UserError as error:
        raise UserError(f"config.method.{name}: {error}") from None


def _published(config: Config, section: settings.Teacher) -> Config:
    """The config of the run that would start from a published checkpoint, on this run's data."""
    values, changes = config.values, section.changes
    raw = {
        "train": {"steps": 1},
        "data": {**values["data"], "augment": (), **changes.get("data", {})},
        "task": changes.get("task", values["task"]),
        "model": {"type": open_family(section.family or "").TYPE, **changes.get("model", {})},
        "optimizer": {"type": "sgd", "learning_rate": 0.0},
        "init": {"source": section.source, "family": section.family, "unused": section.unused},
        **{name: changes[name] for name in ("precision", "sharding") if name in changes},
    }
    run = resolve(raw, trusted=config.trusted)
    check_published(run.section("init"), run.get("model"))
    return run


def _words_of_published(init: settings.Init) -> Words:
    """The names of classes that its config.json gives, and its tokenizer's fingerprint."""
    published, _ = open_checkpoint(init.source, init.family or "")
    names = published.config.get("id2label") or {}
    classes = tuple(str(names[i]) for i in sorted(names, key=int))
    made_up = all(name == f"LABEL_{i}" for i, name in enumerate(classes))
    folder = published.path if published.path.is_dir() else published.path.parent
    own = (folder / "tokenizer.json").is_file()
    return Words(
        None if made_up else classes, open_tokenizer(str(folder)).fingerprint if own else None
    )


def _nothing_from_scratch(names: list[str]) -> Mapping[str, jax.Array]:
    raise UserError(f"the checkpoint lacks {', '.join(names[:3])}: nothing of a teacher is random")
