"""Every reader of other people's files, fed malformed ones: one line or right, never a traceback."""

import hypothesis
import pytest

from scripts.fault_injection.readers import EDITS, READERS, edited, problem


def fuzzed(kind, folder, times):
    reader = READERS[kind]
    reader.good(folder)
    good = (folder / reader.name).read_bytes()
    assert problem(reader, folder, good) is None

    @hypothesis.settings(
        max_examples=times,
        database=None,
        deadline=None,
        derandomize=True,
        suppress_health_check=list(hypothesis.HealthCheck),
    )
    @hypothesis.given(EDITS)
    def run(edits):
        assert problem(reader, folder, edited(good, edits)) is None

    run()


@pytest.mark.parametrize("kind", READERS)
def test_a_malformed_file_is_told_in_one_line_or_read_rightly(kind, tmp_path):
    fuzzed(kind, tmp_path, times=60)


@pytest.mark.slow
@pytest.mark.parametrize("kind", READERS)
def test_twenty_thousand_malformed_files(kind, tmp_path):
    fuzzed(kind, tmp_path, times=20_000)


def test_the_fuzzer_finds_a_reader_that_raises(tmp_path):
    from scripts.fault_injection.readers import text

    reader = text(
        "a.json", {"a": 1}, lambda f: __import__("json").loads((f / "a.json").read_text())
    )
    reader.good(tmp_path)
    assert "JSONDecodeError" in problem(reader, tmp_path, b"{")
