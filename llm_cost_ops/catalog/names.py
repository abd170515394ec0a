"""Finds the model that a name means."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from datetime import date

from llm_cost_ops.catalog.bundle import CatalogError, Match

__all__ = ["NameTable", "check_match", "matches"]

# As long as a model's id may be: no pattern is tried on more.
_MAX_NAME = 255
_MAX_PATTERN = 200
_COMPACT_DATE = re.compile(r"-(20\d{2})(\d{2})(\d{2})(?=[-:]|$)", re.ASCII)


class NameTable:
    """The names of one provider's models: exact ones first, then patterns in their order."""

    def __init__(self, names: Mapping[str, int], patterns: Sequence[tuple[int, Match]]) -> None:
        self._names = names
        self._patterns = patterns

    def find(self, name: str) -> int | None:
        """The place of the model that a name means, whatever its case; None when it means none."""
        lowered = name.lower()
        place = self._find(lowered)
        if place is None and (spelt := _COMPACT_DATE.sub(_spelt_out, lowered)) != lowered:
            place = self._find(spelt)
        return place

    def _find(self, name: str) -> int | None:
        place = self._names.get(name)
        if place is None and len(name) <= _MAX_NAME:
            return next((place for place, pattern in self._patterns if matches(pattern, name)), None)
        return place


def matches(pattern: Match, name: str) -> bool:
    """Whether a pattern matches a lower-cased name. Raises CatalogError for a broken expression."""
    match pattern.kind:
        case "starts_with":
            return name.startswith(pattern.text)
        case "ends_with":
            return name.endswith(pattern.text)
        case "contains":
            return pattern.text in name
        case "equals":
            return name == pattern.text
        case "or":
            return any(matches(part, name) for part in pattern.parts)
        case "and":
            return all(matches(part, name) for part in pattern.parts)
        case "regex":
            try:
                return re.search(pattern.text, name) is not None
            except re.error as error:
                raise CatalogError(f"the price catalog has a broken pattern: {error}") from error


def check_match(pattern: Match, depth: int = 0) -> None:
    """Refuses patterns that are broken, empty, or could take long on some name. Raises CatalogError.

    An expression may repeat without end at most twice, and never a group: what is left is at worst
    quadratic in a name's 255 characters.
    """
    if depth > 8:
        raise CatalogError("the price catalog has patterns nested too deep")
    if pattern.kind in ("or", "and"):
        if not pattern.parts:
            raise CatalogError("the price catalog has an empty pattern")
        for part in pattern.parts:
            check_match(part, depth + 1)
    elif not pattern.text:
        raise CatalogError("the price catalog has an empty pattern")
    elif pattern.kind == "regex":
        _check_expression(pattern.text)


def _check_expression(text: str) -> None:
    bare = re.sub(r"\\.|\[[^\]]*\]", "x", text)
    repeats = len(re.findall(r"[*+]|,\}", bare))
    if len(text) > _MAX_PATTERN or repeats > 2 or re.search(r"\)(?:[*+]|\{)", bare):
        raise CatalogError(f"the price catalog has a pattern that could take long: {text[:64]!r}")
    try:
        re.compile(text)
    except re.error as error:
        raise CatalogError(f"the price catalog has a broken pattern: {error}") from error


def _spelt_out(found: re.Match[str]) -> str:
    year, month, day = map(int, found.groups())
    try:
        return f"-{date(year, month, day).isoformat()}"
    except ValueError:
        return found[0]
