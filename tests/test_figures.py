"""Each figure of an experiment's docstring and its twin in experiments/figures.toml agree, and hold."""

import json

import pytest

from bigjax.core.errors import UserError
from experiments.__main__ import FOLDER, summaries, table
from scripts import figures

TWINS, OTHERS = figures.twins(), figures.twins(figures.OTHERS)
NAMES = [*summaries(), *(f"sweeps.{name}" for name in summaries(FOLDER / "sweeps"))]
PUBLISHED = "Published, not reproduced here"


@pytest.mark.parametrize("name", NAMES)
def test_docstring_and_twin_agree(name):
    text = figures.docstring(name)
    if PUBLISHED in text:
        assert name not in TWINS
        return
    assert name in TWINS, "its figures have no twin in experiments/figures.toml"
    assert list(figures.problems(name, TWINS[name], text)) == []
    assert figures.unsaid(name, TWINS[name], text) == []


def test_every_time_that_an_experiment_states_is_near_its_twin_s():
    for name, twin in TWINS.items():
        said = figures.TIME.findall(figures.docstring(name))
        minutes = [float(n) / (1 if unit.startswith("minute") else 60)
                   for low, high, unit in said for n in (low, high) if n]  # fmt: skip
        assert any(twin["minutes"] / 2 <= n <= 2 * twin["minutes"] for n in minutes), name


FILES = [
    str(path.relative_to(figures.ROOT))
    for path in [
        *(figures.ROOT / name for name in ("README.md", "tests/README.md")),
        *(p for room in ("bigjax", "scripts") for p in figures.ROOT.glob(f"{room}/**/README.md")),
        *(p for room in ("bigjax", "scripts") for p in figures.ROOT.glob(f"{room}/**/*.py")),
    ]
]


def test_what_readmes_and_docstrings_of_the_library_measure_has_a_twin():
    for name in FILES:
        text, twin = figures.stated(name), OTHERS.get(name)
        assert figures.unsaid(name, twin, text) == [], (
            f"{name}: no twin in scripts/benchmarks/figures.toml"
        )
        if twin:
            assert list(figures.problems(name, twin, text)) == []
            assert twin["figures"] or twin["elsewhere"]
    assert set(OTHERS) <= set(FILES)


def test_a_benchmark_s_figure_is_the_one_in_its_file():
    stated = [f for twin in OTHERS.values() for f in twin["figures"] if "results" in f]
    assert len(stated) >= 10
    for figure in stated:
        now, word = figures.recorded(figure)
        assert word == figures.HOLDS, (figure["said"], now)
    wrong = dict(stated[0], said="9" + stated[0]["said"])
    assert figures.recorded(wrong)[1] == figures.DIFFERS


def test_the_table_of_experiments_is_made_of_their_docstrings():
    assert (FOLDER / "README.md").read_text() == table()


def test_every_twin_is_an_experiment_s():
    assert set(TWINS) <= set(NAMES)


def test_what_does_not_agree_is_found():
    text = figures.docstring("digits_rnn")
    (figure, *_) = TWINS["digits_rnn"]["figures"]
    wrong = [
        dict(figure, value=96.4),
        dict(figure, said="96.9 %"),
        dict(figure, tolerence=1),
        dict(figure, at_most=97),
    ]
    for one in wrong:
        twin = dict(TWINS["digits_rnn"], figures=[one])
        assert list(figures.problems("digits_rnn", twin, text))
    assert figures.unsaid("digits_rnn", None, text) == ["96.3", "96.3", "0.8"]
    assert figures.unsaid("digits_rnn", TWINS["digits_rnn"], f"{text} Once it was 96.5 %.") == [
        "96.5"
    ]
    assert figures.unsaid("README.md", None, "Saves take 3.5 ms, half a second, 4 % more.") == [
        "3.5 ms", "half a second", "4 %",
    ]  # fmt: skip


def test_what_a_command_prints_is_found_with_its_numbers_near_enough():
    text = "noise 1 2\nrate  0.01  mean 0.9712 [0.96, 0.98]\nrate 0.1  mean 0.5 [0.4, 0.6]\n"
    figure = dict(said="", prints="rate 0.01 mean 0.9710 [0.96, 0.98]", tolerance=0.0005)
    assert figures.printed(figure, text) == ("rate 0.01 mean 0.9712 [0.96, 0.98]", figures.HOLDS)
    assert figures.printed(dict(figure, tolerance=0.0001), text)[1] == figures.DIFFERS
    assert figures.printed(dict(figure, prints="rate 0.01 median 1"), text)[1] == figures.DIFFERS


def runs(folder, values):
    for seed, value in enumerate(values):
        run = folder / "trials" / f"seed={seed}"
        run.mkdir(parents=True)
        (run / "config.json").write_text(json.dumps({"seed": seed}))
        (run / "result.json").write_text(json.dumps({"metrics": {"eval/test/accuracy": value}}))


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({}, figures.HOLDS),
        (dict(value=70.6), figures.DIFFERS),
        (dict(spread=19.4), figures.DIFFERS),
    ],
)
def test_mean_and_deviation_are_held_against_the_twin(tmp_path, changes, word):
    runs(tmp_path, [0.5, 0.7, 0.9])  # 70 +- 20 %, by hand
    figure = dict(
        said="", of="eval/test/accuracy", runs="trials/*", seeds=[0, 1, 2], scale=100, value=70,
        spread=20, tolerance=0.5,
    )  # fmt: skip
    done = figures.Done(0, "", "", {"seconds": 2.5})
    assert figures.verdict({**figure, **changes}, tmp_path, done) == ("70 +- 20", word)
    quick = [figures.verdict(dict(of="seconds", at_most=n), tmp_path, done)[1] for n in (3, 2)]
    assert quick == [figures.HOLDS, figures.DIFFERS]
    with pytest.raises(UserError, match=r"seeds \[0, 1, 2\], not \[0, 1\]"):
        figures.measured({**figure, "seeds": [0, 1]}, tmp_path)


def test_a_command_that_fails_is_told(capsys, monkeypatch):
    monkeypatch.setattr(
        figures, "twins", lambda *_: {"x": dict(TWINS["digits_rnn"], command="nope")}
    )
    assert figures.main(["x"]) == 1
    assert "No module named nope" in capsys.readouterr().out
    assert figures.main(["y"]) == 2


QUICK = "breast_cancer_mlp"  # runs in the suite; the others of a minute with --slow, if no data is fetched
SLOW = [
    name
    for name, twin in TWINS.items()
    if twin["minutes"] <= 1 and name != QUICK and "fetch_data" not in figures.docstring(name)
]


@pytest.mark.parametrize(
    "name",
    [QUICK, *(pytest.param(name, marks=pytest.mark.slow) for name in SLOW)],
)
def test_the_figures_still_hold(name, capsys, monkeypatch):
    monkeypatch.delenv("XLA_FLAGS")  # on the devices that are there, as they were measured
    code = figures.main([name])
    assert code == 0, capsys.readouterr().out
