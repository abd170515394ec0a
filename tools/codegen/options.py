"""The options that the generator reads: those of llm_cost_ops/v1/options.proto, and google.api.http."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import betterproto

__all__ = ["HttpRule", "Options", "Rules", "read_options"]


@dataclass(eq=False, repr=False)
class Rules(betterproto.Message):
    """What a field's value must satisfy."""

    required: bool = betterproto.bool_field(1)
    max_length: int | None = betterproto.int32_field(2, optional=True)
    minimum: int | None = betterproto.int64_field(3, optional=True)
    maximum: int | None = betterproto.int64_field(4, optional=True)
    max_items: int | None = betterproto.int32_field(5, optional=True)
    multiline: bool = betterproto.bool_field(6)
    required_fields: list[str] = betterproto.string_field(7)


@dataclass(eq=False, repr=False)
class HttpRule(betterproto.Message):
    """A method in REST: `body` and `response_body` are "" or a field's name; `body` may be "*"."""

    get: str = betterproto.string_field(2, group="pattern")
    put: str = betterproto.string_field(3, group="pattern")
    post: str = betterproto.string_field(4, group="pattern")
    delete: str = betterproto.string_field(5, group="pattern")
    patch: str = betterproto.string_field(6, group="pattern")
    body: str = betterproto.string_field(7)
    response_body: str = betterproto.string_field(12)


@dataclass(eq=False, repr=False)
class Options(betterproto.Message):
    """The options of a field, a message, a method or a service: no number means two things."""

    decimal: bool = betterproto.bool_field(50001)
    rest_name: str = betterproto.string_field(50002)
    raw_json: bool = betterproto.bool_field(50003)
    rest_alias: list[str] = betterproto.string_field(50004)
    moment: bool = betterproto.bool_field(50005)
    itemized: bool = betterproto.bool_field(50006)
    example: str = betterproto.string_field(50007)
    rules: Rules = betterproto.message_field(50008)
    flatten: bool = betterproto.bool_field(50009)
    omit_defaults: bool = betterproto.bool_field(50101)
    rows: str = betterproto.string_field(50102)
    python_name: str = betterproto.string_field(50201)
    http_status: int = betterproto.int32_field(50202)
    idempotency_key: str = betterproto.string_field(50203)
    resource: str = betterproto.string_field(50301)
    http: HttpRule = betterproto.message_field(72295728)


def read_options(proto: Any) -> Options:
    """The options of a descriptor, in whose own options they are unknown fields."""
    return Options().parse(proto.options._unknown_fields)
