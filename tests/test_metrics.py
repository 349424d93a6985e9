"""Pairs against hand computation; the promises of metrics.jsonl, TensorBoard and the terminal."""

import io
import json
import math
import os

import jax.numpy as jnp
import numpy as np
import pytest

from bigjax.run import files
from bigjax.run.text import cell, duration, table
from bigjax.run.writers import (
    Writers,
    finalize,
    read_metrics,
)


class Terminal(io.StringIO):
    def isatty(self):
        return True


def writers(workdir, **options):
    settings = {"tensorboard": False, "progress": False, "total_steps": 100} | options
    return Writers(workdir, **settings)


def lines_of(workdir):
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def test_pairs_divide_to_the_weighted_mean():
    pairs = {
        "loss": (jnp.array(7.0), jnp.array(4.0)),
        "hits": (jnp.array([4.0, 2.0]), jnp.full(2, 2)),
    }
    assert finalize(pairs) == {"loss": 1.75, "hits": [2.0, 1.0]}


def test_mean_of_nothing_is_nan_without_a_warning(recwarn):
    assert math.isnan(finalize({"loss": (np.float32(0), np.float32(0))})["loss"])
    assert not recwarn.list


def test_each_line_is_on_disk_at_once_with_step_first(tmp_path):
    with writers(tmp_path) as w:
        w.write(3, {"train/loss": np.float32(0.5), "eval/f1": [np.float64(1), 0.25]})
        text = (tmp_path / "metrics.jsonl").read_text()
    assert text == '{"step": 3, "train/loss": 0.5, "eval/f1": [1.0, 0.25]}\n'


def test_numbers_that_json_lacks_survive_the_round_trip(tmp_path):
    with writers(tmp_path) as w:
        w.write(1, {"a": math.nan, "b": -math.inf, "c": [1.0, math.inf]})
    assert lines_of(tmp_path) == [{"step": 1, "a": "NaN", "b": "-Infinity", "c": [1.0, "Infinity"]}]
    (line,) = read_metrics(tmp_path / "metrics.jsonl")
    assert math.isnan(line["a"]) and line["b"] == -math.inf


def test_resumed_run_holds_no_step_and_name_twice(tmp_path):
    with writers(tmp_path) as w:
        for step in (10, 20, 30):
            w.write(step, {"train/loss": float(step)})
        w.write(30, {"eval/test/loss": 0.1})
    with writers(tmp_path) as w:
        w.truncate_after(20)
        assert [line["step"] for line in lines_of(tmp_path)] == [10, 20]
        w.write(20, {"train/loss": 20.0, "eval/test/loss": 0.2})
        w.write(20, {"train/loss": 20.0})
        w.write(30, {"train/loss": 30.0})
    assert lines_of(tmp_path) == [
        {"step": 10, "train/loss": 10.0},
        {"step": 20, "train/loss": 20.0},
        {"step": 20, "eval/test/loss": 0.2},
        {"step": 30, "train/loss": 30.0},
    ]


def test_line_cut_short_by_a_kill_is_dropped_at_the_resume(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "a": 1.0}\n{"step": 2, "a": 2')
    assert read_metrics(tmp_path / "metrics.jsonl") == [{"step": 1, "a": 1.0}]
    with writers(tmp_path) as w:
        w.truncate_after(5)
        w.write(2, {"a": 2.0})
    assert lines_of(tmp_path) == [{"step": 1, "a": 1.0}, {"step": 2, "a": 2.0}]


def test_failed_truncation_leaves_the_old_file(tmp_path, monkeypatch):
    with writers(tmp_path) as w:
        w.write(1, {"a": 1.0})
        w.write(2, {"a": 2.0})
    before = (tmp_path / "metrics.jsonl").read_text()
    monkeypatch.setattr(os, "replace", lambda *_: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        writers(tmp_path).truncate_after(1)
    assert (tmp_path / "metrics.jsonl").read_text() == before
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.jsonl"]


def test_json_files_are_whole_strict_and_readable_by_others(tmp_path):
    path = tmp_path / "new" / "result.json"
    files.write_json(path, {"m": (jnp.array([1.5, math.nan]), np.int64(3)), "ü": True})
    assert json.loads(path.read_text(), parse_constant=pytest.fail) == {
        "m": [[1.5, "NaN"], 3],
        "ü": True,
    }
    assert path.stat().st_mode & 0o777 == 0o644


def test_write_that_cannot_be_json_leaves_the_old_file(tmp_path):
    files.write_json(tmp_path / "a.json", {"a": 1})
    with pytest.raises(TypeError):
        files.write_json(tmp_path / "a.json", {"a": object()})
    assert json.loads((tmp_path / "a.json").read_text()) == {"a": 1}


def test_tensorboard_holds_the_scalars_and_drops_what_a_resume_redoes(tmp_path):
    from tensorboardX.proto.event_pb2 import Event

    with writers(tmp_path, tensorboard=True) as w:
        w.write(10, {"train/loss": 0.5, "eval/f1": [0.1, 0.2]})
    with writers(tmp_path, tensorboard=True) as w:
        w.truncate_after(5)
        w.write(10, {"train/loss": 0.25})
    paths = sorted((tmp_path / "tensorboard").iterdir(), key=lambda path: path.stat().st_mtime_ns)
    assert len(paths) == 2
    values, purged = [], []
    for path in paths:
        data = path.read_bytes()
        while data:  # a record: length (8), its checksum (4), the event, its checksum (4)
            length = int.from_bytes(data[:8], "little")
            event = Event.FromString(data[12 : 12 + length])
            data = data[16 + length :]
            values += [(event.step, v.tag, v.simple_value) for v in event.summary.value]
            purged += [event.step] if event.HasField("session_log") else []
    assert values == [(10, "train/loss", 0.5), (10, "train/loss", 0.25)]
    assert purged == [6]


def test_no_control_characters_where_the_stream_is_no_terminal(tmp_path):
    stream = io.StringIO()
    with writers(tmp_path, progress=True, stream=stream) as w:
        w.write(10, {"train/loss": 0.5})
        w.write(10, {"eval/test/accuracy": 0.9, "eval/test/confusion_matrix": [[1, 0], [0, 1]]})
    assert stream.getvalue() == "step 10/100  loss 0.5\nstep 10/100  eval/test/accuracy 0.9\n"


def test_terminal_rewrites_one_line_and_keeps_evaluations(tmp_path, monkeypatch):
    clock = iter([0.0, 5.0])
    monkeypatch.setattr("bigjax.run.writers.time.perf_counter", lambda: next(clock))
    stream = Terminal()
    with writers(tmp_path, progress=True, stream=stream) as w:
        w.write(10, {"train/loss": 0.5})
        w.write(20, {"train/loss": 0.25})  # 10 steps in 5 s: 2 steps/s, 80 to go
        w.write(20, {"eval/test/loss": 0.3})
    first, second, third = stream.getvalue().split("\r")
    assert first == "step 10/100  loss 0.5"
    assert second == "step 20/100  2 steps/s  40s left  loss 0.25"
    assert third == "step 20/100  eval/test/loss 0.3".ljust(len(second)) + "\n"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(8, "8s"), (59.6, "1m00s"), (185, "3m05s"), (7380, "2h03m"), (4 * 86400 + 7200, "4d02h")],
)
def test_durations_are_for_people(seconds, text):
    assert duration(seconds) == text


def test_spread_has_two_digits_and_the_mean_as_many_decimals():
    assert cell([1.0, 2.0, 3.0, 4.0]) == "2.5 ± 1.3"  # sqrt(5/3) = 1.29
    assert cell([0.97, 0.98]) == "0.9750 ± 0.0071"
    assert cell([5]) == "5" and cell([2, 2]) == "2" and cell(0.123456) == "0.1235"
    assert cell([1.0, math.nan]) == "nan"


def test_table_columns_line_up():
    rows = [{"model": "teacher", "errors": [11, 12]}, {"model": "student", "n": 3}]
    assert table(rows, ["model", "errors", "n"]).splitlines() == [
        "model          errors  n",
        "-------  ------------  -",
        "teacher  11.50 ± 0.71",
        "student                3",
    ]


def test_table_without_rows_is_its_header():
    assert table([], ["a", "bc"]) == "a  bc\n-  --"
