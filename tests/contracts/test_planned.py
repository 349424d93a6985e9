"""What a plan compiles is what a run compiles, of every method, adapter and axis: equal StableHLO.

A run's program is lowered from its state, its first batch and the models that it reads, a plan's from the
config alone, by the lines that `plan` runs in its process. Neither is compiled.
"""

import argparse
import contextlib
import hashlib

import jax
import pytest

from bigjax.build.assemble import assemble
from bigjax.loop.record import train_batches
from bigjax.plan import topology, worker
from bigjax.verbs.inspect import references
from tests.contracts.runs import TINY, config_of, folder_of

EVERY_METHOD = [
    n if n in ("supervised", "ppo") else pytest.param(n, marks=pytest.mark.slow) for n in TINY
]


@pytest.mark.parametrize("name", EVERY_METHOD)
def test_the_program_is_the_one_that_a_run_compiles(name, monkeypatch):
    config, workdir = config_of(name), folder_of(name) / "setup"
    setup = assemble(config, workdir)
    state, frozen = setup.start()
    with contextlib.closing(train_batches(setup, workdir, 0)) as batches:
        real = setup.program.train_step.lower(state, next(batches), frozen).as_text()
    refusal = "Used 1G of 1G hbm"  # nothing is compiled
    monkeypatch.setattr("bigjax.plan.answer.compile_or_refusal", lambda *_: (None, refusal))
    monkeypatch.setattr("bigjax.build.program._PROGRAMS", {})  # the plan builds its own
    case = worker.Case(config, *references(config, {}, argparse.Namespace(workdir=workdir)))
    found = worker.answer_or_refusal(case, topology.parsed("cpu:8"), jax.devices(), None)
    assert found.get("refused") is None and found["remarks"] == []
    assert found["program"] == hashlib.sha256(real.encode()).hexdigest()
