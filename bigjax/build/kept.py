"""A run's train step, kept on disk from one start to the next: a second start neither traces nor compiles it.

JAX's own cache of compiled programs (`core.compilers.keep_compiled`) is asked by a program's text, which
tracing and lowering write first; for a small transformer they take longer than all else of a second start. Here
the text is asked for by what it follows from: what makes runs of one process share a program, the arguments'
shapes and layouts, JAX's settings, and every Python file that was loaded when the step was traced, but Python's
own. If one of these differs in size or date, or another one is loaded, the step is traced again; its text may
still be known. All this is known before the first state is made, and so the step can be loaded beside that. A run of a user's own classes is always traced. What is loaded are the very instructions that an earlier start ran.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import hashlib
import json
import logging
import os
import pickle
import sys
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
from jax.experimental import serialize_executable
from jax.experimental.compilation_cache import compilation_cache

from bigjax.build.parts import abstract_batch
from bigjax.config.config import Config
from bigjax.config.values import targets
from bigjax.core import compilers
from bigjax.run.code import versions

log = logging.getLogger("bigjax")

MOST_BYTES = 1 << 30  # of a folder; the least used go first
MOST_LOADED = 16  # in one process: each takes memory mappings (see `compilers.make_room`)
EVENT = "/bigjax/compile/kept_step"  # how long loading took, for the run's clock
SEEN = ("XLA_", "JAX_", "LIBTPU_", "NPROC")  # variables that compilers read

_loaded: collections.deque[KeptStep] = collections.deque()


def keeping(program: Any, key: tuple[Any, ...], configs: Iterable[Config]) -> Any:
    """The program with its train step kept, where programs are kept (`compilers.keep_compiled`) and it can be.

    Args:
      program: a `bigjax.build.program.Program`.
      key: what it follows from, beside code and versions: plain values and its mesh.
      configs: of the run and of those that it reads. One that names a class of the user's own is traced at
        each start: what such code reads while it is traced (a file, a variable, a cell of a notebook) nobody knows.
    """
    named = frozenset[str]().union(*(targets(config.values) for config in configs))
    if not all(target.startswith("bigjax.") for target in named):
        return program
    mesh = program.mesh
    on_cpu = mesh.devices.flat[0].platform == "cpu"  # elsewhere it has not been tried
    if compilers.KEPT_STEPS is None or not on_cpu or jax.process_count() > 1:
        return program
    plain = [(mesh.axis_names, mesh.devices.shape) if one is mesh else one for one in key]
    step = KeptStep(program.train_step, plain, program.options, list(mesh.devices.flat))
    return dataclasses.replace(program, train_step=step)


class KeptStep:
    """A jitted train step that comes from its file, if an earlier start left it there.

    Everything but the call is the jitted function's own.

    Args:
      jitted: `train_step(state, batch, frozen) -> (state, metrics)`; called with arguments of one kind.
      key: what it follows from, beside code and versions; of plain values.
      options: the compiler's.
      devices: what it runs on, in order.
    """

    def __init__(
        self, jitted: Any, key: Any, options: dict[str, str] | None, devices: list[jax.Device]
    ) -> None:
        self._jitted, self._key, self._options = jitted, key, options
        self._devices, self._folder = devices, compilers.KEPT_STEPS
        self._compiled: Any = None
        self._ahead: Future[tuple[str, Any] | None] | None = None

    def load_ahead(self, arguments: tuple[Any, ...]) -> None:
        """Begins to load, in a thread, what an earlier start left for arguments of these kinds.

        Loading runs without Python's lock, beside whatever comes before the first step. It decides nothing: the call
        asks as it would have asked, and takes what was loaded only if that is what it would load.

        arguments: the call's, or what says their shapes, dtypes and layouts.
        """
        if self._compiled is not None or self._ahead is not None:
            return
        # Not in the thread: JAX's settings are the calling thread's own.
        known = self._known(arguments, _environment(self._devices))

        def load() -> tuple[str, Any] | None:
            program = _program_of(known)
            return (program, self._load(program, arguments)) if program else None

        thread = ThreadPoolExecutor(1, "kept step")
        self._ahead = thread.submit(load)
        thread.shutdown(wait=False)

    def __call__(self, *arguments: Any) -> Any:
        if self._compiled is None:
            with _timed():
                self._compiled = self._ready(arguments)
            _loaded.append(self)
            if len(_loaded) > MOST_LOADED:
                _loaded.popleft()._compiled = None
        return self._compiled(*arguments)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._jitted, name)

    def _ready(self, arguments: tuple[Any, ...]) -> Any:
        """The compiled step: loaded, or compiled and kept."""
        ahead, self._ahead = self._ahead, None
        # Waited for also where it will not serve: two copies at once are twice the memory.
        begun = ahead.result() if ahead else None
        environment = _environment(self._devices)
        known = self._known(arguments, environment)
        if program := _program_of(known):
            in_time = begun is not None and begun[0] == program
            if found := begun[1] if in_time else self._load(program, arguments):
                return found
        lowered = self._jitted.lower(*arguments)
        text = lowered.as_text()
        if "callback" in text:  # what it calls is a place in this process's memory
            return lowered.compile()
        program = _hash([text, environment, self._options])
        found = self._load(program, arguments)
        if found is None:
            found = _compile(lowered)
            self._keep(program, found)
        _write(known, json.dumps({"program": program, "files": _stamps(_modules())}).encode())
        return found

    def _known(self, arguments: tuple[Any, ...], environment: list[Any]) -> Path:
        """The file that says which step was traced from what this one follows from."""
        return self._folder / f"{_hash([self._key, environment, _kinds(arguments)])}.json"

    def _load(self, program: str, arguments: tuple[Any, ...]) -> Any:
        """The compiled step of this name, or None."""
        path = self._folder / f"{program}.step"
        try:
            digest, content = (whole := path.read_bytes())[:32], memoryview(whole)[32:]
            if hashlib.sha256(content).digest() != digest:
                return None
            payload, metrics = pickle.loads(content)
            found = serialize_executable.deserialize_and_load(
                payload,
                jax.tree.structure((arguments, {})),
                jax.tree.structure((arguments[0], metrics)),
                execution_devices=self._devices,
            )
            os.utime(path)
        except FileNotFoundError:
            return None
        except Exception as error:  # damaged, or of a JAX that says the same version of itself
            log.warning("%s cannot be loaded, and is compiled again: %s", path, error)
            return None
        return found

    def _keep(self, program: str, compiled: Any) -> None:
        """Writes a step that was compiled here; one that cannot be written is not kept."""
        try:
            payload, _, gives = serialize_executable.serialize(compiled)
        except (ValueError, NotImplementedError, jax.errors.JaxRuntimeError) as error:
            log.debug("the step is not kept: %s", error)
            return
        _, metrics = jax.tree.unflatten(gives, range(gives.num_leaves))
        content = pickle.dumps((payload, metrics))
        _write(self._folder / f"{program}.step", hashlib.sha256(content).digest() + content)
        _make_room(self._folder)


def load_ahead(program: Any, features: dict[str, Any], rows: int) -> None:
    """Begins to load a program's train step, if it is a kept one.

    Args:
      program: a `bigjax.build.program.Program`.
      features: of the source that its batches come from. rows: of a batch.
    """
    if not isinstance(program.train_step, KeptStep):
        return
    batch = abstract_batch(program.mesh, features, rows)
    program.train_step.load_ahead((program.state, batch, program.frozen))


def _program_of(known: Path) -> str | None:
    """The name of the step that was traced from what `known` is named after, if no file has changed."""
    try:
        found = json.loads(known.read_bytes())
        os.utime(known)
        files = found["files"]
        return found["program"] if _stamps({*files, *_modules()}) == files else None
    except (OSError, ValueError, KeyError):
        return None


def _modules() -> set[str]:
    """The files of all loaded modules, the user's own among them, but Python's: its version stands for them.

    Which of those are loaded is chance: JAX's cache brings `grp` when a small program took long to compile.
    """
    found = (
        getattr(module, "__file__", None)
        for name, module in list(sys.modules.items())
        if name.partition(".")[0] not in sys.stdlib_module_names or name == "__main__"
    )
    return {file for file in found if file}


def _stamps(files: Iterable[str]) -> dict[str, list[int] | None]:
    """File -> its size and date; None if it is not there."""
    found: dict[str, list[int] | None] = {}
    for file in sorted(files):
        try:
            about = os.stat(file)
            found[file] = [about.st_size, about.st_mtime_ns]
        except OSError:
            found[file] = None
    return found


def _environment(devices: list[jax.Device]) -> list[Any]:
    """What a program follows from beside its code: versions, JAX's settings, devices."""
    return [
        versions(),
        {name: value for name, value in os.environ.items() if name.startswith(SEEN)},
        {name: str(value) for name, value in jax.config.values.items()},
        [(device.platform, device.device_kind, device.id) for device in devices],
        len(jax.devices()),
    ]


def _kinds(arguments: Any) -> list[Any]:
    leaves, structure = jax.tree.flatten(arguments)
    kinds = [(leaf.shape, str(leaf.dtype), str(getattr(leaf, "sharding", None))) for leaf in leaves]
    return [str(structure), kinds]


def _hash(values: Any) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:32]


def _compile(lowered: Any) -> Any:
    """Compiled here and now: a program that came out of JAX's cache cannot be written again."""
    asked = jax.config.jax_enable_compilation_cache
    jax.config.update("jax_enable_compilation_cache", False)
    compilation_cache.reset_cache()  # else it remembers that it is used
    try:
        return lowered.compile()
    finally:
        jax.config.update("jax_enable_compilation_cache", asked)
        compilation_cache.reset_cache()


def _write(path: Path, content: bytes) -> None:
    """Whole or not at all, also beside other processes; a full disk keeps nothing."""
    own = path.with_suffix(f".{os.getpid()}")
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        own.write_bytes(content)
        own.replace(path)


def _make_room(folder: Path) -> None:
    """Deletes what was not used for longest, beyond `MOST_BYTES`."""
    with contextlib.suppress(OSError):  # another process makes room, too
        about = sorted(
            ((path.stat(), path) for path in folder.iterdir()), key=lambda one: -one[0].st_mtime
        )
        total = 0
        for stat, path in about:
            total += stat.st_size
            if total > MOST_BYTES:
                path.unlink(missing_ok=True)


@contextlib.contextmanager
def _timed() -> Iterator[None]:
    started = time.perf_counter()
    yield
    jax.monitoring.record_event_duration_secs(EVENT, time.perf_counter() - started)
