"""Every reader of other people's files, fed malformed ones: one line or right, never a traceback."""

import json
import random

import hypothesis
import pytest
from hypothesis import strategies as st

from scripts.fault_injection.readers import PIECES, READERS, edited, malformed, problem, text

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
