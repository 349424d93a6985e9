"""The doctor: it finds what is planted, is silent otherwise, and knows every family."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest

from bigjax.config.names import NAMES
from bigjax.core import compilers
from bigjax.core.errors import UserError
from bigjax.doctor import answers, families, finding, machine, short, versions
from bigjax.doctor.__main__ import main
from bigjax.loop.train import train
from bigjax.mesh import sharding
from tests.small import small

ROOT = Path(__file__).resolve().parent.parent


def statuses(check):
    return {found.check: found.status for found in check()}


@pytest.mark.parametrize("name", answers.ANSWERS)
def test_known_answers_are_right_here(name):
    assert answers.check_answer(name).status == "ok"


def test_a_wrong_answer_is_wrong(monkeypatch):
    ours, theirs, shapes = answers.ANSWERS["softmax"]
    planted = (lambda x: ours(x).at[3, 5].multiply(1.01), theirs, shapes)
    monkeypatch.setitem(answers.ANSWERS, "softmax", planted)
    assert answers.check_answer("softmax").status == "wrong"


def test_random_streams_are_those_of_the_tested_versions(monkeypatch):
    assert statuses(answers.random_streams) == {"random streams": "ok"}
    monkeypatch.setattr(answers, "DRAWS", "0" * 64)
    assert statuses(answers.random_streams) == {"random streams": "wrong"}


def test_every_family_is_examined():
    assert families.FAMILIES.keys() == NAMES["model"].keys()


def test_a_wrong_gradient_is_wrong(monkeypatch):
    assert families.check_gradient("mlp").status == "ok"

    def planted(self, params, *inputs):
        gradient = jax.tree.map(lambda g: g, self.right(params, *inputs))
        narrow = gradient["head"]["kernel"].dtype == np.float32
        gradient["head"]["kernel"] *= 1.01 if narrow else 1.0
        return gradient

    monkeypatch.setattr(families.Tiny, "right", families.Tiny.gradient, raising=False)
    monkeypatch.setattr(families.Tiny, "gradient", planted)
    found = families.check_gradient("mlp")
    assert found.status == "wrong" and "head/kernel" in found.detail


def test_splitting_over_eight_devices_is_right_and_without_the_gathering_it_is_not(monkeypatch):
    """XLA's own partitioning, jaxlib 0.10.2 to 0.12.0.1, is wrong over three axes at this batch size."""
    monkeypatch.setattr(families, "SPLIT", ("mlp",))
    found = statuses(families.split_steps)
    assert len(found) == 5 and set(found.values()) == {"ok"}
    monkeypatch.setattr(sharding, "gathering", lambda mesh, placed: lambda params: params)
    found = statuses(families.split_steps)
    assert found.pop("mlp over data 2 x fsdp 2 x tensor 2") == "wrong"
    assert set(found.values()) == {"ok"}


def test_the_first_seeded_fault_is_found_without_its_remedy(tmp_path):
    if not compilers.remedies():
        pytest.skip("this jaxlib needs no remedy")
    code = (
        "import bigjax, sys; from bigjax.doctor import short; from pathlib import Path; import json;"
        "print(json.dumps(short.verdict(Path(sys.argv[1]))))"
    )
    flags = compilers.remedies()[0].replace("-reduce", "+reduce")
    found = {}
    for given in ("", flags):
        done = subprocess.run(
            [sys.executable, "-c", code, tmp_path],
            cwd=ROOT, env={**os.environ, "XLA_FLAGS": given}, capture_output=True, check=True,
        )  # fmt: skip
        found[given] = json.loads(done.stdout)
    assert found[""]["ok"] and not found[flags]["ok"]
    assert "jaxlib 0.10.2" in found[flags]["said"] and "sums of 40,000" in found[flags]["said"]


def test_a_verdict_is_reached_once_per_environment(tmp_path, monkeypatch):
    first = short.verdict(tmp_path)
    assert first["ok"] and [path.suffix for path in tmp_path.iterdir()] == [".json"]
    monkeypatch.setattr(finding, "run", None)  # looking again would fail
    start = time.monotonic()
    assert short.verdict(tmp_path) == first and time.monotonic() - start < 0.5
    monkeypatch.setenv("XLA_FLAGS", "--another")
    with pytest.raises(TypeError):
        short.verdict(tmp_path)


def test_a_run_is_refused_where_numbers_are_wrong_and_keeps_the_verdict(tmp_path, monkeypatch):
    monkeypatch.setattr(answers, "TOLERANCE", 0.0)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    with pytest.raises(UserError, match=r"cannot be trusted: .*product 257"):
        train(small(), tmp_path / "run")
    monkeypatch.undo()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "other"))
    train(small("train.steps=2"), tmp_path / "run")
    assert json.loads((tmp_path / "run" / "manifest.json").read_text())["doctor"]["ok"] is True


def test_known_bad_versions_are_told_with_their_remedy(monkeypatch):
    monkeypatch.setattr(versions.metadata, "version", lambda name: "0.10.2")
    monkeypatch.setenv("XLA_FLAGS", "")
    found = list(versions.known_faults())
    assert [one.status for one in found] == ["ok", "wrong", "ok"]
    assert "39103" in found[1].detail and "XLA_FLAGS" in found[1].remedy
    monkeypatch.setattr(versions.metadata, "version", lambda name: "0.11.0")
    assert [one.status for one in versions.known_faults()] == ["note"]


def test_the_machine_is_looked_at(tmp_path, monkeypatch):
    for check in (machine.huge_pages, machine.compilation_cache, machine.memory, machine.clock):
        assert all(found.status in ("ok", "note") for found in check())
    (found,) = machine.disk(tmp_path)
    assert "MiB/s" in found.detail and not list(tmp_path.iterdir())
    now = time.time()
    monkeypatch.setattr(machine.time, "time", lambda: now - 10 * 365 * 86400)
    assert statuses(machine.clock) == {"clock": "wrong"}


def test_a_check_that_raises_is_a_finding_and_ends_no_other():
    def broken():
        raise RuntimeError("first line\nsecond")
        yield

    found = list(finding.run([broken, answers.random_streams]))
    assert [(one.check, one.status) for one in found] == [
        ("broken", "wrong"), ("random streams", "ok")]  # fmt: skip
    assert "first line" in found[0].detail and "second" not in found[0].detail


def test_the_table_and_the_exit_code(monkeypatch, capsys, tmp_path):
    for module, name in ((answers, "known_answers"), (families, "gradients"),
                         (families, "split_steps"), (families, "determinism")):  # fmt: skip
        monkeypatch.setattr(module, name, answers.random_streams)
    assert main([f"--folder={tmp_path}"]) == 0
    assert "nothing is wrong" in capsys.readouterr().out
    monkeypatch.setattr(answers, "DRAWS", "0" * 64)
    assert main([f"--folder={tmp_path}", "--json"]) == 1
    shown = json.loads(capsys.readouterr().out)
    assert (
        not shown["ok"] and {"check", "status", "detail", "remedy"} == shown["findings"][0].keys()
    )
