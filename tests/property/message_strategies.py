"""Hypothesis strategies for generated messages, from their types alone."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import msgspec
from hypothesis import strategies as st
from msgspec import inspect

__all__ = ["messages"]

TEXT = st.one_of(
    st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=10),
    st.text(",\\%&=+[] ;/?#é\"'", max_size=5),
)
_MOMENTS = st.datetimes(datetime(1970, 1, 1), datetime(9999, 12, 31), timezones=st.just(UTC))
_JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | TEXT,
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(TEXT, inner, max_size=2),
    max_leaves=4,
)
_DECIMALS = st.decimals(min_value=0, max_value=10**9, places=12).map(
    lambda number: Decimal(f"{number.normalize():f}")
)


def messages(kind: type[msgspec.Struct]) -> st.SearchStrategy[Any]:
    """Messages of a type, with about a third of the fields set."""
    optional = {
        field.name: _values(inspect.type_info(field.type))
        for field in msgspec.structs.fields(kind)
        if field.name != "unknown_"
    }
    return st.fixed_dictionaries({}, optional=optional).map(lambda values: kind(**values))


def _values(info: inspect.Type) -> st.SearchStrategy[Any]:
    if isinstance(info, inspect.UnionType):
        return st.one_of(*(_values(part) for part in info.types))
    if isinstance(info, inspect.IntType):
        return st.integers(info.ge, info.le)
    if isinstance(info, inspect.ListType):
        return st.lists(_values(info.item_type), max_size=2)
    if isinstance(info, inspect.DictType):
        return st.dictionaries(TEXT, _values(info.value_type), max_size=2)
    if isinstance(info, inspect.StructType):
        return messages(info.cls)
    if isinstance(info, inspect.EnumType):
        return st.sampled_from(info.cls)
    return {
        inspect.NoneType: st.none(),
        inspect.StrType: TEXT,
        inspect.BoolType: st.booleans(),
        inspect.FloatType: st.floats(allow_nan=False, allow_infinity=False),
        inspect.BytesType: st.binary(max_size=8),
        inspect.DateTimeType: _MOMENTS,
        inspect.TimeDeltaType: st.timedeltas(timedelta(0), timedelta(days=9)),
        inspect.CustomType: _DECIMALS,
        inspect.DecimalType: _DECIMALS,
        inspect.AnyType: _JSON,
    }[type(info)]
