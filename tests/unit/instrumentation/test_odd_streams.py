"""Streams of events as servers and gateways write them: the caller's events are those of a bare SDK."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from llm_cost_ops import CostOpsClient
from llm_cost_ops.types import UsageQuality
from tests.sdk_stub import INPUT, OUTPUT, events_of
from tests.unit.instrumentation.matrix import records_of

httpx2 = pytest.importorskip("httpx2", reason="needs the extra [sdks]")
openai = pytest.importorskip("openai", reason="needs the extra [sdks]")
anthropic = pytest.importorskip("anthropic", reason="needs the extra [sdks]")

PING = ": ping\n\n"


def plain(name: str, text: str) -> str:
    return (f"event: {name}\n" if name else "") + f"data: {text}\n\n"


def spread(name: str, text: str) -> str:
    """The data in two lines: the end of a line is white space in JSON."""
    start, comma, rest = text.partition(",")
    lines = f"data: {start}{comma}\ndata:{rest}\n" if comma else f"data:{text}\n"
    return (f"event: {name}\n" if name else "") + lines + "id: 1\nretry: 100\n\n"


FORMS: dict[str, Callable[[list[tuple[str, str]]], str]] = {
    "plain": lambda events: "".join(plain(*each) for each in events),
    "CRLF": lambda events: "".join(plain(*each) for each in events).replace("\n", "\r\n"),
    "CR": lambda events: "".join(plain(*each) for each in events).replace("\n", "\r"),
    "no space": lambda events: "".join(plain(*each) for each in events).replace("data: ", "data:"),
    "data in two lines": lambda events: "".join(spread(*each) for each in events),
    "kept alive": lambda events: PING * 300 + (PING * 300).join(plain(*each) for each in events),
    "no end of the last event": lambda events: "".join(plain(*each) for each in events).rstrip("\n"),
    "byte order mark": lambda events: "\ufeff" + "".join(plain(*each) for each in events),
}
# The usage in two events, and twice in each of them, cumulative; with a ping of the provider's own.
CLAUDE = [
    ("ping", {"type": "ping"}),
    ("message_delta", {"type": "message_delta", "delta": {}, "usage": {"output_tokens": 3}}),
]


def body_of(api: str, form: str) -> bytes:
    found = [(name, data if isinstance(data, str) else json.dumps(data)) for name, data in events_of(api)]
    if api == "/v1/messages":
        found[2:2] = [(name, json.dumps(data)) for name, data in CLAUDE]
    return FORMS[form](found).encode()


def answering(body: bytes, size: int) -> Any:
    """A transport that answers with this body, in pieces of a size."""

    def pieces() -> Iterator[bytes]:
        for at in range(0, len(body), size):
            yield body[at : at + size]

    kind = {"content-type": "text/event-stream"}
    return httpx2.MockTransport(lambda _: httpx2.Response(200, headers=kind, content=pieces()))


def chat(http: Any) -> tuple[Any, Callable[[], list[Any]]]:
    sdk = openai.OpenAI(api_key="k", http_client=http)
    asked: Any = {"model": "gpt-4o", "messages": [{"role": "user", "content": "hi"}], "stream": True}
    return sdk, lambda: [chunk for chunk in sdk.chat.completions.create(**asked) if chunk.choices]


def responses(http: Any) -> tuple[Any, Callable[[], list[Any]]]:
    sdk = openai.OpenAI(api_key="k", http_client=http)
    return sdk, lambda: list(sdk.responses.create(model="gpt-4o", input="hi", stream=True))


def messages(http: Any) -> tuple[Any, Callable[[], list[Any]]]:
    sdk = anthropic.Anthropic(api_key="k", http_client=http)
    asked: Any = {"model": "claude-stub", "max_tokens": 9, "messages": [{"role": "user", "content": "hi"}]}
    return sdk, lambda: list(sdk.messages.create(**asked, stream=True))


APIS = {"/chat/completions": chat, "/responses": responses, "/v1/messages": messages}


def read(call: Callable[[], list[Any]]) -> Any:
    """What the caller gets: the events, or the error."""
    try:
        return [event.model_dump() for event in call()]
    except Exception as error:  # noqa: BLE001  # each SDK has its own
        return repr(error)


@pytest.mark.parametrize("size", [1, 1000])
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("api", APIS)
def test_the_callers_events_are_those_of_a_bare_sdk(
    client: CostOpsClient, api: str, form: str, size: int
) -> None:
    body = body_of(api, form)
    with httpx2.Client(transport=answering(body, size)) as http:
        _, call = APIS[api](http)
        expected = read(call)
    with httpx2.Client(transport=answering(body, size)) as http:
        sdk, call = APIS[api](http)
        client.instrument(sdk)
        assert read(call) == expected
    [record] = records_of(client)
    assert record.quality is not UsageQuality.UNKNOWN
    assert (record.input_tokens, record.output_tokens) == (INPUT, OUTPUT)
