"""Emits openapi.json: the REST interface as an OpenAPI 3.1 document."""

from __future__ import annotations

import json
import re
from typing import Any

from tools.codegen.kinds import RANGES
from tools.codegen.nodes import Enum, Field, Message, Method, Package, Type

__all__ = ["emit_openapi"]

Json = dict[str, Any]

_LINES = "application/x-ndjson"
_PRINTABLE = r"^[^\u0000-\u001f\u007f-\u009f]*$"
_DECIMAL = r"^-?[0-9]+(\.[0-9]+)?$"
_OVERVIEW = """\
Record what LLM calls use, and read back exactly what they cost.

- **Keys.** A server that has API keys takes one as `Authorization: Bearer lco_…`. Without keys, on \
loopback, none is needed.
- **Errors** have one form, `Error`, on every route; `code` is for programs.
- **Money** is text, in plain decimal notation, so that no reader rounds it.
- **Repeats.** A write whose idempotency key was used before changes nothing: the same content is \
answered as the first time, other content with 409.
- **Pages.** Send `next_cursor` as `cursor` until `has_next` is false.
- **Streams** are NDJSON, both ways: a JSON object a line.
"""
_HEADERS: Json = {
    "X-Request-Id": {
        "description": "The request's id, the caller's or made by the server, as in the server's log.",
        "schema": {"type": "string"},
    },
    "Retry-After": {
        "description": "In how many seconds to try again; `Retry-After-Ms` has milliseconds.",
        "schema": {"type": "integer", "minimum": 0},
    },
}
_PARAMETERS: Json = {
    "RequestId": {
        "name": "X-Request-Id",
        "in": "header",
        "description": "An id for the request, to find it in logs: up to 128 letters, digits and `._:/+=@-`. "
        "Any other is replaced.",
        "schema": {"type": "string"},
    },
    "Deadline": {
        "name": "grpc-timeout",
        "in": "header",
        "description": "How long the caller waits: up to eight digits and a unit (H, M, S, m, u or n), as in "
        "gRPC. The server gives up then, with 504.",
        "schema": {"type": "string"},
        "example": "30S",
    },
    "IdempotencyKey": {
        "name": "Idempotency-Key",
        "in": "header",
        "description": "The key of a request whose body names none: sent again, it counts once.",
        "schema": {"type": "string", "maxLength": 255},
    },
    "Unknown": {
        "name": "unknown",
        "in": "query",
        "description": "Whether fields that this version does not know are refused by name, or kept.",
        "schema": {"type": "string", "enum": ["refuse", "keep"], "default": "refuse"},
    },
}
_ERRORS = {
    "400": (
        "BadRequest",
        "A field, a parameter or the body is wrong; `details` names each, and the rule.",
    ),
    "401": ("Unauthenticated", "The API key is missing, unknown, expired or revoked."),
    "403": ("Forbidden", "The key may not do this, or not in this organization."),
    "404": ("NotFound", "There is no such thing, or the key may not see it."),
    "409": ("Conflict", "The idempotency key was used before, with other content."),
    "413": ("TooLarge", "The body is larger than the server takes."),
    "415": ("WrongMediaType", "The body is of another type or encoding."),
    "429": ("TooManyRequests", "Too much at a time. Nothing was done: try again after `Retry-After`."),
    "503": ("Unavailable", "The server can't answer now. Try again with the same idempotency key."),
    "504": ("DeadlineExceeded", "The deadline passed. A write may have been made: the same key tells."),
    "default": ("Failed", "Any other failure."),
}
_WAITING = ("429", "503")
_ERROR: Json = {
    "type": "object",
    "required": ["error", "request_id"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["code", "message", "details"],
            "properties": {
                "code": {"type": "string", "description": "For programs.", "examples": ["INVALID_ARGUMENT"]},
                "message": {"type": "string", "description": "For people."},
                "details": {
                    "type": "array",
                    "description": "The fields that are wrong, and the rule that each breaks.",
                    "items": {
                        "type": "object",
                        "required": ["field", "description"],
                        "properties": {"field": {"type": "string"}, "description": {"type": "string"}},
                    },
                },
            },
        },
        "request_id": {"type": "string"},
    },
}
_KEY: Json = {"type": "http", "scheme": "bearer", "description": "`llm-cost-ops keys create` makes one."}


def emit_openapi(package: Package) -> str:
    """The text of openapi.json."""
    methods = [method for method in package.methods if method.verb]
    shown: dict[str, Message] = {}
    for method in methods:
        for message in (method.request, method.response):
            # A request that has no body is told by its parameters.
            if message is method.response or method.options.http.body:
                shown |= {message.name: message} | {each.name: each for each in message.within.values()}
    paths: Json = {}
    for method in methods:
        paths.setdefault(method.path, {})[method.verb.lower()] = _operation(method)
    used = {name for path in paths.values() for name in _references(path)}
    bodies = {
        name
        for path in paths.values()
        for each in path.values()
        for name in _references(each.get("requestBody"))
    }
    closed = _closure(bodies, shown)
    schemas = {name: _object(shown[name], closed=name in closed) for name in _closure(used, shown)}
    enums = {enum.name: _enum(enum) for enum in package.enums}
    named = {name for schema in (*schemas.values(), paths) for name in _references(schema)}
    schemas |= {name: enum for name, enum in enums.items() if name in named}
    document: Json = {
        "openapi": "3.1.1",
        "info": {"title": "llm_cost_ops", "version": "v1", "description": _OVERVIEW},
        "security": [{"ApiKey": []}, {}],
        "tags": [
            {"name": service.resource, "description": service.comment.strip()}
            for service in package.services
            if any(method.verb for method in service.methods)
        ],
        "paths": paths,
        "components": {
            "securitySchemes": {"ApiKey": _KEY},
            "parameters": _PARAMETERS,
            "headers": _HEADERS,
            "responses": {name: _failure(status, words) for status, (name, words) in _ERRORS.items()},
            "schemas": {**dict(sorted(schemas.items())), "Error": _ERROR},
        },
    }
    return json.dumps(document, indent=1, ensure_ascii=False) + "\n"


def _references(value: object) -> set[str]:
    """The schemas that a piece of the document names."""
    return set(re.findall(r'"#/components/schemas/(\w+)"', json.dumps(value)))


def _closure(names: set[str], messages: dict[str, Message]) -> list[str]:
    found: dict[str, None] = {}
    todo = sorted(names & messages.keys())
    while todo:
        name = todo.pop()
        if name not in found:
            found[name] = None
            todo += sorted(_references(_object(messages[name])) & messages.keys())
    return list(found)


def _failure(status: str, words: str) -> Json:
    headers: Json = {"X-Request-Id": {"$ref": "#/components/headers/X-Request-Id"}}
    if status in _WAITING:
        headers["Retry-After"] = {"$ref": "#/components/headers/Retry-After"}
    content = {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}}
    return {"description": words, "headers": headers, "content": content}


def _operation(method: Method) -> Json:
    summary, _, rest = method.comment.strip().partition(". ")
    operation: Json = {
        "operationId": f"{method.service.resource}_{method.python_name}",
        "tags": [method.service.resource],
        "summary": " ".join(summary.split()).rstrip("."),
    }
    if rest:
        operation["description"] = rest
    operation["parameters"] = _parameters(method)
    if method.options.http.body:
        operation["requestBody"] = _body(method)
    operation["responses"] = _responses(method)
    return operation


def _parameters(method: Method) -> list[Json]:
    fields = method.request.flat
    parameters = [_parameter(field, where) for field in fields if (where := method.place(field))]
    shared = ["RequestId", "Deadline"]
    if method.key_path and not any(each.many for each in method.key_path):
        shared.append("IdempotencyKey")
    if method.options.http.body:
        shared.append("Unknown")
    return parameters + [{"$ref": f"#/components/parameters/{name}"} for name in shared]


def _parameter(field: Field, where: str) -> Json:
    schema = _schema(field, given=True, in_text=True)
    description = schema.pop("description", "")
    if field.options.rest_alias:
        description += f" Also as `{'`, `'.join(field.options.rest_alias)}`."
    parameter: Json = {"name": field.name if where == "path" else field.rest_name, "in": where}
    if where == "path" or field.options.rules.required:
        parameter["required"] = True
    if field.cardinality == "map":
        parameter |= {"style": "deepObject", "explode": True}
    elif field.cardinality == "repeated":
        parameter |= {"style": "form", "explode": True}
        description += " Repeated, or separated by commas."
    if where == "path":
        schema["minLength"] = 1
    return parameter | {"description": description, "schema": schema}


def _body(method: Method) -> Json:
    message = method.made
    kind = _LINES if method.cardinality.startswith("stream") else "application/json"
    content: Json = {"schema": {"$ref": f"#/components/schemas/{message.name}"}}
    if kind != _LINES and (example := _example(message)):
        content["example"] = example
    described: Json = {"required": True, "content": {kind: content}}
    if kind == _LINES:
        described["description"] = f"A `{message.name}` a line."
    return described


def _responses(method: Method) -> Json:
    rule, streamed = method.options.http, method.cardinality.endswith("stream")
    message = method.response
    if rule.response_body:
        message = method.response.field(rule.response_body).type.message or message
    success: Json = {
        "description": f"A `{message.name}` a line." if streamed else "Done.",
        "headers": {"X-Request-Id": {"$ref": "#/components/headers/X-Request-Id"}},
        "content": {
            _LINES if streamed else "application/json": {
                "schema": {"$ref": f"#/components/schemas/{message.name}"}
            }
        },
    }
    responses: Json = {str(method.options.http_status or 200): success}
    if method.key_path and method.options.http_status == 201:
        repeated = success | {"description": "It was there before: the first answer again."}
        responses = {"200": repeated, "201": success | {"description": "Created."}}
    for status, (name, _) in _ERRORS.items():
        left_out = {"404": "{" not in method.path, "409": not method.key_path}
        left_out |= dict.fromkeys(("413", "415"), not rule.body)
        if not left_out.get(status):
            responses[status] = {"$ref": f"#/components/responses/{name}"}
    return responses


def _object(message: Message, *, closed: bool = False) -> Json:
    """The schema of a message's JSON; `closed` to fields that this version does not know."""
    schema: Json = {"type": "object"}
    if message.comment.strip():
        schema["description"] = message.comment.strip()
    if required := [field.rest_name for field in message.flat if _is_required(field)]:
        schema["required"] = required
    schema["properties"] = {field.rest_name: _schema(field, given=closed) for field in message.flat}
    if closed:
        schema["additionalProperties"] = False
    return schema


def _is_required(field: Field) -> bool:
    # A record without its organization is given that of the key.
    return field.options.rules.required and field.name != "organization_id"


def _enum(enum: Enum) -> Json:
    values = list(dict.fromkeys(value.value for value in enum.values))
    words = "\n".join(f"- `{value.value}`: {' '.join(value.comment.split())}" for value in enum.values)
    return {"type": "string", "description": f"{enum.comment.strip()}\n\n{words}", "enum": values}


def _schema(field: Field, *, given: bool, in_text: bool = False) -> Json:
    """The schema of a field; `given` where callers send it, `in_text` as a parameter has it."""
    rules = field.options.rules
    one = _value(field, field.type, given=given)
    if field.cardinality == "map":
        schema: Json = {"type": "object", "additionalProperties": one}
        if rules.max_items is not None:
            schema["maxProperties"] = rules.max_items
    elif field.cardinality == "repeated":
        schema = {"type": "array", "items": one}
        if rules.max_items is not None:
            schema["maxItems"] = rules.max_items
        if rules.required:
            schema["minItems"] = 1
    elif field.nullable and not rules.required and not in_text:
        schema = _or_null(one)
    else:
        schema = one
    if field.options.example:
        schema["examples"] = [_typed(field)]
    if comment := " ".join(field.comment.split()):
        schema["description"] = comment
    return schema


def _or_null(schema: Json) -> Json:
    if isinstance(schema.get("type"), str) and "enum" not in schema:
        return schema | {"type": [schema["type"], "null"]}
    return {"anyOf": [schema, {"type": "null"}]}


def _value(field: Field, kind: Type, *, given: bool) -> Json:
    """The schema of one value of a field."""
    rules = field.options.rules
    named = kind.message or kind.enum
    if named is not None:
        return {"$ref": f"#/components/schemas/{named.name}"}
    if kind.annotation in RANGES:
        low, high = RANGES[kind.annotation]
        return {
            "type": "integer",
            "format": kind.annotation.lower(),
            "minimum": low if rules.minimum is None else max(low, rules.minimum),
            "maximum": high if rules.maximum is None else min(high, rules.maximum),
        }
    schema = dict(_KINDS.get(kind.scalar, {"type": "string"}))
    if field.options.moment:
        schema["anyOf"] = [{"format": "date-time"}, {"format": "date"}, {"const": ""}]
    if kind.scalar == "string" and rules.max_length is not None:
        schema["maxLength"] = rules.max_length
    if kind.scalar == "string" and rules.required:
        schema["minLength"] = 1
    if given and kind.scalar == "string" and not rules.multiline and not field.options.moment:
        schema.setdefault("pattern", _PRINTABLE)
    return schema


_KINDS: dict[str, Json] = {
    "bool": {"type": "boolean"},
    "double": {"type": "number"},
    "float": {"type": "number"},
    "bytes": {"type": "string", "contentEncoding": "base64"},
    "decimal": {"type": "string", "pattern": _DECIMAL},
    "timestamp": {"type": "string", "format": "date-time"},
    "raw_json": {"type": "object"},
    "struct": {"type": "object"},
    "list_value": {"type": "array"},
    "value": {},
}


def _typed(field: Field) -> object:
    """The example of a field, as JSON has it."""
    text = field.options.example
    return int(text) if field.type.annotation in RANGES else text


def _example(message: Message) -> Json:
    """A body out of the examples of its fields, and of those of the messages in it that must be there."""
    example: Json = {}
    for field in message.flat:
        if field.options.example:
            value = _typed(field)
            example[field.rest_name] = [value] if field.cardinality == "repeated" else value
        elif field.options.rules.required and field.type.message is not None:
            inner = _example(field.type.message)
            example[field.rest_name] = [inner] if field.cardinality == "repeated" else inner
    return example
