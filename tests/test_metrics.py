"""Pairs against hand computation; the promises of metrics.jsonl, TensorBoard and the terminal."""

import io
import json
import math
import os

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from bigjax.run import files, pictures, screen
from bigjax.run.text import amount, cell, duration, interval, metrics_table, rate, table
from bigjax.run.writers import MeanSince, Writers, finalize, read_metrics


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


def events(workdir):
    """The TensorBoard events of a run, the oldest file first, as TensorBoard reads them."""
    from tensorboardX.proto.event_pb2 import Event

    paths = (workdir / "tensorboard").iterdir()
    for path in sorted(paths, key=lambda path: path.stat().st_mtime_ns):
        data = path.read_bytes()
        while data:  # a record: length (8), its checksum (4), the event, its checksum (4)
            length = int.from_bytes(data[:8], "little")
            yield Event.FromString(data[12 : 12 + length])
            data = data[16 + length :]


def test_tensorboard_holds_the_scalars_and_drops_what_a_resume_redoes(tmp_path):
    with writers(tmp_path, tensorboard=True) as w:
        w.write(10, {"train/loss": 0.5, "eval/f1": [0.1, 0.2]})
    with writers(tmp_path, tensorboard=True) as w:
        w.truncate_after(5)
        w.write(10, {"train/loss": 0.25})
    found = list(events(tmp_path))
    values = [(event.step, v.tag, v.simple_value) for event in found for v in event.summary.value]
    assert values == [(10, "train/loss", 0.5), (10, "train/loss", 0.25)]
    assert [event.step for event in found if event.HasField("session_log")] == [6]


def test_tensorboard_holds_config_hyperparameters_pictures_and_histograms(tmp_path):
    from tensorboardX.proto.plugin_hparams_pb2 import HParamsPluginData

    config = {"seed": 3, "optimizer": {"type": "adam", "learning_rate": 0.25}, "log": {"every": 1}}
    files.write_json(tmp_path / "config.json", config)
    with writers(tmp_path, tensorboard=True) as w:
        w.truncate_after(0)
        pictures.save(tmp_path, 5, "digits", np.zeros((4, 6, 1), np.uint8))
        w.histograms(5, {"dense": {"kernel": jnp.arange(4.0)}})
        w.write(5, {"eval/test/accuracy": 0.5, "eval/test/confusion_matrix": [[1]]})
        w.write(6, {"train/loss": 0.5})
    values = {v.tag: v for event in events(tmp_path) for v in event.summary.value}
    assert '"learning_rate": 0.25' in values["config/text_summary"].tensor.string_val[0].decode()
    assert (values["digits"].image.height, values["digits"].image.width) == (4, 6)
    histogram = values["dense/kernel"].histo
    assert (histogram.num, histogram.sum, histogram.max) == (4, 6, 3)
    found = {
        tag: HParamsPluginData.FromString(value.metadata.plugin_data.content)
        for tag, value in values.items()
        if value.metadata.plugin_data.plugin_name == "hparams"
    }
    start = found["_hparams_/session_start_info"].session_start_info.hparams
    assert start["optimizer.learning_rate"].number_value == 0.25
    assert start["optimizer.type"].string_value == "adam" and start["seed"].number_value == 3
    assert not any(key.startswith("log.") for key in start)
    infos = found["_hparams_/experiment"].experiment.metric_infos
    assert [info.name.tag for info in infos] == ["eval/test/accuracy"]
    assert "_hparams_/session_end_info" in found


def test_a_run_that_is_stopped_is_no_finished_session_of_hyperparameters(tmp_path):
    with pytest.raises(KeyError), writers(tmp_path, tensorboard=True) as w:
        w.write(5, {"eval/test/accuracy": 0.5})
        raise KeyError
    assert not [v.tag for e in events(tmp_path) for v in e.summary.value if "hparams" in v.tag]


def pairs(step):
    """Loss 2 / step over batches that grow: (sum, weight) = (2, step)."""
    return {"loss": (jnp.float32(2), jnp.float32(step)), "accuracy": (jnp.ones(()), jnp.ones(()))}


def run_steps(w, first, last, log_every=4):
    for step in range(first, last + 1):
        w.step(step, pairs(step))
        if step % log_every == 0:
            w.write(step, {"train/loss": 2 / step})


def test_the_mean_is_over_all_steps_since_the_line_before_and_the_loss_is_one_steps(tmp_path):
    with writers(tmp_path) as w:
        run_steps(w, 1, 9)
        w.write(9, {"eval/test/loss": 1.0})  # is no line of training
        run_steps(w, 10, 12)
    # weighted: the sum of the sums over the sum of the weights
    assert lines_of(tmp_path) == [
        {"step": 4, "train/loss": 2 / 4, "train_mean/loss": 8 / (1 + 2 + 3 + 4)},
        {"step": 8, "train/loss": 2 / 8, "train_mean/loss": 8 / (5 + 6 + 7 + 8)},
        {"step": 9, "eval/test/loss": 1.0},
        {"step": 12, "train/loss": 2 / 12, "train_mean/loss": 8 / (9 + 10 + 11 + 12)},
    ]


def test_a_run_resumed_between_two_lines_has_the_same_means_bit_for_bit(tmp_path):
    with writers(tmp_path / "whole") as w:
        run_steps(w, 1, 30, log_every=10)
    with writers(tmp_path / "parts") as w:
        run_steps(w, 1, 13, log_every=10)
        w.sync()  # a checkpoint at 13 ...
        run_steps(w, 14, 17, log_every=10)
        w.sync()  # ... and 17, which turns out damaged
        run_steps(w, 18, 25, log_every=10)
    with writers(tmp_path / "parts") as w:
        w.truncate_after(13)
        run_steps(w, 14, 30, log_every=10)
    assert lines_of(tmp_path / "parts") == lines_of(tmp_path / "whole")


def test_the_mean_fetches_in_batches_and_is_the_same_as_one_by_one():
    window, total, weight = MeanSince(), 0.0, 0.0
    for step in range(1, 1001):
        window.add((np.float32(1) / np.float32(step), np.float32(step % 7)))
        total, weight = total + float(np.float32(1) / np.float32(step)), weight + step % 7
    assert window.sums() == (total, weight) and window.mean() == total / weight
    window.clear()
    assert math.isnan(window.mean())


def test_sync_puts_the_lines_on_the_disk(tmp_path, monkeypatch):
    synced = []
    monkeypatch.setattr(os, "fsync", lambda handle: synced.append(os.fstat(handle).st_size))
    with writers(tmp_path) as w:
        w.sync()
        w.write(1, {"train/loss": 1.0})
        w.sync()
    assert synced == [(tmp_path / "metrics.jsonl").stat().st_size]
    assert not (tmp_path / "train_mean.json").exists()


def test_pictures_lie_in_the_folder_and_a_resume_forgets_those_that_it_makes_again(tmp_path):
    tiles = pictures.grid(np.linspace(0, 1, 5 * 4).reshape(5, 2, 2))
    assert tiles.shape == (2 + 2 + 2, 2 + 2 + 2 + 2 + 2, 1)  # 2 rows of 3, 2 pixels between
    assert tiles[0, 0, 0] == 0 and tiles[2, 0, 0] == 255 and tiles[5, 5, 0] == 255
    for step in (9, 10, 100):
        pictures.save(tmp_path, step, "digits", tiles)
    with writers(tmp_path) as w:
        w.truncate_after(10)
    assert list(pictures.saved(tmp_path)["digits"]) == [9, 10]
    with Image.open(tmp_path / "samples/digits/10.png") as picture:
        assert np.array_equal(np.asarray(picture), tiles[..., 0])
    with pytest.raises(ValueError, match="shape"):
        pictures.grid(np.zeros((2, 4, 4, 2)))


def test_in_a_file_a_step_that_is_logged_has_one_line_however_long_it_took(tmp_path, monkeypatch):
    monkeypatch.setattr(screen, "FILE_EVERY", 0.0)
    monkeypatch.setattr(screen, "REDRAW", 0.0)
    stream = io.StringIO()
    with writers(tmp_path, progress=True, stream=stream) as w:
        w.step(1, {"loss": (1.0, 2.0)}, written=True)
        w.write(1, {"train/loss": 0.5, "train/accuracy": 0.25})
        w.step(2, {"loss": (1.0, 2.0)})
    lines = stream.getvalue().splitlines()
    assert [line.split("  ")[0] for line in lines[:2]] == ["step 1/100", "step 2/100"], lines
    assert "accuracy 0.25" in lines[0]


def test_no_control_characters_where_the_stream_is_no_terminal(tmp_path):
    stream = io.StringIO()
    with writers(tmp_path, progress=True, stream=stream) as w:
        w.write(10, {"train/loss": 0.5})
        w.write(10, {"eval/test/accuracy": 0.9, "eval/test/confusion_matrix": [[1, 0], [0, 1]]})
    assert stream.getvalue() == "step 10/100  loss 0.5\nstep 10/100  eval/test/accuracy 0.9\n"


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


def test_amounts_and_rates_have_three_digits():
    assert [amount(n) for n in (0, 999, 1000, 45_600_000, 2e12)] == [
        "0 B",
        "999 B",
        "1 kB",
        "45.6 MB",
        "2 TB",
    ]
    assert [rate(x) for x in (0.25, 34.56, 1432.4)] == ["0.25", "34.6", "1,432"]


@pytest.mark.parametrize(
    ("low", "high", "metric", "text"),
    [
        (0.97, 1.02, "eval/test/accuracy", "[0.97, 1]"),
        (-0.1, 0.5, "eval/test/f1_macro", "[0, 0.5]"),
        (0.97, 1.02, "eval/test/loss", "[0.97, 1.02]"),
        (0.97, 1.02, "eval/test/topology", "[0.97, 1.02]"),
        (math.nan, 1.0, "eval/test/accuracy", ""),
    ],
)
def test_intervals_of_shares_stay_within_0_and_1(low, high, metric, text):
    assert interval(low, high, metric) == text


def test_metrics_table_leaves_lists_out():
    assert metrics_table({"loss": 0.5, "f1": [1, 2]}).splitlines() == [
        "metric  value",
        "------  -----",
        "loss      0.5",
    ]
