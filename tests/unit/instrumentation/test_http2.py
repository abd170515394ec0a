"""Over HTTP/2 calls are recorded as over HTTP/1.1; frames end within events."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from llm_cost_ops import CostOpsClient
from llm_cost_ops.types import UsageQuality
from tests.sdk_stub import INPUT, OUTPUT, Stub
from tests.unit.instrumentation.matrix import records_of
from tests.waiting import MAX_WAIT

h2 = pytest.importorskip("h2.connection", reason="needs the extra [grpc]")
openai = pytest.importorskip("openai", reason="needs the extra [sdks]")
anthropic = pytest.importorskip("anthropic", reason="needs the extra [sdks]")
genai = pytest.importorskip("google.genai", reason="needs the extra [sdks]")
httpx2 = pytest.importorskip("httpx2", reason="needs the extra [sdks]")

pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::DeprecationWarning")
FRAME = 61


class Front(asyncio.Protocol):
    """Speaks HTTP/2 without TLS, and has the stub answer."""

    url: str
    connections = 0

    def connection_made(self, transport: Any) -> None:
        from h2.config import H2Configuration

        type(self).connections += 1
        self.transport = transport
        self.bodies: dict[int, tuple[dict[str, str], bytearray]] = {}
        self.tasks: set[asyncio.Task[None]] = set()
        self.h2 = h2.H2Connection(H2Configuration(client_side=False, header_encoding="utf-8"))
        self.h2.initiate_connection()
        self._flush()

    def data_received(self, data: bytes) -> None:
        from h2 import events

        for event in self.h2.receive_data(data):
            if isinstance(event, events.RequestReceived):
                self.bodies[event.stream_id] = (dict(event.headers), bytearray())
            elif isinstance(event, events.DataReceived):
                self.bodies[event.stream_id][1].extend(event.data)
                self.h2.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
            elif isinstance(event, events.StreamEnded):
                task = asyncio.ensure_future(self._answer(event.stream_id))
                self.tasks.add(task)
        self._flush()

    async def _answer(self, stream: int) -> None:
        asked, body = self.bodies.pop(stream)
        # The stub never sees its client's compression: what it sends is passed on as it is.
        async with httpx.AsyncClient(timeout=MAX_WAIT) as http:
            kept = {name: asked[name] for name in ("content-type",) if name in asked}
            address = f"{self.url}{asked[':path']}"
            answer = await http.request(asked[":method"], address, content=bytes(body), headers=kept)
        kind = answer.headers["content-type"]
        self.h2.send_headers(stream, [(":status", str(answer.status_code)), ("content-type", kind)])
        for at in range(0, len(answer.content), FRAME):
            self.h2.send_data(stream, answer.content[at : at + FRAME])
            self._flush()
            await asyncio.sleep(0)
        self.h2.end_stream(stream)
        self._flush()

    def _flush(self) -> None:
        self.transport.write(self.h2.data_to_send())


@pytest.fixture
def url(stub: Stub) -> Iterator[str]:
    front = type("OneFront", (Front,), {"url": stub.url})
    started, stop, found = threading.Event(), threading.Event(), []

    async def run() -> None:
        server = await asyncio.get_running_loop().create_server(front, "127.0.0.1", 0)
        found.append(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}")
        started.set()
        await asyncio.to_thread(stop.wait)
        server.close()

    thread = threading.Thread(target=lambda: asyncio.run(run()))
    thread.start()
    assert started.wait(MAX_WAIT)
    yield found[0]
    stop.set()
    thread.join(MAX_WAIT)
    assert front.connections == 1


def check(client: CostOpsClient, records: int) -> None:
    found = records_of(client)
    assert len(found) == records
    for record in found:
        assert (record.input_tokens, record.output_tokens) == (INPUT, OUTPUT)
        assert record.quality is not UsageQuality.UNKNOWN


async def test_openai(url: str, client: CostOpsClient) -> None:
    http = httpx2.AsyncClient(http1=False, http2=True)
    async with openai.AsyncOpenAI(api_key="k", base_url=f"{url}/v1", http_client=http) as sdk:
        client.instrument(sdk, provider="openai", stream_usage=True)

        async def one() -> int:
            asked: Any = {"model": "gpt-4o", "messages": [{"role": "user", "content": "hi"}], "stream": True}
            return len([chunk async for chunk in await sdk.chat.completions.create(**asked)])

        await sdk.responses.create(model="gpt-4o", input="hi")
        assert await asyncio.gather(*(one() for _ in range(10))) == [5] * 10
    check(client, 11)


def test_anthropic(url: str, client: CostOpsClient) -> None:
    http = httpx2.Client(http1=False, http2=True)
    with anthropic.Anthropic(api_key="k", base_url=url, http_client=http) as sdk:
        client.instrument(sdk)
        asked: Any = {
            "model": "claude-stub",
            "max_tokens": 9,
            "messages": [{"role": "user", "content": "hi"}],
        }
        assert sdk.messages.create(**asked).usage.output_tokens == OUTPUT
        with sdk.messages.stream(**asked) as events:
            assert events.get_final_message().usage.output_tokens == OUTPUT
    check(client, 2)


def test_google(url: str, client: CostOpsClient) -> None:
    options: Any = {"base_url": url, "client_args": {"http1": False, "http2": True}}
    sdk = client.instrument(genai.Client(api_key="k", vertexai=False, http_options=options))
    assert sdk.models.generate_content(model="gemini-2.5-flash", contents="hi").text == "hello"
    parts = list(sdk.models.generate_content_stream(model="gemini-2.5-flash", contents="hi"))
    assert parts[-1].usage_metadata.candidates_token_count == OUTPUT
    sdk.close()
    check(client, 2)
