"""One line records what the OpenAI SDK does (`pip install openai`); a transport answers in its place."""

from __future__ import annotations

import json
from collections.abc import Iterator

import httpx2
import openai

from llm_cost_ops import CostOpsClient


def answer(request: httpx2.Request) -> httpx2.Response:
    """A stream as OpenAI sends it, with the usage that was asked for."""
    assert json.loads(request.content)["stream_options"] == {"include_usage": True}
    head = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1760000000, "model": "gpt-4o"}
    usage = {"prompt_tokens": 1000, "completion_tokens": 500, "total_tokens": 1500}
    chunks = [
        {**head, "choices": [{"index": 0, "delta": {"content": "Hello"}}], "usage": None},
        {**head, "choices": [], "usage": usage},
    ]
    body = "".join(f"data: {json.dumps(chunk)}\n\n" for chunk in chunks) + "data: [DONE]\n\n"
    return httpx2.Response(200, headers={"content-type": "text/event-stream"}, stream=Body(body.encode()))


class Body(httpx2.SyncByteStream):
    def __init__(self, body: bytes) -> None:
        self.body = body

    def __iter__(self) -> Iterator[bytes]:
        yield self.body


costs = CostOpsClient(base_url="sqlite://", organization_id="acme")
http = httpx2.Client(transport=httpx2.MockTransport(answer))
with costs as client, openai.OpenAI(api_key="sk-...", http_client=http) as sdk:
    llm = client.instrument(sdk, labels={"feature": "search"})

    with client.attribute(user_id="u-1"):
        question = [{"role": "user", "content": "Hello?"}]
        stream = llm.chat.completions.create(model="gpt-4o", messages=question, stream=True)
        print("chunks:", [chunk.choices[0].delta.content for chunk in stream])

    client.flush()
    for group in client.costs.get(organization_id="acme", group_by="user").breakdown:
        print(f"{group.value}: {group.cost} USD")
