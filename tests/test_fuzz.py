"""Every reader of other people's files, fed malformed ones: one line or right, never a traceback."""

import json
import random

import hypothesis
import pytest
from hypothesis import strategies as st

from bigjax.report import runs
from bigjax.report.page import write_report
from scripts.fault_injection.readers import (
    CONFIG,
    PIECES,
    READERS,
    RESULT,
    START,
    edited,
    malformed,
    problem,
    text,
)

EDITS = st.lists(
    st.tuples(
        st.floats(0, 1),
        st.integers(0, 12),
        st.one_of(st.sampled_from(PIECES), st.binary(max_size=6)),
    ),
    min_size=1,
    max_size=4,
)


@pytest.mark.parametrize("kind", READERS)
def test_a_malformed_file_is_told_in_one_line_or_read_rightly(kind, tmp_path):
    reader, chance = READERS[kind], random.Random(0)
    reader.good(tmp_path)
    good = (tmp_path / reader.name).read_bytes()
    assert problem(reader, tmp_path, good) is None
    for _ in range(100):  # of the 20,000 that `scripts/faults --kind=fuzz` tries
        content = malformed(good, reader.name, chance)
        assert problem(reader, tmp_path, content) is None, content

    @hypothesis.settings(
        max_examples=40,
        database=None,
        deadline=None,
        derandomize=True,
        suppress_health_check=list(hypothesis.HealthCheck),
    )
    @hypothesis.given(EDITS)
    def run(edits):
        assert problem(reader, tmp_path, edited(good, edits)) is None

    run()


def test_the_fuzzer_finds_a_reader_that_raises(tmp_path):
    reader = text("a.json", {"a": 1}, lambda f: json.loads((f / "a.json").read_text()))
    reader.good(tmp_path)
    assert "JSONDecodeError" in problem(reader, tmp_path, b"{")


@pytest.mark.parametrize("name", ["manifest.json", "result.json", "metrics.jsonl"])
def test_the_report_and_the_list_of_runs_are_made_of_damaged_files(name, tmp_path):
    chance = random.Random(1)
    good = {"config.json": CONFIG, "manifest.json": {"run": "0" * 16, **START, "resumes": []}}
    good = {key: json.dumps(value) for key, value in {**good, "result.json": RESULT}.items()}
    good["metrics.jsonl"] = '{"step": 1, "train/loss": 1.0, "eval/t/f1_per_class": [0.5, "NaN"]}\n'
    for key, said in good.items():
        (tmp_path / key).write_text(said)
    for _ in range(60):
        (tmp_path / name).write_bytes(malformed(good[name].encode(), name, chance))
        write_report(tmp_path)
        runs.text(runs.find(tmp_path))
