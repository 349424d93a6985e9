"""Report pages: self-contained, escaped, and made from whatever a run folder holds."""

import json
import math
import re
from html.parser import HTMLParser
from xml.etree import ElementTree

import pytest

from bigjax.report.charts import MOST_POINTS, line_chart, short_count, thin, ticks
from bigjax.report.page import write_pipeline_report, write_report

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
    page = Page(write_report(tmp_path).read_text())
    assert "script" not in page.tags
    assert EVIL in page.text
    rows = [{"model": EVIL, EVIL: [1.0, 2.0]}]
    page = Page(write_pipeline_report(tmp_path, EVIL, rows, {EVIL: EVIL}).read_text())
    assert "script" not in page.tags
    assert EVIL in page.text
    assert all("<" not in value for _, value in page.attributes if value)


def test_page_needs_nothing_from_outside(tmp_path):
    make_run(tmp_path)
    text = write_report(tmp_path).read_text()
    page = Page(text)
    assert not {"link", "img", "iframe", "script"} & set(page.tags)
    assert not {"src", "href"} & {name for name, _ in page.attributes}
    assert not re.search(r"https?:|//[a-z]|@import|url\(", text)


def test_page_shows_results_curves_classes_config_and_versions(tmp_path):
    make_run(tmp_path)
    page = Page(write_report(tmp_path).read_text())
    for part in ("20 steps", "1m23s", "abababababab", "0.9712", "nan", "Per class", "[400]"):
        assert part in page.text, part
    assert page.tags.count("svg") == 2
    assert "Confusion matrix: eval/test" in page.text


def test_large_confusion_matrix_is_cut_to_its_most_confused_pairs(tmp_path):
    make_run(tmp_path, classes=60)
    page = Page(write_report(tmp_path).read_text())
    assert "most confused pairs" in page.text
    assert page.tags.count("td") < 60 * 60


@pytest.mark.parametrize("keep", [(), ("metrics.jsonl",), ("config.json",), ("result.json",)])
def test_unfinished_run_still_has_a_page(tmp_path, keep):
    make_run(tmp_path)
    for path in list(tmp_path.iterdir()):
        if path.name not in keep:
            path.unlink()
    page = Page(write_report(tmp_path).read_text())
    assert ("not finished" in page.text) == ("result.json" not in keep)


def test_damaged_files_count_as_missing(tmp_path):
    make_run(tmp_path)
    (tmp_path / "result.json").write_text('{"step": 2')
    (tmp_path / "manifest.json").write_text("[]")
    page = Page(write_report(tmp_path).read_text())
    assert "not finished: its last logged step is 20" in page.text


def test_pipeline_links_each_stage_and_says_which_is_not_finished(tmp_path):
    (tmp_path / "a b").mkdir()
    make_run(tmp_path / "a b")
    stages = {"teacher": "a b", "student": "student/seed_0"}
    rows = [{"model": "teacher", "errors": [11, 12]}]
    page = Page(write_pipeline_report(tmp_path, "Distil", rows, stages).read_text())
    links = [value for name, value in page.attributes if name == "href"]
    assert links == ["a%20b/report.html", "student/seed_0/report.html"]
    assert "11.50 ± 0.71" in page.text and "11 12" in page.text
    assert page.text.count("not finished") == 1


def test_chart_points_lie_inside_the_picture_in_order():
    svg = ElementTree.fromstring(line_chart({"a": [(0, -5.0), (10, 1e9), (30, 3.0)]}))
    (line,) = svg.findall("polyline")
    points = [tuple(map(float, point.split(","))) for point in line.get("points").split()]
    assert [x for x, _ in points] == sorted(x for x, _ in points)
    assert points[1][1] < points[2][1] <= points[0][1]
    _, _, width, height = map(float, svg.get("viewBox").split())
    assert all(0 <= x <= width and 0 <= y <= height for x, y in points)


def test_non_finite_values_leave_a_gap_and_constant_or_empty_series_draw():
    broken = [(0, 1.0), (1, 2.0), (2, math.nan), (3, 1.0), (4, math.inf), (5, 2.0)]
    assert line_chart({"a": broken}).count("<polyline") == 3
    for points in ([(0, 0.0)], [(1, 2.0), (2, 2.0)], [(5, 1e-300), (6, 0.0)]):
        ElementTree.fromstring(line_chart({"a": points}))
    assert "no finite value" in line_chart({"a": [(1, math.nan)], "b": []})


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
