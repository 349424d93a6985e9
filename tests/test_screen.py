"""The screen as golden text: at 60, 80 and 200 columns, in a file, and in a notebook."""

import io
import logging
import re
import sys

import pytest

from bigjax.run import screen as screens
from bigjax.run.screen import LogLines, Screen, fit, progress, wrap
from bigjax.run.writers import Writers

TRAINING = {
    "train/loss": 0.71828,
    "train/accuracy": 0.8169,
    "train/grad_norm": 1.41421,
    "train/learning_rate": 0.001,
}
EVALUATION = {
    "eval/test/loss": 0.5772156,
    "eval/test/accuracy": 0.81690,
    "eval/test/errors": 146.0,
    "eval/test/f1_macro": 0.80141,
    "eval/test/confusion_matrix": [[1, 0], [0, 1]],
}


class Terminal(io.StringIO):
    def isatty(self):
        return True


# ipykernel's stream is no terminal either, and overwrites what a "\r" goes back to.
Notebook = type("OutStream", (io.StringIO,), {"__module__": "ipykernel.iostream"})


class Clock:
    now = 1000.0

    def monotonic(self):
        return self.now


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(screens, "time", clock)
    return clock


@pytest.fixture(params=[60, 80, 200])
def columns(request, monkeypatch):
    monkeypatch.setenv("COLUMNS", str(request.param))
    return request.param


def seen(text, columns=10**9):
    """The lines that stand on a terminal after `text`; fails if one has reached its last column."""
    lines, row, column = [""], 0, 0
    for token in re.findall(r"\x1b\[\d*[AJ]|[\r\n]|[^\x1b\r\n]+", text):
        if token == "\n":
            row, column = row + 1, 0
            lines += [""] * (row == len(lines))
        elif token == "\r":
            column = 0
        elif token == "\x1b[J":
            lines[row:] = [lines[row][:column]]
        elif token.startswith("\x1b"):
            row -= int(token[2:-1])
            assert row >= 0
        else:
            line = lines[row].ljust(column)
            lines[row] = line[:column] + token + line[column + len(token) :]
            column += len(token)
            assert column < columns, token
    return [line.rstrip() for line in lines]


def train(stream, clock, workdir):
    """Eight steps a second for four seconds, a line every 10 steps, an evaluation of 4 batches."""
    writers = Writers(workdir, tensorboard=False, progress=True, total_steps=99_999, stream=stream)
    on = writers._screen
    with writers:
        for step in range(90_001, 90_031):
            clock.now += 1 / 8
            writers.step(step, {"loss": (100 - step % 10, 100)})
            if step % 10 == 0:
                writers.write(step, TRAINING)
        with progress("evaluation", 4, unit="batches", on=on) as bar:
            for _ in range(4):
                clock.now += 0.5
                bar.advance()
        writers.write(step, EVALUATION)
        clock.now += 1 / 8
        writers.step(step + 1, {"loss": (50, 100)})


TERMINAL = {
    60: [
        "step 90030/99999  eval/test/loss 0.5772",
        "  eval/test/accuracy 0.8169  eval/test/errors 146",
        "  eval/test/f1_macro 0.8014",
        "step 90031/99999  mean loss 0.5  20m46s left  8 steps/s now",
    ],
    80: [
        "step 90030/99999  eval/test/loss 0.5772  eval/test/accuracy 0.8169",
        "  eval/test/errors 146  eval/test/f1_macro 0.8014",
        "step 90031/99999  [=========  ]  mean loss 0.5  20m46s left  8 steps/s now",
    ],
    200: [
        "step 90030/99999  eval/test/loss 0.5772  eval/test/accuracy 0.8169  eval/test/errors 146"
        "  eval/test/f1_macro 0.8014",
        "step 90031/99999  [===========================    ]  mean loss 0.5  20m46s left"
        "  8 steps/s now  accuracy 0.8169  grad_norm 1.414  learning_rate 0.001",
    ],
}


def test_terminal(clock, columns, tmp_path):
    stream = Terminal()
    train(stream, clock, tmp_path)
    assert seen(stream.getvalue(), columns) == [*TERMINAL[columns], ""]


def test_bar_of_a_terminal_is_redrawn_by_time_not_by_log_lines(clock, tmp_path, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    stream = Terminal()
    with progress("step", 100, on=Screen(stream)) as bar:
        for _ in range(100):
            clock.now += 1 / 16
            bar.advance(1, loss=0.5)
    drawn = [line.split("  ")[0] for line in stream.getvalue().split("\r")]
    assert drawn[:4] == ["step 0/100", "step 1/100", "step 5/100", "step 9/100"]
    assert len(drawn) < 30 and seen(stream.getvalue()) == [""]  # nothing is left of it


def test_file_has_clean_whole_lines(clock, tmp_path):
    stream = io.StringIO()
    train(stream, clock, tmp_path)
    assert stream.getvalue().splitlines() == [
        "step 90010/99999  mean loss 0.955  20m49s left  8 steps/s now  accuracy 0.8169"
        "  grad_norm 1.414  learning_rate 0.001",
        "step 90020/99999  mean loss 0.955  20m47s left  8 steps/s now  accuracy 0.8169"
        "  grad_norm 1.414  learning_rate 0.001",
        "step 90030/99999  mean loss 0.955  20m46s left  8 steps/s now  accuracy 0.8169"
        "  grad_norm 1.414  learning_rate 0.001",
        "step 90030/99999  eval/test/loss 0.5772  eval/test/accuracy 0.8169  eval/test/errors 146"
        "  eval/test/f1_macro 0.8014",
    ]


def test_file_hears_of_what_takes_long_every_half_minute(clock):
    stream = io.StringIO()
    with progress("evaluation", 300, unit="batches", on=Screen(stream)) as bar:
        for _ in range(100):
            clock.now += 0.7
            bar.advance()
    assert stream.getvalue().splitlines() == [
        "evaluation 43/300  3m00s left  1.43 batches/s now",
        "evaluation 86/300  2m30s left  1.43 batches/s now",
    ]


def test_notebook_rewrites_one_line_without_terminal_controls(clock, tmp_path):
    stream = Notebook()
    train(stream, clock, tmp_path)
    text = stream.getvalue()
    assert "\x1b" not in text and "\r" in text
    lines = seen(text)
    assert lines[0].startswith("step 90030/99999  eval/test/loss 0.5772  eval/test/accuracy 0.8169")
    assert lines[1].startswith("step 90031/99999  [=========  ]  mean loss 0.5  20m46s left")


def test_innermost_bar_is_shown_and_does_not_count_in_the_rate_of_the_outer(clock, monkeypatch):
    monkeypatch.setenv("COLUMNS", "60")
    stream = Terminal()
    on = Screen(stream)
    with progress("step", 10, on=on) as outer:
        for _ in range(5):
            clock.now += 1
            outer.advance()
        with progress("evaluation", 4, unit="batches", on=on) as inner:
            clock.now += 100
            inner.advance()
            assert seen(stream.getvalue())[0].startswith("evaluation 1/4")
        assert outer.fields() == ["step 5/10", "5s left", "1 steps/s now"]
        assert seen(stream.getvalue())[0].startswith("step 5/10")


@pytest.mark.parametrize(
    ("total", "unit", "count", "fields"),
    [
        (None, "documents", 1200, ["reading 2400", "1,200 documents/s now", "2s"]),
        (50_000_000, "bytes", 12_345_678, ["reading 24.7 MB/50 MB", "2s left", "12.3 MB/s now"]),
        (2, "files", 1, ["reading 2/2", "1 files/s now"]),
    ],
)
def test_fields_say_what_is_known(clock, total, unit, count, fields):
    with progress("reading", total, unit=unit, on=Screen(io.StringIO())) as bar:
        for _ in range(2):
            clock.now += 1
            bar.advance(count)
        assert bar.fields() == fields


def test_slow_things_are_counted_by_the_minute(clock):
    with progress("trials", 10, unit="trials", on=Screen(io.StringIO())) as bar:
        for _ in range(3):
            clock.now += 20
            bar.advance()
        assert bar.fields()[1:] == ["2m20s left", "3 trials/min now"]


def test_log_lines_stand_above_the_bar(clock, monkeypatch):
    stream = Terminal()
    monkeypatch.setattr(sys, "stderr", stream)
    monkeypatch.setenv("COLUMNS", "60")
    handler, log = LogLines(), logging.getLogger("test_screen")
    log.addHandler(handler)
    with progress("step", 10) as bar:
        log.warning("step 3: a spike")
        clock.now += 1
        bar.advance()
        assert seen(stream.getvalue(), 60)[0] == "step 3: a spike"
        assert seen(stream.getvalue(), 60)[1].startswith("step 1/10")
        log.warning(
            "runs/mine: mlp, 2,410 parameters; 1,000 examples; 400 steps of 32 (32 a device)"
        )
        assert seen(stream.getvalue(), 60)[1:3] == [
            "runs/mine: mlp, 2,410 parameters; 1,000 examples; 400 steps",
            "  of 32 (32 a device)",
        ]
    log.removeHandler(handler)


def test_a_process_that_must_not_speak_draws_nothing(clock, monkeypatch):
    monkeypatch.setattr(screens.log, "level", logging.WARNING)
    stream = Terminal()
    with progress("step", 10, on=Screen(stream)) as bar:
        clock.now += 1
        bar.advance()
    assert stream.getvalue() == ""


def test_several_live_lines_are_replaced_and_make_room_for_one_that_stays():
    stream = Terminal()
    on = Screen(stream)
    on.show(["trials 1/9", "  12s a", "  13s b"])
    on.say("failed: c")
    on.show(["trials 2/9", "  14s b"])
    on.show(["trials 3/9"])
    assert seen(stream.getvalue()) == ["failed: c", "trials 3/9"]


def test_fields_are_whole_or_not_there():
    fields = ["step 10/20", "accuracy 0.8169", "errors 146"]
    assert [fit(fields, width) for width in (9, 10, 26, 27, 39)] == [
        "",
        "step 10/20",
        "step 10/20",
        "step 10/20  accuracy 0.8169",
        "step 10/20  accuracy 0.8169  errors 146",
    ]
    assert wrap(fields, 26) == "step 10/20\n  accuracy 0.8169\n  errors 146"
    assert wrap(fields, 30) == "step 10/20  accuracy 0.8169\n  errors 146"
