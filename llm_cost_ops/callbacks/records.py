"""Records of calls that a framework reports: from the provider's payload, or the framework's counts."""

from __future__ import annotations

import logging
import re
from collections import OrderedDict
from importlib.metadata import PackageNotFoundError, version
from typing import Any, Generic, TypeVar

from llm_cost_ops.imports.values import has_unsure_key, made, provider_of
from llm_cost_ops.normalizers import PayloadError, usage_from_response
from llm_cost_ops.normalizers.record import fit_texts, set_key
from llm_cost_ops.rules.providers import provider_named
from llm_cost_ops.types import UsageQuality, UsageRecord

__all__ = ["Open", "counted_record", "payload_record", "require", "unknown_record"]

_log = logging.getLogger("llm_cost_ops.callbacks")

T = TypeVar("T")

# Calls that begin and never end, as tasks that are dropped may: the oldest are forgotten.
_MAX_OPEN = 10_000


def require(package: str, oldest: str) -> None:
    """Raise ImportError where the installed version of a package is older than a callback can read.

    Nothing tells it in a program that was frozen without what pip knows of its packages.
    """
    try:
        found = version(package)
    except PackageNotFoundError:
        return
    if _numbers(found) < _numbers(oldest):
        raise ImportError(f"callbacks want {package} {oldest} or newer, and {found} is installed")


def _numbers(stated: str) -> list[int]:
    return [int(number) for number in re.findall(r"\d+", stated)[:3]]


class Open(Generic[T]):
    """What is known of calls that have begun, by their ids."""

    def __init__(self) -> None:
        self._begun: OrderedDict[str, T] = OrderedDict()

    def begin(self, call_id: str, known: T) -> None:
        """Remember a call."""
        self._begun[call_id] = known
        if len(self._begun) > _MAX_OPEN:
            self._begun.popitem(last=False)

    def find(self, call_id: str) -> T | None:
        """What is known of a call that has not ended."""
        return self._begun.get(call_id)

    def end(self, call_id: str) -> T | None:
        """What was known of a call, which is over."""
        return self._begun.pop(call_id, None)


def payload_record(
    payload: object, *, source: str, provider: str = "", model: str = "", api: str | None = None
) -> UsageRecord:
    """The record of a provider's answer; of unknown usage where it can't be read: the call is billed."""
    named: dict[str, Any] = {"provider": provider_named(provider)} if provider else {}
    try:
        record = usage_from_response(payload, api=api, **named)
    except (PayloadError, ValueError, TypeError) as error:
        _log.debug("an answer seen by %s could not be read: %s", source, error)
        record = UsageRecord(provider=provider_named(provider), quality=UsageQuality.UNKNOWN)
    return _finished(record, source, model)


def counted_record(
    *,
    source: str,
    provider: str,
    model: str,
    response_id: str = "",
    latency_ms: int | None = None,
    **counts: Any,
) -> UsageRecord:
    """The record of counts that a framework made of the provider's; `counts` are fields of UsageRecord.

    Without any tokens that went in it is of unknown usage: frameworks write 0 for what they do not know.
    """
    record = made(provider=provider_named(provider), model_id=model, **counts)
    record.latency_ms = latency_ms
    if not record.input_tokens:
        record.input_tokens = record.output_tokens = None
        record.quality = UsageQuality.UNKNOWN
    set_key(record, response_id)
    return _finished(record, source, model)


def unknown_record(*, source: str, provider: str, model: str, response_id: str = "") -> UsageRecord:
    """The record of a call that was broken off, or whose usage is not stated."""
    return counted_record(source=source, provider=provider, model=model, response_id=response_id)


def _finished(record: UsageRecord, source: str, model: str) -> UsageRecord:
    record.model_id = record.model_id or model or "unknown"
    record.provider = record.provider or provider_of(record.model_id) or "unknown"
    if has_unsure_key(record):
        record.idempotency_key = ""
    record.observation = True
    record.source = source
    fit_texts(record)
    return record
