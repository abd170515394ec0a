"""Messages as rows of a table: dicts, and frames of pandas and polars, which are loaded when asked for."""

from __future__ import annotations

import enum
from collections.abc import Iterable, Iterator
from decimal import Decimal
from importlib import import_module
from typing import TYPE_CHECKING, Any, ClassVar

import msgspec

from llm_cost_ops.lazy import missing_library

if TYPE_CHECKING:
    import pandas as pd
    import polars as pl

__all__ = ["Table", "rows_of", "to_pandas", "to_polars"]

Row = dict[str, Any]

# The fields that say of which group an item is: lists of dimension and value.
_KEYS = ("keys", "group")


class Table:
    """What can be said as a table: a summary by its groups, a series by its points, a page by its items.

    A row has the fields of an item under their names. Groups have a column for each dimension, and metrics
    stand beside the time of their point; any other message in an item is a dict.
    """

    __slots__ = ()

    rows_in_: ClassVar[str] = ""

    def to_dicts(self) -> list[Row]:
        """The rows as dicts: amounts are Decimal, times datetime in UTC, enums their texts."""
        return rows_of(getattr(self, self.rows_in_))

    def to_pandas(self, *, floats: bool = False) -> pd.DataFrame:
        """The rows as a DataFrame of pandas.

        Amounts are Decimal objects, exactly; with `floats` they are float64, as plots want them, and may be
        off in the sixteenth digit. Raises ImportError when pandas is not installed.
        """
        return to_pandas(self.to_dicts(), floats=floats)

    def to_polars(self, *, floats: bool = False) -> pl.DataFrame:
        """The rows as a DataFrame of polars: amounts are of its Decimal, exactly, or with `floats` Float64.

        Maps, such as labels, are structs; those that are empty are missing.

        Raises ImportError when polars is not installed.
        """
        return to_polars(self.to_dicts(), floats=floats)


def rows_of(items: Iterable[msgspec.Struct]) -> list[Row]:
    """A row for each message."""
    return [dict(_cells(item)) for item in items]


def _cells(item: msgspec.Struct) -> Iterator[tuple[str, Any]]:
    names = [
        (field.name, field.encode_name) for field in msgspec.structs.fields(item) if field.name != "unknown_"
    ]
    keys = [key for name, _ in names if name in _KEYS for key in getattr(item, name)]
    yield from ((key.dimension, key.value) for key in keys)
    for name, rest_name in names:
        value = getattr(item, name)
        # A group's `dimension` and `value` are those of its first key.
        if name in _KEYS or (keys and name in ("dimension", "value")):
            continue
        if name == "metrics" and value is not None:
            yield from _cells(value)
        else:
            yield rest_name, _plain(value)


def _plain(value: Any) -> Any:
    if isinstance(value, enum.Enum):
        return str(value)
    if isinstance(value, msgspec.Struct):
        return dict(_cells(value))
    if isinstance(value, list):
        return [_plain(each) for each in value]
    return value


def to_pandas(rows: list[Row], *, floats: bool = False) -> pd.DataFrame:
    """The rows as a DataFrame of pandas."""
    frames = _library("pandas", "to_pandas")
    frame: pd.DataFrame = frames.DataFrame(_floated(rows) if floats else rows)
    return frame


def to_polars(rows: list[Row], *, floats: bool = False) -> pl.DataFrame:
    """The rows as a DataFrame of polars."""
    frames = _library("polars", "to_polars")
    # A struct without fields can't be written as Parquet.
    filled = [{name: None if value == {} else value for name, value in row.items()} for row in rows]
    frame: pl.DataFrame = frames.DataFrame(_floated(filled) if floats else filled, infer_schema_length=None)
    return frame


def _library(name: str, method: str) -> Any:
    try:
        return import_module(name)
    except ImportError as error:
        raise missing_library(error, method) from None


def _floated(rows: list[Row]) -> list[Row]:
    return [
        {name: float(value) if isinstance(value, Decimal) else value for name, value in row.items()}
        for row in rows
    ]
