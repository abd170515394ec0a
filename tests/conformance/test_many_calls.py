"""Many calls at once with a default client: they queue, and none fails."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from typing import Any

import pytest

from llm_cost_ops import (
    AsyncCostOpsClient,
    BatchingConfig,
    ClientConfig,
    CostOpsClient,
    RetryConfig,
    ServerError,
)
from tests.conformance.clients import running_server
from tests.waiting import MAX_WAIT, until_async

NETWORK = ("http", "grpc")
CALL: dict[str, Any] = {"provider": "openai", "model_id": "gpt-4o", "input_tokens": 1, "output_tokens": 1}
UPLOAD = (
    b"POST /api/v1/usage/stream HTTP/1.1\r\nhost: test\r\ncontent-type: application/x-ndjson\r\n"
    b"transfer-encoding: chunked\r\n\r\n1\r\n\n\r\n"
)
ENDLESS = ClientConfig(timeout=600)


@pytest.fixture(scope="module")
def narrow(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """A server that takes 4 calls at a time; `occupied` takes all of them."""
    listeners = ("--http", "127.0.0.1:0", "--grpc", "127.0.0.1:0", "--max-calls", "4")
    with running_server(tmp_path_factory.mktemp("narrow"), *listeners) as urls:
        yield urls


@asynccontextmanager
async def occupied(server: dict[str, str]) -> AsyncIterator[None]:
    """Have the server busy with 4 uploads that do not end, so that further calls wait for a second.

    Its listeners share the calls that it takes.
    """
    host, _, port = server["http"].removeprefix("http://").partition(":")
    uploads = []
    for _ in range(4):
        _, writer = await asyncio.open_connection(host, int(port))
        writer.write(UPLOAD)
        uploads.append(writer)
    config = ClientConfig(base_url=server["http"], retry=RetryConfig(max_retries=0))
    async with AsyncCostOpsClient(config=config) as asking:
        # Once one is refused, all have come.
        for _ in range(1000):
            try:
                await asking.costs.get()
            except ServerError:
                break
    yield
    for writer in uploads:
        writer.close()


class Refusals:
    """Counts the attempts that a server refused since it had too many calls."""

    def __init__(self) -> None:
        self._contexts: list[Any] = []

    @property
    def seen(self) -> int:
        return sum(context.refusals for context in self._contexts)

    async def intercept_unary_unary(self, continuation: Any, request: Any, context: Any) -> Any:
        self._contexts.append(context)
        return await continuation(request, context)


async def submitted(
    url: str, organization: str, tasks: int, config: ClientConfig, interceptors: Sequence[Any] = ()
) -> list[Any]:
    async with AsyncCostOpsClient(base_url=url, config=config, interceptors=interceptors) as client:
        calls = [client.usage.submit(organization_id=organization, **CALL) for _ in range(tasks)]
        told = await asyncio.gather(*calls, return_exceptions=True)
        assert (await client.costs.get(organization_id=organization)).total_requests == tasks
    return [answer for answer in told if isinstance(answer, BaseException)]


@pytest.mark.slow
@pytest.mark.parametrize("transport", NETWORK)
async def test_two_thousand_tasks(transport: str, server_urls: dict[str, str], organization: str) -> None:
    assert await submitted(server_urls[transport], organization, 2000, ENDLESS) == []


@pytest.mark.slow
@pytest.mark.parametrize("transport", NETWORK)
def test_five_hundred_threads(transport: str, server_urls: dict[str, str], organization: str) -> None:
    with CostOpsClient(base_url=server_urls[transport], config=ENDLESS) as client:
        ready = threading.Barrier(500)

        def call(_: int) -> str:
            ready.wait(60)
            return client.usage.submit(organization_id=organization, **CALL).usage_id

        with ThreadPoolExecutor(500) as threads:
            told = list(threads.map(call, range(500)))
        assert len(set(told)) == 500
        assert client.costs.get(organization_id=organization).total_requests == 500


@pytest.mark.slow
@pytest.mark.parametrize("transport", NETWORK)
async def test_who_is_refused_comes_again_without_budget(
    transport: str, narrow: dict[str, str], organization: str
) -> None:
    alone = BatchingConfig(enabled=False)
    retry = RetryConfig(max_retries=1, budget=1, budget_refill=0)
    config = ClientConfig(timeout=2 * MAX_WAIT, retry=retry, batching=alone)
    refusals = Refusals()
    async with occupied(narrow):
        work = asyncio.create_task(submitted(narrow[transport], organization, 100, config, [refusals]))
        await until_async(lambda: refusals.seen >= 20 or work.done())
    assert await work == []


@pytest.mark.slow
@pytest.mark.parametrize("transport", NETWORK)
async def test_a_refused_write_says_that_it_was_not_applied(
    transport: str, narrow: dict[str, str], organization: str
) -> None:
    config = ClientConfig(
        batching=BatchingConfig(enabled=False), timeout=MAX_WAIT, retry=RetryConfig(max_retries=0)
    )
    async with AsyncCostOpsClient(base_url=narrow[transport], config=config) as client:
        async with occupied(narrow):
            calls = [client.usage.submit(organization_id=organization, **CALL) for _ in range(100)]
            tasks = [asyncio.ensure_future(call) for call in calls]
            await until_async(lambda: any(task.done() for task in tasks))
        told = await asyncio.gather(*tasks, return_exceptions=True)
        refused = [answer for answer in told if isinstance(answer, BaseException)]
        assert refused
        assert {type(error) for error in refused} == {ServerError}
        assert {vars(error)["code"] for error in refused} == {"OVERLOADED"}
        assert not any(vars(error)["maybe_applied"] for error in refused)
        applied = (await client.costs.get(organization_id=organization)).total_requests
    assert applied == 100 - len(refused)
