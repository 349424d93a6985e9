"""Outputs of other runs' models on the train split, written once and read in place of the models.

A cache lies in a folder named by all that its numbers follow from: the contents of the teacher, its
config, the data, the view (the transforms that the examples go through), what is kept of the outputs. Row i
of each file is example i. It is filled in order, before the first step; a fill that was broken off goes on
where it stopped.
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
from bigjax.build.parts import example_batch, fitted
from bigjax.build.program import read_references
from bigjax.build.weights import read_variables, reference_folders, seen_from
from bigjax.config.resolve import Config
from bigjax.config.values import canonical
from bigjax.core.errors import UserError
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


class Taught:
    """A source with the outputs of teachers among its columns, from a cache under `root`.

    prints: the teachers' fingerprints by name, once it is filled.

    Args:
      source: the train split.
      view: plain values, all that decides how an example looks to a teacher.
      rows: of a batch; batch: columns of B rows -> the batch, as a step is given it.
    """

    def __init__(
        self,
        source: Any,
        root: Path,
        teachers: Mapping[str, Teacher],
        view: Any,
        rows: int,
        batch: Callable[[Columns, np.ndarray, int], Any],
    ) -> None:
        self._source, self._root, self._teachers = source, root, teachers
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
        taught = {name: np.asarray(column[ids]) for name, column in self._columns.items()}
        return {**self._source.read(ids), **taught}

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
        done, total = self._done(folder, files, teacher), len(self)
        if done < total:
            log.info("%s: writing the outputs of %s from row %d on", folder, teacher.name, done)
            self._check_view(teacher, variables)
            columns = {
                name: _open(path, "r+")
                if done
                else _open(
                    path, "w+", (total, *teacher.shapes[name].shape), teacher.shapes[name].dtype
                )
                for name, path in files.items()
            }
            for first in range(done, total, self._rows):
                ids = np.minimum(np.arange(first, first + self._rows), total - 1)
                real = min(self._rows, total - first)
                for name, found in jax.device_get(self._outputs(teacher, variables, ids)).items():
                    columns[name][first : first + real] = found[:real]
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
                if (there.shape, there.dtype) != ((len(self), *one.shape), one.dtype):
                    return 0
        except (OSError, ValueError):
            return 0
        return rows if isinstance(rows, int) and 0 <= rows <= len(self) else 0

    def _outputs(self, teacher: Teacher, variables: Any, ids: np.ndarray, draw: int = 0) -> Any:
        batch = self._batch(self._source.read(ids), ids, draw)
        return teacher.outputs(variables, batch, jax.random.key(draw))

    def _check_view(self, teacher: Teacher, variables: Any) -> None:
        ids = np.minimum(np.arange(self._rows), len(self) - 1)
        first, second = (
            jax.device_get(self._outputs(teacher, variables, ids, draw)) for draw in (0, 1)
        )
        if any(not np.array_equal(first[name], second[name]) for name in first):
            raise UserError(
                "config.method.cache: what the teacher sees of an example is drawn anew each epoch "
                "(config.data.augment or preprocess): leave out the cache, or what is random"
            )


def _open(path: Path, mode: str, shape: Any = None, dtype: Any = None) -> np.ndarray:
    return np.lib.format.open_memmap(path, mode=mode, shape=shape, dtype=dtype)


def taught_source(
    config: Config,
    workdir: Path,
    source: Any,
    runs: Mapping[str, Config],
    mesh: Mesh,
    words: Mapping[str, Words],
) -> Taught:
    """The train split with the outputs of the runs that the method names, as its `cached` says.

    Raises:
      UserError: a run cannot read these examples; or there are several processes.
    """
    if jax.process_count() > 1:
        raise UserError("config.method.cache: is written and read by one process; leave it out")
    wanted, folders = config.make("method").cached, reference_folders(config, workdir)
    augment = fitted(config.make("data.augment"), source)
    abstract, _, references = read_references(config, runs, source, mesh, words)
    rows, B = sharding.batch_sharding(mesh), config.get("train.batch_size")

    def batch_of(columns: Columns, ids: np.ndarray, draw: int) -> Any:
        own = {"mask": np.ones(len(ids), np.float32), "sample": ids.astype(np.int32)}
        return {**columns, **own, "epoch": np.full(len(ids), draw, np.int32)}

    def teacher(name: str) -> Teacher:
        reference, variables = references[name], abstract[name]

        def outputs(variables: Any, batch: Any, key: jax.Array) -> dict[str, jax.Array]:
            batch = apply_transforms(augment, batch, key)
            batch = apply_transforms(reference.preprocess, batch, key, len(augment))
            found = reference.model.apply(variables, *reference.task.inputs(batch), train=False)
            return cached.kept(name, found, wanted.top)

        shapes = jax.eval_shape(
            outputs, variables, example_batch(source.features, rows=2), jax.random.key(0)
        )
        layout = jax.tree.map(lambda leaf: leaf.sharding, variables)

        def read() -> tuple[Any, str]:
            values = read_variables(folders[name], variables)
            return values, params_fingerprint(values)

        return Teacher(
            name=name,
            program=runs[name].program_fingerprint,
            outputs=jax.jit(outputs, in_shardings=(layout, rows, None)),
            shapes={k: jax.ShapeDtypeStruct(s.shape[1:], s.dtype) for k, s in shapes.items()},
            variables=read,
        )

    return Taught(
        source,
        seen_from(workdir, wanted.folder),
        {name: teacher(name) for name in runs},
        [config.get("data.augment"), words],
        B,
        batch_of,
    )
