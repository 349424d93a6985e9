"""Report pages: self-contained, escaped, and made from whatever a run folder holds."""

import base64
import io
import json
import math
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from bigjax.core.errors import RunFailed
from bigjax.loop.train import Stopped, train
from bigjax.report import charts, page
from bigjax.report.charts import HEIGHT, MOST_POINTS, WIDTH, chart, short_count, thin, ticks
from bigjax.report.page import LiveReport, mean_curves, write_pipeline_report, write_report
from bigjax.run import pictures
from tests.small import small
from tests.test_metrics import events

EVIL = "<script>alert('1')\"&"  # no slash: a metric is charted under what follows its last one
VOID = {"meta", "br", "img", "link"}


class Page(HTMLParser):
    """Collects tags, attributes and text, and fails on tags that do not close in order."""

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.attributes, self.text = [], [], [], ""
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data + "\n"


def make_run(workdir, classes=3):
    matrix = [[40 if i == j else i for j in range(classes)] for i in range(classes)]
    metrics = {
        "eval/test/loss": "NaN",
        "eval/test/accuracy": 0.9712,
        "eval/test/f1": [0.5] * classes,
        "eval/test/confusion_matrix": matrix,
        f"train/{EVIL}": 1.0,
    }
    result = {"step": 20, "metrics": metrics, "fingerprint": "ab" * 32, "seconds": 83.0}
    config = {"seed": 0, "model": {"type": EVIL, "widths": [400]}, "mesh": {}, EVIL: {EVIL: EVIL}}
    manifest = {"versions": {"jax": EVIL}, "class_names": [EVIL] * classes}
    lines = [{"step": s, "train/loss": 1 / s, f"train/{EVIL}": s} for s in (10, 20)]
    for name, value in (("result", result), ("config", config), ("manifest", manifest)):
        (workdir / f"{name}.json").write_text(json.dumps(value))
    (workdir / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def test_values_cannot_become_markup(tmp_path):
    make_run(tmp_path)
    parsed = Page(write_report(tmp_path).read_text())
    assert "script" not in parsed.tags
    assert EVIL in parsed.text
    rows = [{"model": EVIL, EVIL: [1.0, 2.0]}]
    parsed = Page(write_pipeline_report(tmp_path, EVIL, rows, {EVIL: EVIL}).read_text())
    assert "script" not in parsed.tags
    assert EVIL in parsed.text
    assert all("<" not in value for _, value in parsed.attributes if value)


def test_page_needs_nothing_from_outside(tmp_path):
    make_run(tmp_path)
    text = write_report(tmp_path).read_text()
    parsed = Page(text)
    assert not {"link", "img", "iframe", "script"} & set(parsed.tags)
    assert not {"src", "href"} & {name for name, _ in parsed.attributes}
    assert not re.search(r"https?:|//[a-z]|@import|url\(", text)


def test_pictures_are_within_the_page_the_newest_few(tmp_path):
    make_run(tmp_path)
    for step in (5, 10, 15, 20, 100):
        pictures.save(tmp_path, step, "samples <b>", np.full((2, 3, 1), step, np.uint8))
    parsed = Page(write_report(tmp_path).read_text())
    sources = [value for name, value in parsed.attributes if name == "src"]
    data = [base64.b64decode(s.removeprefix("data:image/png;base64,")) for s in sources]
    assert [Image.open(io.BytesIO(d)).getpixel((0, 0)) for d in data] == [10, 15, 20, 100]
    assert "samples <b>" in parsed.text and "step 100" in parsed.text


def test_the_mean_over_the_steps_is_drawn_in_the_place_of_one_batch(tmp_path):
    make_run(tmp_path)
    lines = [{"step": s, "train/loss": 9.0, "train_mean/loss": 1 / s} for s in (1, 2)]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(x) + "\n" for x in lines))
    parsed = Page(write_report(tmp_path).read_text())
    assert "train_mean/loss" in parsed.text and "train/loss" not in parsed.text


def test_the_loss_comes_first_then_what_is_evaluated(tmp_path):
    make_run(tmp_path)
    train = ("train/grad_norm", "train/accuracy", "train/loss")
    lines = [{"step": s, **dict.fromkeys(train, 1.0), "eval/test/accuracy": 1.0} for s in (1, 2)]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(x) + "\n" for x in lines))
    text = Page(write_report(tmp_path).read_text()).text
    assert re.findall(r"\n(loss|accuracy|grad_norm)\n(?=[\d\s.]*\n)", text[text.index("Curves") :])[
        :3
    ] == ["loss", "accuracy", "grad_norm"]


def test_classes_are_named_as_the_data_does_and_others_numbered(tmp_path):
    make_run(tmp_path, classes=4)
    (tmp_path / "manifest.json").write_text(json.dumps({"class_names": ["cat", "dog", "owl"]}))
    parsed = Page(write_report(tmp_path).read_text())
    assert [parsed.text.count(f"\n{name}\n") for name in ("cat", "dog", "owl")] == [3, 3, 3]
    assert parsed.text.count("\n3\n") >= 3


def test_a_run_that_stops_or_fails_leaves_a_page_that_says_why(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 3, "train/loss": 1.0}\n')
    with pytest.raises(RunFailed), LiveReport(tmp_path):
        raise RunFailed("step 4: the loss is not <finite>\nand more")
    text = Page((tmp_path / "report.html").read_text()).text
    assert "not finished: step 4: the loss is not <finite>; its last logged step is 3." in text
    with pytest.raises(KeyError), LiveReport(tmp_path):
        raise KeyError("x")
    text = Page((tmp_path / "report.html").read_text()).text
    assert "not finished: KeyError: 'x'; its last logged step is 3." in text


def test_a_real_run_has_a_page_from_its_first_line_on_and_after_a_stop(tmp_path):
    report, seen = tmp_path / "report.html", []

    def stop():
        seen.append(report.exists())
        return len(seen) > 5

    config = small("log.tensorboard=True", "log.histograms=True", "log.every=2")
    with pytest.raises(Stopped):
        train(config, tmp_path, stop=stop)
    assert all(seen[2:])  # two steps may be under way before the first is logged
    text = Page(report.read_text()).text
    assert "not finished: stopped on request after step" in text and "train_mean/loss" in text
    tags = {value.tag for event in events(tmp_path) for value in event.summary.value}
    assert {"config/text_summary", "train_mean/loss"} <= tags
    assert any(tag.endswith("kernel") for tag in tags)


def test_a_live_report_is_there_from_the_first_line_on_and_costs_little(tmp_path, monkeypatch):
    now = [0.0]
    written = []
    monkeypatch.setattr(page.time, "monotonic", lambda: now[0])

    def write(workdir, problem):
        written.append(now[0])
        now[0] += 1.0  # a page of a second: at most one in 50 s

    monkeypatch.setattr(page, "write_report", write)
    with LiveReport(tmp_path) as report:
        for _ in range(200):
            report.refresh()
            now[0] += 0.5
    assert written == [0.0, 51.0]


def test_a_page_that_cannot_be_written_does_not_end_the_run(tmp_path, caplog):
    (tmp_path / "report.html").mkdir()
    page.log.propagate = True
    with LiveReport(tmp_path) as report:
        report.refresh()
    assert "no report: IsADirectoryError" in caplog.text


def test_page_shows_results_curves_classes_config_and_versions(tmp_path):
    make_run(tmp_path)
    parsed = Page(write_report(tmp_path).read_text())
    for part in ("20 steps", "1m23s", "abababababab", "0.9712", "nan", "Per class", "[400]"):
        assert part in parsed.text, part
    assert parsed.tags.count("svg") == 2
    assert "Confusion matrix: eval/test" in parsed.text


def test_large_confusion_matrix_is_cut_to_its_most_confused_pairs(tmp_path):
    make_run(tmp_path, classes=60)
    parsed = Page(write_report(tmp_path).read_text())
    assert "most confused pairs" in parsed.text
    assert parsed.tags.count("td") < 60 * 60


@pytest.mark.parametrize("keep", [(), ("metrics.jsonl",), ("config.json",), ("result.json",)])
def test_unfinished_run_still_has_a_page(tmp_path, keep):
    make_run(tmp_path)
    for path in list(tmp_path.iterdir()):
        if path.name not in keep:
            path.unlink()
    parsed = Page(write_report(tmp_path).read_text())
    assert ("not finished" in parsed.text) == ("result.json" not in keep)


def test_damaged_files_count_as_missing(tmp_path):
    make_run(tmp_path)
    (tmp_path / "result.json").write_text('{"step": 2')
    (tmp_path / "manifest.json").write_text("[]")
    parsed = Page(write_report(tmp_path).read_text())
    assert "not finished: its last logged step is 20" in parsed.text


def test_pipeline_links_each_stage_and_says_which_is_not_finished(tmp_path):
    (tmp_path / "a b").mkdir()
    make_run(tmp_path / "a b")
    stages = {"teacher": "a b", "student": "student/seed_0"}
    rows = [{"model": "teacher", "errors": [11, 12]}]
    parsed = Page(write_pipeline_report(tmp_path, "Distil", rows, stages).read_text())
    links = [value for name, value in parsed.attributes if name == "href"]
    assert links == ["a%20b/report.html", "student/seed_0/report.html"]
    assert "11.50 ± 0.71" in parsed.text and "11 12" in parsed.text
    assert parsed.text.count("not finished") == 1
    assert "standard deviation" in parsed.text
    parsed = Page(write_pipeline_report(tmp_path, "x", [{"errors": [11]}], stages).read_text())
    assert "standard deviation" not in parsed.text  # of one seed there is none


def points_of(path):
    return [tuple(map(float, point.split(","))) for point in path.split(" ")]


def test_curves_of_several_seeds_are_their_mean_and_deviation_at_the_steps_all_have():
    runs = [
        [{"step": 1, "train/loss": 1.0}, {"step": 2, "train/loss": 4.0}, {"step": 2, "eval/a": 1}],
        [
            {"step": 1, "train/loss": 3.0},
            {"step": 2, "train/loss": 4.0},
            {"step": 3, "train/loss": 9.0},
        ],
    ]
    assert page._band(runs, "train/loss") == [(1, 2.0, 2 - 2**0.5, 2 + 2**0.5), (2, 4.0, 4.0, 4.0)]
    runs = [[{"step": 1, "eval/test/accuracy": x}] for x in (0.9, 1.0)]
    ((_, mean, low, high),) = page._band(runs, "eval/test/accuracy")
    assert (mean, high) == (0.95, 1.0) and low == pytest.approx(0.95 - 0.1 / 2**0.5)
    assert mean_curves({"a": runs}, ("eval/test/accuracy",)) == []  # one point is no curve


def test_a_pipelines_page_has_one_curve_a_stage(tmp_path):
    for folder in ("seed0/teacher", "seed1/teacher", "seed0/student"):
        (tmp_path / folder).mkdir(parents=True)
        make_run(tmp_path / folder)
    stages = {f: f for f in ("seed0/teacher", "seed1/teacher", "seed0/student", "seed1/student")}
    parsed = Page(write_pipeline_report(tmp_path, "Distil", [], stages).read_text())
    assert parsed.tags.count("svg") == 1
    assert parsed.tags.count("polyline") == 2 and parsed.tags.count("polygon") == 1
    assert parsed.text.count("not finished") == 1


def test_chart_points_lie_inside_the_picture_in_order():
    drawn = chart("loss", {"a": [(0, -5.0), (10, 1e9), (30, 3.0)]})
    (path,) = drawn.curves[0].lines
    points = points_of(path)
    assert [x for x, _ in points] == sorted(x for x, _ in points)
    assert points[1][1] < points[2][1] <= points[0][1]
    assert all(0 <= x <= WIDTH and 0 <= y <= HEIGHT for x, y in points)
    assert [text for _, text in drawn.x_ticks] == ["0", "10", "20", "30"]


def test_a_band_goes_along_the_upper_and_back_along_the_lower_edge():
    drawn = chart("loss", {"a": [(0, 1.0, 0.0, 2.0), (10, 1.0, 0.5, 1.5)]})
    (path,) = drawn.curves[0].bands
    ys = dict(drawn.y_ticks)
    heights = {float(text): y for y, text in ys.items()}
    assert [y for _, y in points_of(path)] == [heights[v] for v in (2.0, 1.5, 0.5, 0.0)]
    assert [x for x, _ in points_of(path)] == [58.0, 446.0, 446.0, 58.0]


def test_non_finite_values_leave_a_gap_and_constant_or_empty_series_draw():
    broken = [(0, 1.0), (1, 2.0), (2, math.nan), (3, 1.0), (4, math.inf), (5, 2.0)]
    assert len(chart("a", {"a": broken}).curves[0].lines) == 3
    for points in ([(0, 0.0)], [(1, 2.0), (2, 2.0)], [(5, 1e-300), (6, 0.0)]):
        (path,) = chart("a", {"a": points}).curves[0].lines
        assert all(map(math.isfinite, sum(points_of(path), ())))
    assert chart("a", {"a": [(1, math.nan)], "b": []}).curves == []


def test_parallel_coordinates_run_from_axis_to_axis_the_best_drawn_last():
    axes = [charts.Axis.of("a.rate", [0.001, 1.0]), charts.Axis.of("kind", ["x", "y"])]
    drawn = charts.parallel_coordinates(axes, [[1.0, "y"], [0.001, "x"]], ["best", "worst"])
    (worst, *_, first), (best, *_, last) = drawn.lines
    assert (first, last) == ("worst", "best")
    top, bottom = charts.MARGIN, charts.MARGIN + charts.PLOT
    assert [y for _, y in points_of(best)] == [top, top]
    assert [y for _, y in points_of(worst)] == [bottom, bottom]
    assert [name for _, name, _ in drawn.axes] == ["rate", "kind"]
    assert [text for _, text in drawn.axes[0][2]][::2] == ["0.001", "0.0316", "1"]  # logarithmic


def test_thinned_line_keeps_every_spike():
    points = [(step, 0.0) for step in range(10_000)]
    points[1234], points[7777] = (1234, 9.0), (7777, -9.0)
    kept = thin(points)
    assert len(kept) <= MOST_POINTS
    assert {points[1234], points[7777]} <= set(kept)
    assert kept == sorted(kept)


def test_ticks_are_round_and_enclose_the_values():
    assert ticks(0, 5000) == [0, 1000, 2000, 3000, 4000, 5000]
    assert ticks(0.03, 0.97) == pytest.approx([0, 0.2, 0.4, 0.6, 0.8, 1.0])
    assert [short_count(n) for n in (500, 5000, 20_000, 1.5e6)] == ["500", "5000", "20k", "1.5M"]
