"""One grammar for what is said per parameter."""

import jax.numpy as jnp
import pytest

from bigjax.core.errors import UserError
from bigjax.core.rules import map_with_path, match_rules, paths

TREE = {
    "backbone": {"dense_0": {"kernel": jnp.ones((2, 3)), "bias": jnp.ones(3)}},
    "head": {"kernel": jnp.ones((3, 1)), "bias": jnp.ones(1)},
}


def test_paths_join_nested_names_and_positions_by_slashes():
    assert list(paths(TREE)) == [
        "backbone/dense_0/bias",
        "backbone/dense_0/kernel",
        "head/bias",
        "head/kernel",
    ]
    assert list(paths({"layers": [1, {"w": 2}]})) == ["layers/0", "layers/1/w"]


def test_first_match_wins():
    rules = (("head/.*", 3.0), (".*bias", 0.0), (".*", 1.0))
    assert match_rules(rules, TREE, what="x") == {
        "backbone/dense_0/bias": 0.0,
        "backbone/dense_0/kernel": 1.0,
        "head/bias": 3.0,
        "head/kernel": 3.0,
    }


def test_a_pattern_must_match_the_whole_path():
    tree = {"kernel": 1, "kernel_2": 2}
    assert match_rules((("kernel", 0.0), (".*", 1.0)), tree, what="x")["kernel_2"] == 1.0
    with pytest.raises(UserError, match=r"my\.rules: pattern 'bias' .* 'head/bias'"):
        match_rules((("bias", 0.0), (".*", 1.0)), TREE, what="my.rules")


def test_none_is_a_value_and_a_hole_is_a_leaf():
    values = match_rules(
        (("backbone/.*", None), (".*", 1.0)), {**TREE, "backbone": {"w": None}}, what="x"
    )
    assert values == {"backbone/w": None, "head/bias": 1.0, "head/kernel": 1.0}
    holed = map_with_path(lambda path, leaf: None if path == "a" else leaf, {"a": 1, "b": 2})
    assert holed == {"a": None, "b": 2}
    assert map_with_path(lambda path, a, b: (path, a or b), holed, {"a": 3, "b": 4}) == {
        "a": ("a", 3),
        "b": ("b", 2),
    }


def test_a_leaf_that_no_pattern_covers_is_named_with_the_rules():
    with pytest.raises(
        UserError, match=r"^optimizer\.weight_decay_rules: parameter 'head/kernel'"
    ) as e:
        match_rules(
            ((".*bias", 0.0), ("backbone/.*", 1.0)), TREE, what="optimizer.weight_decay_rules"
        )
    assert "'.*bias', 'backbone/.*'" in str(e.value)
    with pytest.raises(UserError, match="backbone/dense_0/bias"):
        match_rules((), TREE, what="x")


def test_a_misspelt_pattern_is_refused_with_the_nearest_path():
    with pytest.raises(UserError, match=r"pattern 'haed/kernel' .*nearest path is 'head/kernel'"):
        match_rules((("haed/kernel", 0.0), (".*", 1.0)), TREE, what="x")


def test_a_rule_shadowed_by_earlier_ones_and_an_idle_catch_all_are_accepted():
    rules = ((".*bias", 0.0), (".*kernel", 1.0), ("head/.*", 2.0), (".*", 3.0))
    assert set(match_rules(rules, TREE, what="x").values()) == {0.0, 1.0}


@pytest.mark.parametrize("rule", ["ab", ("(", 1.0), (".*",), (3, 1.0), (".*", 1, 2), 7, {".*": 1}])
def test_what_is_no_rule_is_refused_naming_the_key(rule):
    with pytest.raises(UserError, match=r"^my\.rules: "):
        match_rules((rule,), TREE, what="my.rules")
