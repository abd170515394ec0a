"""The signatures on the page Reference say what they take and give: `Any` has a reason."""

from __future__ import annotations

import importlib
import inspect
import re
from collections.abc import Callable, Iterator
from enum import Enum
from pathlib import Path
from typing import Any

import msgspec

PAGE = Path(__file__).resolve().parents[2] / "docs" / "reference.md"
DIRECTIVE = re.compile(r"^\.\. auto(module|class):: (\S+)\n((?:   :.*\n)*)", re.MULTILINE)

_MADE = "made by a client, never by its user"
_EVERY_MESSAGE = "for the messages of every method"
_BELOW = "configurations know no messages and exporters, which are layers above them"
_MACHINERY = "calls know neither who is allowed what, nor how often it is tried again"
EXCEPTIONS = {
    "_Pages.pagination": "each list has its own",
    "Pager": _MADE,
    "RawResponse": _MADE,
    "MetricsConfig.exporters": _BELOW,
    "RecorderConfig.on_result": _BELOW,
    "RecorderConfig.on_error": _BELOW,
    "Transport.unary_unary": _EVERY_MESSAGE,
    "StreamingTransport.unary_stream": _EVERY_MESSAGE,
    "StreamingTransport.stream_stream": _EVERY_MESSAGE,
    "Serializer.decode": _EVERY_MESSAGE,
    "ScriptedTransport.requests": _EVERY_MESSAGE,
    "Received.request": _EVERY_MESSAGE,
    "Delay.step": _EVERY_MESSAGE,
    "compose": _EVERY_MESSAGE,
    "CallContext.method": _EVERY_MESSAGE,
    "CallContext.principal": _MACHINERY,
    "CallContext.retry": _MACHINERY,
    "memory_client": "what the client takes",
    "async_memory_client": "what the client takes",
}


def _documented() -> Iterator[type | Callable[..., object]]:
    """What the page's directives name."""
    for kind, name, options in DIRECTIVE.findall(PAGE.read_text(encoding="utf-8")):
        if kind == "class":
            module, _, name = name.rpartition(".")
            yield getattr(importlib.import_module(module), name)
            continue
        module = importlib.import_module(name)
        members = re.search(r":members: *(.*)", options)
        listed = members[1].replace(",", " ").split() if members else []
        yield from (getattr(module, each) for each in listed or module.__all__)


def _annotations(found: Any) -> str:
    """The text of a signature; "" of what has none."""
    if isinstance(found, property):
        found = found.fget
    try:
        signature = inspect.signature(found)
    except (TypeError, ValueError):
        return ""
    named = [p.annotation for p in signature.parameters.values()] + [signature.return_annotation]
    return " ".join(each if isinstance(each, str) else inspect.formatannotation(each) for each in named)


def _signatures() -> Iterator[tuple[str, str]]:
    for found in _documented():
        name: str = getattr(found, "__name__", "")
        if not isinstance(found, type):
            yield name, _annotations(found)
            continue
        if issubclass(found, Enum):
            continue
        yield name, "" if issubclass(found, msgspec.Struct) else _annotations(found.__init__)
        for owner in found.__mro__:
            for member, value in vars(owner).items():
                shown = getattr(value, "__doc__", None) and not member.startswith("_")
                if shown and (callable(value) or isinstance(value, property | classmethod | staticmethod)):
                    yield f"{owner.__name__}.{member}", _annotations(getattr(value, "__func__", value))
            for member, annotation in vars(owner).get("__annotations__", {}).items():
                if owner.__module__.startswith("llm_cost_ops") and not member.startswith("_"):
                    yield f"{owner.__name__}.{member}", str(annotation)


def test_every_any_has_its_reason() -> None:
    # A JSON object is dict[str, Any]: its values may be anything.
    found = {
        name for name, text in _signatures() if re.search(r"\bAny\b", text.replace("dict[str, Any]", "JSON"))
    }
    assert sorted(found - EXCEPTIONS.keys()) == []
    assert sorted(EXCEPTIONS.keys() - found) == [], "an exception that is none any more"


def test_the_page_is_read() -> None:
    assert len({name for name, _ in _signatures()}) > 400
