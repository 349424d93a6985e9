"""Each figure of an experiment's docstring and its twin in experiments/figures.toml agree, and hold."""

import json

import pytest

from bigjax.core.errors import UserError
from experiments.__main__ import FOLDER, summaries, table
from scripts import figures

TWINS = figures.twins()
NAMES = [*summaries(), *(f"sweeps.{name}" for name in summaries(FOLDER / "sweeps"))]
PUBLISHED = "Published, not reproduced here"


@pytest.mark.parametrize("name", NAMES)
def test_docstring_and_twin_agree(name):
    if PUBLISHED in figures.docstring(name):
        assert name not in TWINS
        return
    assert name in TWINS, "its figures have no twin in experiments/figures.toml"
    assert list(figures.problems(name, TWINS[name])) == []
    assert figures.unsaid(name, TWINS[name]) == []


def test_the_table_of_experiments_is_made_of_their_docstrings():
    assert (FOLDER / "README.md").read_text() == table()


def test_every_twin_is_an_experiment_s():
    assert set(TWINS) <= set(NAMES)


def test_what_does_not_agree_is_found():
    (figure, *_) = TWINS["digits_rnn"]["figures"]
    wrong = [dict(figure, value=96.4), dict(figure, said="96.9 %"), dict(figure, tolerence=1)]
    for one in wrong:
        assert list(figures.problems("digits_rnn", dict(TWINS["digits_rnn"], figures=[one])))
    assert figures.unsaid("digits_rnn", None) == ["96.3"]


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
    assert figures.verdict({**figure, **changes}, tmp_path, "") == ("70 +- 20", word)
    with pytest.raises(UserError, match=r"seeds \[0, 1, 2\], not \[0, 1\]"):
        figures.measured({**figure, "seeds": [0, 1]}, tmp_path)


def test_a_command_that_fails_is_told(capsys, monkeypatch):
    monkeypatch.setattr(figures, "twins", lambda: {"x": dict(TWINS["digits_rnn"], command="nope")})
    assert figures.main(["x"]) == 1
    assert "No module named nope" in capsys.readouterr().out
    assert figures.main(["y"]) == 2


SLOW = [
    name
    for name, twin in TWINS.items()
    if 0.3 < twin["minutes"] <= 1 and "fetch_data" not in figures.docstring(name)
]


@pytest.mark.parametrize(
    "name",
    ["breast_cancer_mlp", *(pytest.param(name, marks=pytest.mark.slow) for name in SLOW)],
)
def test_the_figures_still_hold(name, capsys, monkeypatch):
    monkeypatch.delenv("XLA_FLAGS")  # on the devices that are there, as they were measured
    code = figures.main([name])
    assert code == 0, capsys.readouterr().out
