"""Names of parameters, and patterns of them."""

import jax
import pytest

from jaxcb._src.utils.names import check_pattern, leaf_name, matches

NAMES = ["backbone/dense_0/kernel", "backbone/dense_0/bias", "backbone/dense_1/kernel", "head/kernel"]


def test_a_name_is_the_path():
    tree = {"head": [{"kernel": 1.0}]}
    ((path, _),) = jax.tree_util.tree_leaves_with_path(tree)
    assert leaf_name(path) == "head/0/kernel"


@pytest.mark.parametrize(
    ("pattern", "fits"),
    [
        ("**", NAMES),
        ("backbone/**", NAMES[:3]),
        ("**/kernel", [NAMES[0], NAMES[2], NAMES[3]]),
        ("*/kernel", [NAMES[3]]),
        ("backbone/dense_*/bias", [NAMES[1]]),
        ("backbone", []),
        ("head.kernel", []),
    ],
)
def test_what_a_pattern_fits(pattern, fits):
    assert [name for name in NAMES if matches(pattern, name)] == fits
    if fits:
        check_pattern(pattern, NAMES, "Freeze")


@pytest.mark.parametrize(
    ("pattern", "near"),
    [
        ("backbon/**", r"Did you mean 'backbone/\*\*'\?"),
        ("backbone/dense_2/**", r"Did you mean 'backbone/dense_1/\*\*'\?"),
        ("head/kernal", r"Did you mean 'head/kernel'\?"),
        ("decoder/attention/**", r"head/kernel\.$"),
    ],
)
def test_a_pattern_that_fits_nothing_lists_near_ones(pattern, near):
    with pytest.raises(ValueError, match=rf"^Freeze: where='.*' matches no parameter\. Parameters: backbone/.*{near}"):
        check_pattern(pattern, NAMES, "Freeze")


def test_of_many_names_the_nearest_are_listed():
    names = [f"layer_{i}/kernel" for i in range(50)] + ["embedding/table"]
    with pytest.raises(ValueError, match=r"Parameters: embedding/table, .* and 41 more\. Did you mean 'embed"):
        check_pattern("embeding/**", names, "Freeze")


def test_a_model_without_parameters_is_told_too():
    with pytest.raises(ValueError, match=r"matches no parameter. Parameters: none\.$"):
        check_pattern("**", [], "Freeze")
