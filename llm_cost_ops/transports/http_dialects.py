"""Reading answers of servers that keep the documented shapes in other ways than ours."""

from __future__ import annotations

from typing import Any

import msgspec

from llm_cost_ops.rpc.method import MethodDescriptor

__all__ = ["Dialect"]

# What servers call the fields of a page, beside the documented names.
_ALIASES = {
    "limit": "page_size",
    "per_page": "page_size",
    "total": "total_items",
    "total_count": "total_items",
    "pages": "total_pages",
    "has_more": "has_next",
    "has_previous": "has_prev",
    "next": "next_cursor",
    "current_page": "page",
}
_FOREIGN = _ALIASES.keys() - {"per_page"}
_OURS = {"page", "page_size", "per_page", "has_next", "has_prev", "next_cursor"}
_NAMES = frozenset(("page", "page_size", "total_items", "total_pages", "has_next", "has_prev", "next_cursor"))

_RAW = msgspec.json.Decoder(dict[str, msgspec.Raw])
_ANY = msgspec.json.Decoder(dict[str, Any])


class Dialect:
    """How a method's answer is brought into its message's shape before it is decoded.

    An object without "data" is taken as the data, where the method returns that; a bare list as
    the data of a list. The fields of a page may have other names, stand beside the data, or be
    missing where they follow from the others.
    """

    def __init__(self, method: MethodDescriptor[Any, Any]) -> None:
        fields = {field.name: field for field in msgspec.structs.fields(method.response.type)}
        self._wraps = method.unwrap == "data"
        self._pages = "data" in fields and "pagination" in fields

    def normalize(self, body: bytes) -> bytes:
        """The body, changed only where it has to be. Raises ValueError when it is not JSON."""
        if self._wraps:
            if body.startswith(b'{"data":') or "data" in _RAW.decode(body):
                return body
            return b'{"data":' + body + b"}"
        if not self._pages:
            return body
        if body.lstrip()[:1] == b"[":
            return b'{"data":' + body + b"}"
        return _page(body)


def _page(body: bytes) -> bytes:
    envelope = _RAW.decode(body)
    raw = envelope.get("pagination")
    told = {} if raw is None or bytes(raw) == b"null" else _ANY.decode(raw)
    if told.keys() >= _OURS and not told.keys() & _FOREIGN and None not in map(told.get, _OURS):
        return body
    if not told:
        beside = [name for name in envelope if name in _NAMES or name in _ALIASES]
        told = {name: msgspec.json.decode(envelope.pop(name)) for name in beside}
        if not told:
            return body
    envelope["pagination"] = msgspec.Raw(msgspec.json.encode(_completed(told)))
    return msgspec.json.encode(envelope)


def _completed(told: dict[str, Any]) -> dict[str, Any]:
    page = {name: value for name, value in told.items() if value is not None and name not in _ALIASES}
    for alias, name in _ALIASES.items():
        value = told.get(alias)
        if value is not None:
            page.setdefault(name, value)
    size, number, items = (_count(page.get(name)) for name in ("page_size", "page", "total_items"))
    if "page_size" in page:
        page.setdefault("per_page", page["page_size"])
    if items is not None and size and items < size << 31:
        page.setdefault("total_pages", -(-items // size))
    pages = _count(page.get("total_pages"))
    page.setdefault("has_next", bool(page.get("next_cursor")) or (number or 1) < (pages or 0))
    page.setdefault("has_prev", (number or 0) > 1)
    return page


def _count(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else None
