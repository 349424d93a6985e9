"""Compiles for devices that are not there, in processes of its own, so that the caller's JAX is left alone.

`run` is called by the caller, `main` is such a process: `python -m bigjax.plan.worker JOB ANSWERS`. JOB is
pickled by `run` itself; answers come back as JSON. Many cases are dealt out over as many processes as there
are cores.
"""

from __future__ import annotations

import contextlib
import gc
import json
import math
import pickle
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bigjax.build.classes import Words
from bigjax.config.resolve import Config
from bigjax.core.compilers import cores
from bigjax.core.errors import UserError, first_line
from bigjax.plan.show import rank
from bigjax.plan.topology import Topology, devices_of, environment


@dataclass(frozen=True)
class Case:
    """One config to compile.

    references: field of the method -> config of the model that it names.
    words: field of the method -> what the outputs of that model mean, where it is known.
    """

    config: Config
    references: dict[str, Config] = field(default_factory=dict)
    words: dict[str, Words] = field(default_factory=dict)


def run(
    topology: Topology,
    cases: Sequence[Case],
    *,
    price: float | None = None,
    seconds: float = math.inf,
    beat: float | None = None,
    check: Callable[[], None] = lambda: None,
) -> list[dict[str, Any] | None]:
    """What `bigjax.plan.answer` says of each case; {"refused": why} of one that is not possible.

    Args:
      seconds: no further case is begun after so many; None stands for those that were not.
      beat: of a step; what cannot be faster, nor than the fastest before it, is not compiled (see
        `bigjax.plan.answer.answer`). None: every case is.
      check: called while it waits; what it raises ends the processes too.

    Raises:
      UserError: the compiler is missing, knows no such topology, or dies.
    """
    count = min(len(cases), len(cores()))
    found: list[dict[str, Any] | None] = [None] * len(cases)
    with (
        tempfile.TemporaryDirectory(prefix="bigjax_plan_") as folder,
        contextlib.ExitStack() as running,
    ):
        crew = []
        for number in range(count):
            own = Path(folder, str(number))
            own.mkdir()
            job = (topology, list(cases[number::count]), price, seconds, beat)
            (own / "job").write_bytes(pickle.dumps(job))
            crew.append((own, running.enter_context(_started(own, environment(topology, own)))))
        while any(process.poll() is None for _, process in crew):
            check()
            time.sleep(0.1)
        for number, (own, process) in enumerate(crew):
            answers = _answers(own, process.returncode, topology)
            for case, answer in zip(range(number, len(cases), count), answers, strict=False):
                found[case] = answer
    return found


@contextlib.contextmanager
def _started(folder: Path, env: Mapping[str, str]) -> Iterator[subprocess.Popen]:
    """A process at the job of this folder, which does not outlive the context."""
    names = (str(folder / "job"), str(folder / "answers"))
    command = [sys.executable, "-m", "bigjax.plan.worker", *names]
    with (folder / "said").open("wb") as words:
        process = subprocess.Popen(command, env=env, stdout=subprocess.DEVNULL, stderr=words)
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def _answers(folder: Path, code: int, topology: Topology) -> list[dict[str, Any]]:
    """What a process has found.

    Raises:
      UserError: it has died, or says that no case is possible.
    """
    answers = folder / "answers"
    if not answers.exists():
        lines = (folder / "said").read_text(errors="replace").strip().splitlines()
        raise UserError(
            f"--topology={topology.name}: the compiler's process ended with code {code}: "
            f"{lines[-1][:300] if lines else 'without a word'}"
        )
    found = json.loads(answers.read_text())
    if isinstance(found, str):
        raise UserError(found)
    return found


def main(job: str, answers: str) -> None:
    topology, cases, price, seconds, beat = pickle.loads(Path(job).read_bytes())
    found: Any = []
    end = time.monotonic() + seconds
    gc.disable()  # tracing makes millions of objects that stay: collected between cases alone
    try:
        devices = devices_of(topology)
        for number, case in enumerate(cases):
            if time.monotonic() >= end:
                break
            if number:
                gc.collect()
            plan = answer_or_refusal(case, topology, devices, price, beat)
            found.append(plan)
            if beat is not None and (place := rank(plan)):
                beat = min(beat, place[0])
    except UserError as error:
        found = str(error)
    Path(answers).write_text(json.dumps(found))


def answer_or_refusal(
    case: Case,
    topology: Topology,
    devices: Sequence[Any],
    price: float | None,
    beat: float | None = None,
) -> dict[str, Any]:
    from bigjax.build.program import build_program
    from bigjax.core.layout import compiled_for
    from bigjax.mesh.sharding import make_mesh
    from bigjax.plan.answer import answer
    from bigjax.plan.shapes import train_split

    config, remarks = for_platform(case.config, topology.platform)
    references = {n: for_platform(c, topology.platform)[0] for n, c in case.references.items()}
    try:
        source, is_there = train_split(config)
        with compiled_for(topology.platform):
            mesh = make_mesh(config.section("mesh"), devices)
            program = build_program(config, source, references, mesh, case.words)
            found = answer(
                program,
                source.features,
                config.get("train.batch_size"),
                config.section("train").total_steps(len(source)),
                topology,
                narrow=config.get("precision.policy") != "float32",
                price=price,
                beat=beat,
            )
        return found | {"data_is_there": is_there, "remarks": remarks}
    except UserError as error:
        return {"refused": str(error)}
    except Exception as error:  # a model may raise anything, and the other cases want their answer
        return {"refused": f"{type(error).__name__}: {first_line(error)}"}


def for_platform(config: Config, platform: str) -> tuple[Config, list[str]]:
    """(the config as it can be compiled here, what is then not as in a run).

    JAX asks a cuDNN library and a GPU whether the fused attention is to be had; neither is here.
    """
    model, remarks = config.values["model"], []
    if config.make("method").cached:
        remarks.append(
            "not the program of a run in one point: the teacher is in the step, where a run reads its "
            "outputs from method.cache"
        )
    narrow = config.get("precision.policy") != "float32"
    if platform == "gpu" and narrow and model.get("attention") == "auto":
        remarks.append(
            "not the program of a run in one point: attention is XLA's, where a run takes cuDNN's fused "
            "kernel, which needs less memory and moves fewer bytes"
        )
        config = config.with_value("model.attention", "xla")
    return config, remarks


if __name__ == "__main__":
    main(*sys.argv[1:])
