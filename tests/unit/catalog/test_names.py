"""Patterns of names, and those that are refused."""

from __future__ import annotations

import time

import pytest

from llm_cost_ops.catalog import CatalogError
from llm_cost_ops.catalog.bundle import Match
from llm_cost_ops.catalog.names import NameTable, check_match, matches


@pytest.mark.parametrize(
    ("pattern", "name", "expected"),
    [
        (Match("starts_with", "gpt-"), "gpt-4", True),
        (Match("starts_with", "gpt-"), "a-gpt-4", False),
        (Match("ends_with", "-v1"), "nova-v1", True),
        (Match("contains", "nova"), "us.nova.1", True),
        (Match("equals", "nova"), "nova-1", False),
        (Match("regex", r"^nova-\d{8}$"), "nova-20260101", True),
        (Match("or", parts=[Match("equals", "a"), Match("equals", "b")]), "b", True),
        (Match("and", parts=[Match("starts_with", "a"), Match("ends_with", "b")]), "acb", True),
        (Match("and", parts=[Match("starts_with", "a"), Match("ends_with", "b")]), "ac", False),
    ],
)
def test_patterns(pattern: Match, name: str, expected: bool) -> None:
    assert matches(pattern, name) is expected


def test_a_compact_date_is_spelt_out_only_where_nothing_else_fits() -> None:
    table = NameTable({"m-2026-01-31": 1, "n-20260131": 2}, [])
    assert table.find("m-20260131") == 1
    assert table.find("M-20260131") == 1
    assert table.find("n-20260131") == 2
    assert table.find("m-20260231") is None
    assert table.find("m-202601311") is None


@pytest.mark.parametrize(
    "pattern",
    [
        Match("regex", r"^(a+)+$"),
        Match("regex", r"(a|a)*b"),
        Match("regex", r"(x{1,9}){9}"),
        Match("regex", r".*.*.*b"),
        Match("regex", r"a{1,}b{2,}c+"),
        Match("regex", "(" * 3),
        Match("regex", "a" * 201),
        Match("regex"),
        Match("starts_with"),
        Match("or"),
    ],
)
def test_patterns_that_are_broken_or_could_take_long_are_refused(pattern: Match) -> None:
    with pytest.raises(CatalogError):
        check_match(pattern)
    with pytest.raises(CatalogError):
        check_match(Match("or", parts=[Match("equals", "a"), pattern]))


def test_patterns_nested_too_deep_are_refused() -> None:
    pattern = Match("equals", "a")
    for _ in range(9):
        pattern = Match("or", parts=[pattern])
    with pytest.raises(CatalogError, match="too deep"):
        check_match(pattern)


def test_the_slowest_pattern_that_is_let_through_is_quick() -> None:
    pattern = Match("regex", r"a.*a.*b$")
    check_match(pattern)
    start = time.process_time()
    assert not matches(pattern, "a" * 255)
    assert time.process_time() - start < 1


def test_a_broken_expression_is_an_error_of_the_catalog() -> None:
    with pytest.raises(CatalogError, match="broken pattern"):
        matches(Match("regex", "("), "a")
