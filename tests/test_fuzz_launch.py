"""Any value of any key or flag: exit code 0 or 2, one line, no traceback, and nothing left behind."""

import os
import shutil

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bigjax.config import resolve as configs
from bigjax.verbs import launch
from tests.small import small_config

KEYS = sorted(configs.flatten(configs.resolve(small_config()).values))
SECTIONS = sorted({key.rpartition(".")[0] for key in KEYS} - {""})
FLAGS = "workdir split stage input output allow_changed from steps format family simulate_devices"
WORDS = "none None True 0 1 -1 -4 2.5 1e999 nan inf 1e300 '' () (1,) (1,'a') {} {'type':'x'} [[]] ~ / ../x end never"
WORDS += " mlp tfds digits os:system {1} b'x' 1j '\\x00' '\\ud800' lambda ((((( 1_000 0x10 -inf {'a':{'b':1}}"
values = st.one_of(
    st.sampled_from(WORDS.split()),
    st.integers(-(10**20), 10**20).map(str),
    st.floats().map(repr),
    st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=6),
)
misspelt = st.sampled_from(KEYS).flatmap(
    lambda key: st.integers(0, len(key) - 1).map(lambda i: key[:i] + key[i + 1 :])
)
overrides = st.builds(
    "--config.{}={}".format, st.sampled_from([*KEYS, *SECTIONS]) | misspelt, values
)
flags = st.builds("--{}={}".format, st.sampled_from(FLAGS.split()), values)
# `config` resolves all; the others look at a folder that holds no run.
verbs = st.sampled_from(
    ["config", "config", "evaluate", "predict", "replay", "checkpoints", "trian"]
)
lines = st.tuples(verbs, st.lists(overrides | flags, min_size=1, max_size=3))


# Small enough to be tried out: what resolves is trained for a step.
small_values = st.one_of(
    st.sampled_from(
        [
            "none",
            "True",
            "0",
            "1",
            "-1",
            "-4",
            "2.5",
            "1e-3",
            "''",
            "()",
            "(1,)",
            "(1,'a')",
            "{}",
            "{'type':'x'}",
            "end",
            "never",
        ]
    ),
    st.integers(-3, 64).map(str),
    st.floats(-2, 2).map(repr),
)
small_overrides = st.builds("--config.{}={}".format, st.sampled_from(KEYS), small_values)
trainings = st.tuples(
    st.just("train"), st.lists(small_overrides | st.just("--fresh"), min_size=1, max_size=2)
)


def check(line, folder, capsys):
    verb, arguments = line
    for left in folder.iterdir():  # by a case that failed
        shutil.rmtree(left)
    if verb == "train":
        arguments = ["--workdir=run", "--config.train.steps=1", *arguments]
    code = launch.execute("experiments.small", small_config, [verb, *arguments])
    err = capsys.readouterr().err
    halted = code == 1 and "config.check" in err  # numbers that went wrong, as a run may
    assert code in (0, 2) or halted, (line, err)
    if code == 2:
        errors = [text for text in err.splitlines() if text.startswith("error: ")]
        assert len(errors) == 1 and "Traceback" not in err, (line, err)
    left = [path.name for path in folder.iterdir()]
    assert left == (["run"] if verb == "train" and code != 2 else []), (line, err)


def fuzz(count, lines=lines):
    def test(tmp_path, monkeypatch, capsys):
        work, home = tmp_path / "work", tmp_path / "home"  # data and programs are kept at home
        for folder in (work, home):
            folder.mkdir()
        monkeypatch.chdir(work)
        monkeypatch.setenv("HOME", str(home))
        monkeypatch.setenv("XLA_FLAGS", os.environ.get("XLA_FLAGS", ""))

        @settings(
            max_examples=count, deadline=None, database=None, derandomize=count < 1000,
            suppress_health_check=list(HealthCheck),
        )  # fmt: skip
        @given(lines)
        def one(line):
            check(line, work, capsys)

        one()

    return test


test_some_command_lines = fuzz(200)
test_many_command_lines = pytest.mark.slow(fuzz(2500))
test_some_trainings = fuzz(8, trainings)
test_many_trainings = pytest.mark.slow(fuzz(200, trainings))
