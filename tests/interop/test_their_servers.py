"""Our client, in both colours, against servers that others wrote: grpcio and grpclib."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest

from llm_cost_ops import ClientConfig, CostOpsClient, CostOpsError, RetryConfig
from llm_cost_ops.exceptions import TimeoutError as DeadlinePassed
from llm_cost_ops.exceptions import error_from_rpc
from llm_cost_ops.rpc.status import RpcError, StatusCode
from tests.conformance.clients import COLOURS, open_client
from tests.interop.conftest import Peer
from tests.waiting import MAX_WAIT, in_threads

RECORD: dict[str, Any] = {"organization_id": "acme", "provider": "openai", "model_id": "gpt-4o"}


class Seen:
    """An interceptor that keeps the last context."""

    async def intercept_unary_unary(self, continuation: Any, request: Any, context: Any) -> Any:
        self.context = context
        return await continuation(request, context)


@pytest.fixture(scope="module", params=["grpcio", "grpcio-gzip", "grpclib"])
def server(request: pytest.FixtureRequest, peer: Peer) -> Iterator[tuple[str, str]]:
    kind, _, compression = request.param.partition("-")
    with peer(f"{kind}_server.py", *([compression or "plain"] if kind == "grpcio" else [])) as address:
        yield request.param, f"grpc://{address}"


@pytest.fixture(params=COLOURS)
async def client(request: pytest.FixtureRequest, server: tuple[str, str]) -> AsyncIterator[Any]:
    seen = Seen()
    config = ClientConfig(base_url=server[1], retry=RetryConfig(max_retries=0))
    made = open_client(server[1], request.param, config=config, interceptors=[seen])
    made.seen = seen
    yield made
    await made.close()


async def submit(client: Any, act: str = "", **options: Any) -> Any:
    return await client.usage.submit(**RECORD, **options, headers={"x-act": act} if act else None)


async def test_an_answer(client: Any) -> None:
    receipt = await submit(client, timeout=60)
    assert (receipt.usage_id, receipt.currency) == ("gpt-4o", "USD")
    told = client.seen.context.response_metadata
    assert told.get_all("x-seen-bin") in ([b""], [])
    assert 30_000 < int(told.get("x-left")) <= 60_000


async def test_binary_metadata(client: Any) -> None:
    class Raw:
        async def intercept_unary_unary(self, continuation: Any, request: Any, context: Any) -> Any:
            context.metadata.add("x-raw-bin", b"\x00\xff\x10")
            return await continuation(request, context)

    inner = getattr(client, "_client", client)
    other = type(inner)(config=inner.config, interceptors=[client.seen, Raw()])
    answer = other.usage.submit(**RECORD)
    if asyncio.iscoroutine(answer):
        await answer
        await other.close()
    else:
        other.close()
    assert client.seen.context.response_metadata.get_all("x-seen-bin") == [b"\x00\xff\x10"]


@pytest.mark.parametrize("code", [code for code in StatusCode if code])
async def test_every_status(client: Any, server: tuple[str, str], code: StatusCode) -> None:
    with pytest.raises(CostOpsError) as caught:
        await submit(client, f"status:{int(code)}")
    error = caught.value
    assert error.grpc_code is code
    assert type(error) is type(error_from_rpc(RpcError(code, "")))
    assert "né" in error.message
    told = {violation.field for violation in getattr(error, "violations", ())}
    assert told in (set(), {"usage.provider"})
    if error.status_code == 400:
        assert told
    if server[0].startswith("grpcio"):
        assert (error.retry_after, error.request_id) == (1.5, "r-9")


async def test_deadlines(client: Any) -> None:
    started = time.monotonic()
    with pytest.raises(DeadlinePassed):
        await submit(client, "sleep:1000", timeout=0.3)
    assert 0.25 < time.monotonic() - started < MAX_WAIT


async def test_pushback_and_large_answers(client: Any, server: tuple[str, str]) -> None:
    if not server[0].startswith("grpcio"):
        pytest.skip("the grpclib server does not say that")
    with pytest.raises(CostOpsError) as caught:
        await submit(client, "pushback:250")
    assert caught.value.retry_after == 0.25
    assert len((await submit(client, "big:3000000")).organization_id) == 3_000_000


@pytest.mark.slow
def test_a_server_that_goes_away_time_and_again_costs_no_call(peer: Peer) -> None:
    """Each connection gets its GOAWAY after 0.2 s, in the middle of a load; the client retries nothing."""
    age = ("grpc.max_connection_age_ms=200", "grpc.max_connection_age_grace_ms=60000")
    config = ClientConfig(retry=RetryConfig(max_retries=0), timeout=MAX_WAIT)
    with peer("grpcio_server.py", "plain", *age) as address:

        async def load() -> tuple[int, int]:
            from llm_cost_ops import AsyncCostOpsClient

            connections = set()
            async with AsyncCostOpsClient(config=config.with_base_url(f"grpc://{address}")) as client:
                done = 0

                async def caller() -> None:
                    nonlocal done
                    began = time.monotonic()
                    # For 4 seconds at least; on a slow machine until there were enough connections.
                    while time.monotonic() < began + (4 if len(connections) >= 5 else MAX_WAIT):
                        await client.usage.submit(**RECORD, headers={"x-act": "sleep:0.01"})
                        done += 1
                        pool = next(iter(client._channel.core.transport._pools.values()))
                        connections.update(map(id, pool._open))

                await asyncio.gather(*(caller() for _ in range(16)))
            return done, len(connections)

        done, connections = asyncio.run(load())
        print(f"async: {done} calls over at least {connections} connections, none lost")  # noqa: T201
        assert connections >= 5
        counts = []
        with CostOpsClient(config=config.with_base_url(f"grpc://{address}")) as client:

            def call() -> None:
                for _ in range(150):
                    client.usage.submit(**RECORD, headers={"x-act": "sleep:0.01"})
                    counts.append(1)

            in_threads([call] * 8)
        print(f"sync: {len(counts)} calls, none lost")  # noqa: T201
        assert len(counts) == 1200
