"""Outputs of other runs' models on the train split, written once and read in place of the models.

A cache lies in a folder named by all that its numbers follow from: the contents of the teacher, its
config, the data, the view (the transforms that the examples go through), what is kept of the outputs. Row i
of each file is example i. With views row e N + i is example i of N as epoch e of the run augments it: sample
ids, augmentation and what a batch mixes are pure functions of (seed, step), so that the steps of the run are
gone through once without a student. It is filled in order, before the first step; a fill that was broken
off goes on where it stopped.
"""

from __future__ import annotations

import dataclasses
import hashlib
import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from bigjax.build.classes import Words
from bigjax.build.parts import example_batch, fitted, key_data, split_key
from bigjax.build.program import read_references
from bigjax.build.references import ReadModel
from bigjax.build.weights import seen_from
from bigjax.config.resolve import Config
from bigjax.config.values import canonical
from bigjax.core.errors import UserError
from bigjax.core.method import Reference
from bigjax.core.order import stream_of
from bigjax.core.state import params_fingerprint
from bigjax.core.transforms import apply_transforms
from bigjax.mesh import sharding
from bigjax.methods.distill import cached
from bigjax.run.files import read_json, sync, workdir_lock, write_json

log = logging.getLogger("bigjax")

Columns = dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Teacher:
    """What fills a cache.

    name: of the reference. program: fingerprint of the config that its outputs follow from.
    outputs: (variables, batch, key) -> columns of a batch as the source gives it, jitted.
    shapes: of the columns, for one example. variables: () -> (its variables, their fingerprint).
    """

    name: str
    program: str
    outputs: Callable[..., dict[str, jax.Array]]
    shapes: Mapping[str, jax.ShapeDtypeStruct]
    variables: Callable[[], tuple[Any, str]]


@dataclasses.dataclass(frozen=True)
class Views:
    """The examples of a run's steps, in order.

    seed, steps: of the run. key: that its augmentation draws by.
    """

    seed: int
    steps: int
    key: jax.Array


class Taught:
    """A source with the outputs of teachers among its columns, from a cache under `root`.

    prints: the teachers' fingerprints by name, once it is filled.

    Args:
      source: the train split.
      view: plain values, all that decides how an example looks to a teacher.
      rows: of a batch; batch: columns of B rows, ids, epochs -> the batch, as a step is given it.
      views: the run's, if what differs from epoch to epoch is kept.
    """

    def __init__(
        self,
        source: Any,
        root: Path,
        teachers: Mapping[str, Teacher],
        view: Any,
        rows: int,
        batch: Callable[[Columns, np.ndarray, np.ndarray], Any],
        views: Views | None = None,
    ) -> None:
        self._source, self._root, self._teachers, self._views = source, root, teachers, views
        # Examples that teachers are asked for, and the rows of a file.
        self._asked = views.steps * rows if views else len(source)
        self._kept = -(-self._asked // len(source)) * len(source)
        self._view, self._rows, self._batch = view, rows, batch
        self._columns: Columns = {}
        self.prints: dict[str, str] = {}
        own = {k: (s.shape, s.dtype) for t in teachers.values() for k, s in t.shapes.items()}
        self.features = {**source.features, **own}

    def __getattr__(self, name: str) -> Any:
        return getattr(self._source, name)

    def __len__(self) -> int:
        return len(self._source)

    def read(self, ids: np.ndarray) -> Columns:
        """As the first epoch has them."""
        return self.read_epochs(ids, np.zeros_like(ids))

    def read_epochs(self, ids: np.ndarray, epochs: np.ndarray) -> Columns:
        rows = self._rows_of(ids, epochs)
        taught = {name: np.asarray(column[rows]) for name, column in self._columns.items()}
        return {**self._source.read(ids), **taught}

    def _rows_of(self, ids: np.ndarray, epochs: np.ndarray) -> np.ndarray:
        return epochs.astype(np.int64) * len(self) + ids if self._views else ids

    def fill(self) -> None:
        """Opens the cache, once, after writing what is missing.

        Raises:
          UserError: what a teacher sees of an example is not the same each time.
        """
        for name in self._teachers.keys() - self.prints.keys():
            teacher = self._teachers[name]
            variables, fingerprint = teacher.variables()
            about = {
                "teacher": fingerprint,
                "program": teacher.program,
                "data": self._source.fingerprint(),
                "view": self._view,
                "kept": {k: [list(s.shape), str(s.dtype)] for k, s in teacher.shapes.items()},
            }
            digest = hashlib.sha256(canonical(about).encode()).hexdigest()
            folder = self._root / digest[:16]
            with workdir_lock(folder):
                self._columns |= self._filled(folder, teacher, variables, about)
            self.prints[name] = fingerprint

    def _filled(self, folder: Path, teacher: Teacher, variables: Any, about: Any) -> Columns:
        """The columns of a teacher, whole, as files that are read where they lie."""
        files = {name: folder / f"{name.rpartition('/')[2]}.npy" for name in teacher.shapes}
        done, total = self._done(folder, files, teacher), self._asked
        if done < total:
            log.info("%s: writing the outputs of %s from row %d on", folder, teacher.name, done)
            if not self._views:
                self._check_view(teacher, variables)
            columns = {
                name: _open(path, "r+")
                if done
                else _open(
                    path,
                    "w+",
                    (self._kept, *teacher.shapes[name].shape),
                    teacher.shapes[name].dtype,
                )
                for name, path in files.items()
            }
            for first in range(done, total, self._rows):
                ids, epochs, key = self._examples(first)
                real = min(self._rows, total - first)
                rows = self._rows_of(ids, epochs)[:real]
                found = self._outputs(teacher, variables, ids, epochs, key)
                for name, values in jax.device_get(found).items():
                    columns[name][rows] = values[:real]
                if first // self._rows % 100 == 99 or first + real == total:
                    for name, path in files.items():
                        columns[name].flush()
                        sync(path)
                    write_json(folder / "cache.json", {"rows": first + real, **about})
        return {name: _open(path, "r") for name, path in files.items()}

    def _done(self, folder: Path, files: Mapping[str, Path], teacher: Teacher) -> int:
        """How many rows are written; 0 where the files are not what they should be."""
        rows = (read_json(folder / "cache.json") or {}).get("rows")
        try:
            for name, path in files.items():
                there, one = _open(path, "r"), teacher.shapes[name]
                if (there.shape, there.dtype) != ((self._kept, *one.shape), one.dtype):
                    return 0
        except (OSError, ValueError):
            return 0
        return rows if isinstance(rows, int) and 0 <= rows <= self._asked else 0

    def _examples(self, first: int) -> tuple[np.ndarray, np.ndarray, jax.Array]:
        """(ids, epochs, key of the transforms) of the batch of examples from number `first` on."""
        numbers = np.arange(first, first + self._rows)
        if self._views:
            return *stream_of(self._source)(self._views.seed, numbers), self._views.key
        ids = np.minimum(numbers, len(self) - 1)
        return ids, np.zeros_like(ids), jax.random.key(0)

    def _outputs(
        self, teacher: Teacher, variables: Any, ids: np.ndarray, epochs: np.ndarray, key: jax.Array
    ) -> Any:
        return teacher.outputs(variables, self._batch(self._source.read(ids), ids, epochs), key)

    def _check_view(self, teacher: Teacher, variables: Any) -> None:
        ids, epochs, _ = self._examples(0)
        first, second = (
            jax.device_get(
                self._outputs(teacher, variables, ids, epochs + draw, jax.random.key(draw))
            )
            for draw in (0, 1)
        )
        if any(not np.array_equal(first[name], second[name]) for name in first):
            raise UserError(
                "config.method.cache: what the teacher sees of an example is drawn anew each epoch "
                "(config.data.augment or preprocess): say method.cache_views=True, or leave out the cache, "
                "or what is random"
            )


def _open(path: Path, mode: str, shape: Any = None, dtype: Any = None) -> np.ndarray:
    return np.lib.format.open_memmap(path, mode=mode, shape=shape, dtype=dtype)


def taught_source(
    config: Config,
    workdir: Path,
    source: Any,
    models: Mapping[str, ReadModel],
    mesh: Mesh,
    words: Mapping[str, Words],
) -> Taught:
    """The train split with the outputs of the models that the method names, as its `cached` says.

    Raises:
      UserError: a model cannot read these examples; or there are several processes.
    """
    if jax.process_count() > 1:
        raise UserError("config.method.cache: is written and read by one process; leave it out")
    wanted = config.make("method").cached
    if wanted.views and (config.get("check.policy") == "rewind" or config.get("data.mixture")):
        raise UserError(
            "config.method.cache_views: goes with neither config.data.mixture nor config.check.policy "
            "rewind, which leaves examples out that others may be mixed with"
        )
    runs = {name: model.config for name, model in models.items()}
    augment = fitted(config.make("data.augment"), source)
    abstract, _, references = read_references(config, runs, source, mesh, words)
    B = config.get("train.batch_size")

    def batch_of(columns: Columns, ids: np.ndarray, epochs: np.ndarray) -> Any:
        own = {"mask": np.ones(len(ids), np.float32), "sample": ids.astype(np.int32)}
        return {**columns, **own, "epoch": epochs.astype(np.int32)}

    views, view = None, [config.get("data.augment"), words]
    if wanted.views:
        steps = config.section("train").total_steps(len(source))
        run_key = jax.random.wrap_key_data(split_key(key_data(config.seed))[1])
        # The key that `core.steps` augments by.
        views = Views(config.seed, steps, jax.random.split(run_key)[0])
        view += [config.seed, steps, B]
    teachers = {}
    for name in runs:
        outputs = _outputs_of(name, references[name], augment, wanted.top)
        teachers[name] = _teacher(name, models[name], outputs, abstract[name], source, mesh)
    return Taught(source, seen_from(workdir, wanted.folder), teachers, view, B, batch_of, views)


def _outputs_of(
    name: str, reference: Reference, augment: tuple[Any, ...], top: int | None
) -> Callable[..., dict[str, jax.Array]]:
    """(variables, batch as the source gives it, key) -> what is kept of a model's outputs."""

    def outputs(variables: Any, batch: Any, key: jax.Array) -> dict[str, jax.Array]:
        batch = apply_transforms(augment, batch, key)
        batch = apply_transforms(reference.preprocess, batch, key, len(augment))
        found = reference.model.apply(variables, *reference.task.inputs(batch), train=False)
        return cached.kept(name, found, top, len(batch["mask"]))

    return outputs


def _teacher(
    name: str,
    model: ReadModel,
    outputs: Callable[..., Any],
    variables: Any,
    source: Any,
    mesh: Mesh,
) -> Teacher:
    """What fills the cache; variables: the model's abstract ones, with shardings."""
    batch = example_batch(source.features, rows=2)
    shapes = jax.eval_shape(outputs, variables, batch, jax.random.key(0))
    layout = jax.tree.map(lambda leaf: leaf.sharding, variables)

    def read() -> tuple[Any, str]:
        values = model.variables(variables)
        return values, params_fingerprint(values)

    return Teacher(
        name=name,
        program=model.config.program_fingerprint,
        outputs=jax.jit(outputs, in_shardings=(layout, sharding.batch_sharding(mesh), None)),
        shapes={k: jax.ShapeDtypeStruct(s.shape[1:], s.dtype) for k, s in shapes.items()},
        variables=read,
    )
