"""The algebra of points, against plain loops."""

import builtins
import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bigjax.core.errors import UserError
from bigjax.sweep import chain, over, product, subsample, zip
from bigjax.sweep.describe import parse_points, parse_values

values = st.lists(st.integers(), max_size=4)


@given(values, values, values)
def test_product_is_every_combination_with_the_last_list_turning_fastest(a, b, c):
    found = product(over("a", a), over("b", b), over("c", c))
    assert found == [{"a": x, "b": y, "c": z} for x in a for y in b for z in c]


@given(values, values, values)
def test_product_distributes_over_chain_and_both_are_associative(a, b, c):
    a, b, c = over("x", a), over("y", b), over("y", c)
    assert product(a, chain(b, c)) != [] or not (a and (b or c))
    key = lambda point: sorted(point.items())  # noqa: E731
    assert sorted(product(a, chain(b, c)), key=key) == sorted(
        chain(product(a, b), product(a, c)), key=key
    )
    d = [{"z": 1}, {"z": 2}]
    assert product(product(a, b), d) == product(a, product(b, d)) == product(a, b, d)
    assert chain(chain(a, b), c) == chain(a, chain(b, c)) == a + b + c


@given(values)
def test_product_of_nothing_is_the_one_empty_point_and_changes_nothing(a):
    assert product() == [{}]
    assert product(over("a", a), product()) == over("a", a)


@given(st.lists(st.tuples(st.integers(), st.integers()), max_size=5))
def test_zip_takes_points_together(pairs):
    a, b = [x for x, _ in pairs], [y for _, y in pairs]
    assert zip(over("a", a), over("b", b)) == [
        {"a": x, "b": y} for x, y in builtins.zip(a, b, strict=True)
    ]


@given(st.integers(0, 8), st.integers(0, 5))
def test_subsample_keeps_order_takes_no_point_twice_and_depends_on_the_seed_alone(count, seed):
    points = over("a", range(8))
    found = subsample(points, count, seed)
    assert found == subsample(points, count, seed)
    numbers = [point["a"] for point in found]
    assert len(set(numbers)) == count and numbers == sorted(numbers)


def test_another_seed_takes_other_points():
    points = over("a", range(50))
    assert len({str(subsample(points, 5, seed)) for seed in range(5)}) == 5


def test_the_combined_points_are_new_dicts():
    points = over("a", [1])
    for found in (product(points), zip(points), chain(points), subsample(points, 1)):
        found[0]["a"] = 2
    assert points == [{"a": 1}]


@pytest.mark.parametrize(
    "combine",
    [
        lambda: product(over("a", [1]), over("a", [2])),
        lambda: zip(over("a", [1]), over("b", [1, 2])),
        lambda: subsample(over("a", [1]), 2),
        lambda: parse_points("a"),
        lambda: parse_points("=1"),
    ],
)
def test_what_makes_no_sense_is_refused(combine):
    with pytest.raises(UserError):
        combine()


def test_shell_lists_are_read_as_python_values_or_words():
    assert parse_values("1e-3,3e-4") == [1e-3, 3e-4]
    assert parse_values("adam,sgd,1,true,none") == ["adam", "sgd", 1, True, None]
    assert parse_values("(30,30),(60,)") == [(30, 30), (60,)]
    assert parse_points("config.model.dropout=0.0,0.5") == [
        {"model.dropout": 0.0},
        {"model.dropout": 0.5},
    ]
    assert list(itertools.chain(parse_points("optimizer.type=adam"))) == [
        {"optimizer.type": "adam"}
    ]
