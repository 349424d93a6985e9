"""What is seen while a sweep runs: never wider than the screen, and whole lines in a file."""

import io
import json
from types import SimpleNamespace

import pytest

from bigjax.run import screen as screens
from bigjax.sweep import progress
from bigjax.sweep.executors import Event
from bigjax.sweep.progress import Progress
from tests.test_screen import Clock, Terminal, seen

NAMES = [f"learning_rate=0.00{i},temperature=2,seed={i}-0123abcd" for i in range(12)]


def run(stream, clock, workdir):
    """12 trials of a minute, 3 at once, of which the fifth fails; the screen after the seventh."""
    trials = [SimpleNamespace(name=name, folder=lambda w, n=name: w / n) for name in NAMES]
    shown = Progress(trials, dict.fromkeys(NAMES, "missing"), workdir, stream)
    for i, name in enumerate(NAMES[:10]):
        (workdir / name).mkdir()
        line = {"step": 1000 + i, "train/loss": 0.9, "train_mean/loss": 0.123456}
        (workdir / name / "metrics.jsonl").write_text(json.dumps(line) + "\n")
        shown.note(Event(name, "started"))
        if i >= 3:
            clock.now += 20
            status = "failed" if i == 7 else "done"
            shown.note(Event(NAMES[i - 3], status, "out of memory" if i == 7 else ""))
        shown.show()
    return shown


FAILED = "failed: learning_rate=0.004,temperature=2,seed=4-0123abcd: out of memory"
LONG = [
    f"  {took:>7}  learning_rate=0.00{i},temperature=2,seed={i}-0123abcd  step 100{i}"
    for took, i in (("1m00s", 7), ("40s", 8), ("20s", 9))
]
SEEN = {
    60: [
        "trials 7/12  failed 1  1m40s left  3 trials/min now",
        "    1m00s  …0123abcd  step 1007  loss 0.1235",
        "      40s  …0123abcd  step 1008  loss 0.1235",
        "      20s  …0123abcd  step 1009  loss 0.1235",
    ],
    100: [
        "trials 7/12  [========      ]  failed 1  1m40s left  3 trials/min now",
        *(f"{line}  loss 0.1235" for line in LONG),
    ],
    200: [
        "trials 7/12  [==================             ]  failed 1  1m40s left  3 trials/min now",
        *(f"{line}  loss 0.1235" for line in LONG),
    ],
}


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(screens, "time", clock)
    monkeypatch.setattr(progress, "time", clock)
    return clock


@pytest.mark.parametrize("columns", SEEN)
def test_terminal_shows_a_bar_and_the_running_trials_below_it(
    clock, tmp_path, monkeypatch, columns
):
    monkeypatch.setenv("COLUMNS", str(columns))
    stream = Terminal()
    run(stream, clock, tmp_path)
    assert seen(stream.getvalue()) == [FAILED, *SEEN[columns]]
    assert all(len(line) < columns for line in SEEN[columns])


def test_file_has_a_line_for_each_trial_that_ends(clock, tmp_path):
    stream = io.StringIO()
    run(stream, clock, tmp_path)
    lines = stream.getvalue().splitlines()
    told = "trials 1/12  3m40s left  3 trials/min now"  # one in 20 s from the start
    assert lines[0] == f"{told}  done learning_rate=0.000,temperature=2,seed=0-0123abcd  20s"
    assert lines[4] == FAILED
    assert lines[5] == (
        "trials 5/12  failed 1  2m20s left  3 trials/min now"
        "  failed learning_rate=0.004,temperature=2,seed=4-0123abcd  1m20s"
    )
    assert len(lines) == 8
