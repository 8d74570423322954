"""A name is found, or answered with what it could have been."""

from __future__ import annotations

from typing import Any

import pytest

from rltemp import BadInputError, load_method
from rltemp.io.own_code import import_attribute
from rltemp.kd.names import call_with_options, lookup, split_spec


def demo(first: Any = 1, second: Any = 2) -> tuple[Any, Any]:
    return first, second


def test_a_wrong_name_is_answered_with_the_closest_and_with_all() -> None:
    with pytest.raises(BadInputError, match="unknown rule 'fixd': did you mean 'fixed'\\? Known: dtkd, fixed"):
        lookup({"fixed": 1, "dtkd": 2}, "fixd", "rule")


def test_a_name_like_no_other_is_answered_without_a_guess() -> None:
    with pytest.raises(BadInputError, match="unknown rule 'zzz': Known: dtkd, fixed"):
        lookup({"fixed": 1, "dtkd": 2}, "zzz", "rule")


@pytest.mark.parametrize("spec", ["FIXED:4", "Fixed", "fixd:4", "fixd:teacher"])
def test_a_rule_in_capitals_or_misspelt_is_no_module(spec: str) -> None:
    with pytest.raises(BadInputError, match="did you mean 'fixed'"):
        load_method(spec)


def test_a_spec_is_split_at_its_first_colon() -> None:
    assert split_spec("a") == ("a", "")
    assert split_spec("a:b=c:d") == ("a", "b=c:d")


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ("", (1, 2)),
        ("4", (4, 2)),
        ("1e-3", (0.001, 2)),
        ("second=5", (1, 5)),
        ("3,second=true", (3, True)),
        ("first=null,second=a.b", (None, "a.b")),
        ("first=a=b", ("a=b", 2)),
    ],
)
def test_options_are_read_as_json_where_they_are_json(options: str, expected: tuple[Any, Any]) -> None:
    assert call_with_options(demo, options, f"demo:{options}") == expected


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ("third=1", "unknown option of 'demo' 'third': .*Known: first, second"),
        ("secnd=1", "did you mean 'second'"),
        ("1,2", "cannot read '2'. Write options as key=value,key=value"),
        ("second=1,3", "cannot read '3'"),
        ("1,first=2", "option 'first' is given twice"),
    ],
)
def test_options_that_cannot_be_read_are_refused(options: str, named: str) -> None:
    with pytest.raises(BadInputError, match=named):
        call_with_options(demo, options, f"demo:{options}")


def test_a_value_to_what_takes_none_and_a_missing_option_are_refused() -> None:
    with pytest.raises(BadInputError, match="cannot read '4'"):
        call_with_options(lambda: 1, "4", "nothing:4")
    with pytest.raises(BadInputError, match=r"'needy': .*missing"):
        call_with_options(lambda needed: needed, "", "needy")


@pytest.mark.parametrize("spec", ["no_such_module:x", "math:no_such_attribute"])
def test_what_cannot_be_imported_says_what_is_needed(spec: str) -> None:
    with pytest.raises(BadInputError, match=f"cannot import '{spec}'.*Needed: module:attribute"):
        import_attribute(spec)
