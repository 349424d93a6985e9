"""Train steps that one start leaves for the next: the same bits, and never where something has changed."""

import dataclasses
import os
import sys
import threading
import types
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh

from bigjax.build import kept, program
from bigjax.core import compilers
from bigjax.loop.train import train
from tests.small import small


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setattr(compilers, "KEPT_STEPS", tmp_path / "steps")
    return tmp_path / "steps"


class Counted:
    """A jitted step that counts how often it is lowered; each instance stands for a process."""

    def __init__(self, step):
        self._step, self.lowered, self.options = step, 0, None
        self.jitted = jax.jit(lambda *arguments: step(*arguments), donate_argnums=0)

    def lower(self, *arguments):
        self.lowered += 1
        return self.jitted.lower(*arguments)


def step(state, batch, frozen):
    error = batch @ state["kernel"] - frozen["target"]
    gradient = jax.grad(lambda kernel: jnp.sum((batch @ kernel - frozen["target"]) ** 2))
    return {"kernel": state["kernel"] - 0.1 * gradient(state["kernel"])}, {
        "loss": (jnp.sum(error**2), jnp.float32(4))
    }


def start(step=step, key="one", rows=4):
    """(how often the step was lowered, its results) of one start."""
    counted = Counted(step)
    whole = kept.KeptStep(counted, key, None, jax.devices()[:1])
    batch = jnp.arange(3.0 * rows).reshape(rows, 3) / 7
    state = {"kernel": jnp.ones((3, 2))}
    for _ in range(2):  # the second by what the first has loaded
        state, metrics = whole(state, batch, {"target": jnp.full((rows, 2), 0.3)})
    return counted.lowered, jax.tree.map(np.asarray, (state, metrics))


def same(one, other):
    jax.tree.map(np.testing.assert_array_equal, one, other)


def test_a_second_start_lowers_nothing_and_gives_the_same_bits(folder):
    first, second = start(), start()
    assert (first[0], second[0]) == (1, 0)
    same(first[1], second[1])
    batch, kernel = np.arange(12.0).reshape(4, 3) / 7, np.ones((3, 2))
    for _ in range(2):  # by hand, in float64
        error = batch @ kernel - 0.3
        kernel = kernel - 0.2 * batch.T @ error
    np.testing.assert_allclose(second[1][0]["kernel"], kernel, rtol=1e-5)
    np.testing.assert_allclose(second[1][1]["loss"][0], np.sum(error**2), rtol=1e-5)


def test_what_a_step_follows_from_is_asked_for(folder, monkeypatch):
    assert start()[0] == 1
    assert start(key="another")[0] == 1
    assert start(rows=5)[0] == 1
    assert start()[0] == 0
    monkeypatch.setenv("XLA_FLAGS", os.environ["XLA_FLAGS"] + " ")
    assert start()[0] == 1
    monkeypatch.setenv("XLA_FLAGS", os.environ["XLA_FLAGS"].strip())
    jax.config.update("jax_default_matmul_precision", "float32")
    try:
        assert start()[0] == 1
    finally:
        jax.config.update("jax_default_matmul_precision", None)
    assert start()[0] == 0


@pytest.mark.parametrize("change", ["edited", "gone", "another one is loaded"])
def test_a_changed_module_is_noticed(folder, tmp_path, monkeypatch, change):
    def load(name):
        file = tmp_path / f"{name}.py"
        file.write_text("RATE = 0.1\n")
        module = types.ModuleType(name)
        module.__file__ = str(file)
        monkeypatch.setitem(sys.modules, name, module)
        return file

    file = load("users_model")
    assert [start()[0], start()[0]] == [1, 0]
    if change == "edited":
        file.write_text("RATE = 0.2\n")
        os.utime(file, ns=(1, 1))
    elif change == "gone":
        file.unlink()
    else:
        load("users_other_model")
    assert [start()[0], start()[0]] == [1, 0]


def test_the_text_decides_not_the_key_alone(folder, tmp_path, monkeypatch):
    """An edited module whose step has the same text compiles nothing; another text is another step."""
    first = start()
    for known in folder.glob("*.json"):
        known.unlink()
    (binary,) = folder.glob("*.step")
    before = binary.read_bytes()
    assert start()[0] == 1
    assert [*folder.glob("*.step")] == [binary]
    assert binary.read_bytes() == before
    for known in folder.glob("*.json"):
        known.unlink()
    half = lambda *arguments: jax.tree.map(lambda leaf: leaf / 2, step(*arguments))  # noqa: E731
    other = start(half)
    assert other[0] == 1
    assert len([*folder.glob("*.step")]) == 2
    assert other[1][1]["loss"][1] == first[1][1]["loss"][1] / 2


@pytest.mark.parametrize("damage", ["flipped", "empty"])
def test_a_damaged_file_is_compiled_again(folder, damage):
    first = start()
    (file,) = folder.glob("*.step")
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes({"flipped": content, "empty": b""}[damage])
    second, third = start(), start()
    assert (second[0], third[0]) == (1, 0)
    same(first[1], second[1])
    same(first[1], third[1])


def test_a_step_that_calls_python_is_not_kept(folder):
    def calling(state, batch, frozen):
        loss = jax.pure_callback(
            lambda x: np.float32(x.sum()), jax.ShapeDtypeStruct((), np.float32), batch
        )
        return {"kernel": state["kernel"] + loss}, {"loss": (loss, loss)}

    assert [start(calling)[0], start(calling)[0]] == [1, 1]
    assert not [*folder.glob("*")]


def test_what_jaxs_own_cache_held_can_be_kept_too(folder):
    """A program out of that cache, written again, would not run (seen with jaxlib 0.10.2)."""
    assert jax.config.jax_compilation_cache_dir  # by conftest.py
    asked = jax.config.jax_persistent_cache_min_compile_time_secs
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    try:
        plain = Counted(step).jitted
        batch, state = jnp.arange(12.0).reshape(4, 3) / 7, {"kernel": jnp.ones((3, 2))}
        plain(state, batch, {"target": jnp.full((4, 2), 0.3)})
        first, second = start(), start()
    finally:
        jax.config.update("jax_persistent_cache_min_compile_time_secs", asked)
    assert (first[0], second[0]) == (1, 0)
    same(first[1], second[1])
    assert jax.config.jax_enable_compilation_cache


def test_a_folder_that_cannot_be_written_keeps_nothing(monkeypatch):
    monkeypatch.setattr(compilers, "KEPT_STEPS", Path("/proc/nowhere"))
    assert [start()[0], start()[0]] == [1, 1]


def test_the_least_used_goes_first(folder, monkeypatch):
    start()
    start(rows=5)
    start()  # used again
    monkeypatch.setattr(kept, "MOST_BYTES", sum(f.stat().st_size for f in folder.iterdir()))
    start(rows=6)
    assert [start()[0], start(rows=6)[0], start(rows=5)[0]] == [0, 0, 1]


def test_a_process_holds_a_bounded_number_of_them(folder, monkeypatch):
    monkeypatch.setattr(kept, "MOST_LOADED", 1)
    kept._loaded.clear()
    steps = [kept.KeptStep(Counted(step), "one", None, jax.devices()[:1]) for _ in range(2)]
    for one in (*steps, steps[0]):
        one({"kernel": jnp.ones((3, 2))}, jnp.ones((4, 3)), {"target": jnp.ones((4, 2))})
        assert [*kept._loaded] == [one]
    assert steps[1]._compiled is None


def test_runs_on_eight_devices_are_what_they_are_without(tmp_path, folder, monkeypatch):
    config = small("mesh.fsdp=8", "train.steps=3", "log.tensorboard=False")
    with monkeypatch.context() as without:
        without.setattr(compilers, "KEPT_STEPS", None)
        program._PROGRAMS.clear()
        plain = train(config, tmp_path / "plain")
    results = []
    for name in ("first", "second"):
        program._PROGRAMS.clear()
        results.append(train(config, tmp_path / name)["fingerprint"])
        (built,) = program._PROGRAMS.values()
        assert isinstance(built.train_step, kept.KeptStep)
    program._PROGRAMS.clear()
    assert results == [plain["fingerprint"]] * 2
    assert [path.suffix for path in sorted(folder.iterdir())].count(".step") == 1


def ahead():
    """A kept step that has begun to load for some arguments, and those."""
    one = kept.KeptStep(Counted(step), "one", None, jax.devices()[:1])
    arguments = {"kernel": jnp.ones((3, 2))}, jnp.ones((4, 3)), {"target": jnp.ones((4, 2))}
    as_told = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding), arguments
    )
    one.load_ahead(as_told)
    return one, arguments


def counted_loads(monkeypatch):
    """The names of the threads that loaded a step from here on."""
    threads, load = [], kept.KeptStep._load

    def counting(self, *arguments):
        threads.append(threading.current_thread().name)
        return load(self, *arguments)

    monkeypatch.setattr(kept.KeptStep, "_load", counting)
    return threads


def test_what_was_loaded_ahead_is_taken_and_loaded_once(folder, monkeypatch):
    expected = start()[1]
    threads = counted_loads(monkeypatch)
    one, _ = ahead()
    batch, state = jnp.arange(12.0).reshape(4, 3) / 7, {"kernel": jnp.ones((3, 2))}
    for _ in range(2):
        state, metrics = one(state, batch, {"target": jnp.full((4, 2), 0.3)})
    same(expected, jax.tree.map(np.asarray, (state, metrics)))
    assert one._jitted.lowered == 0
    assert [name.partition("_")[0] for name in threads] == ["kept step"]


def test_nothing_loaded_ahead_is_taken_once_a_module_has_changed(folder, tmp_path, monkeypatch):
    module = types.ModuleType("of_a_user")
    module.__file__ = str(tmp_path / "of_a_user.py")
    (tmp_path / "of_a_user.py").write_text("a = 1")
    monkeypatch.setitem(sys.modules, "of_a_user", module)
    start()
    one, arguments = ahead()
    one._ahead.result()
    (tmp_path / "of_a_user.py").write_text("a = 1000")
    one(*arguments)
    assert one._jitted.lowered == 1


def test_arguments_of_other_kinds_than_told_get_their_own_step(folder):
    start(rows=4)
    one, (state, *_) = ahead()
    found, _ = one(state, jnp.ones((5, 3)), {"target": jnp.ones((5, 2))})
    assert one._jitted.lowered == 1
    np.testing.assert_allclose(found["kernel"], 1 - 0.2 * 5 * 2 * np.ones((3, 2)), rtol=1e-5)


def test_a_damaged_step_loaded_ahead_is_compiled_again(folder):
    start()
    (path,) = folder.glob("*.step")
    path.write_bytes(path.read_bytes()[:-7])
    one, arguments = ahead()
    one(*arguments)
    assert one._jitted.lowered == 1


def test_a_module_of_python_itself_that_comes_by_chance_changes_nothing(folder, monkeypatch):
    start()
    monkeypatch.delitem(sys.modules, "this", raising=False)
    late = types.ModuleType("this")
    late.__file__ = os.__file__.replace("os.py", "this.py")
    monkeypatch.setitem(sys.modules, "this", late)
    assert start()[0] == 0


def test_a_runs_second_start_loads_its_step_ahead(tmp_path, folder, monkeypatch):
    # One process stands for two: what the first run's end imports is loaded when the second begins.
    monkeypatch.setattr(kept, "_modules", lambda: {__file__})
    config = small("train.steps=3", "log.tensorboard=False")
    fingerprints = []
    for name in ("first", "second"):
        program._PROGRAMS.clear()
        threads = counted_loads(monkeypatch)
        fingerprints.append(train(config, tmp_path / name)["fingerprint"])
    program._PROGRAMS.clear()
    assert [name.partition("_")[0] for name in threads] == ["kept step"]
    assert fingerprints[0] == fingerprints[1]


class Doubled:
    """A user's own transform."""

    def __call__(self, example, key):
        return {**example, "image": example["image"] * 2}


@pytest.mark.parametrize("whose", ["bigjax.data.transforms", "tests.test_kept"])
def test_a_users_own_code_is_traced_at_each_start(folder, whose):
    name = "Doubled" if whose.startswith("tests") else "Flatten"
    config = small()
    values = {**config.values, "data": {"preprocess": [{"type": f"{whose}:{name}"}]}}
    program = dataclasses.make_dataclass("P", ["mesh", "train_step", "options"])(
        Mesh(np.array(jax.devices()[:1]), ("data",)), step, None
    )
    kept_one = kept.keeping(program, ("key",), [config, dataclasses.replace(config, values=values)])
    assert isinstance(kept_one.train_step, kept.KeptStep) == whose.startswith("bigjax")
