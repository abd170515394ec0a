"""A canary key, and what a client shows of it: nothing."""

from __future__ import annotations

import logging
import pickle
import traceback
from typing import Any

import pytest
from prometheus_client import CollectorRegistry, generate_latest

from llm_cost_ops import CacheConfig, ClientConfig, CostOpsClient, CostOpsError, LoggingConfig
from llm_cost_ops.interceptors.metrics import CallMetrics, PrometheusExporter
from llm_cost_ops.rpc.status import RpcError, StatusCode
from llm_cost_ops.testing import Fault, ScriptedTransport, VirtualRuntime
from llm_cost_ops.types import UsageReceipt

CANARY = "canary-4d1f0c7b9a8e"
CALL: dict[str, Any] = {"organization_id": "acme", "provider": "openai", "model_id": "gpt-4o"}


def _echo(request: Any, context: Any) -> Any:
    """A server that repeats what it was sent."""
    key = context.metadata.get("authorization")
    body = f'{{"error": {{"message": "{key}", "code": "X"}}}}'.encode()
    return RpcError(StatusCode.UNAUTHENTICATED, f"who is {key}?", http_status=401, body=body)


def _everything_about(error: BaseException) -> str:
    seen: BaseException | None = error
    shown = "".join(traceback.format_exception(error))
    while seen is not None:
        shown += f"{seen!r} {seen} {vars(seen)}"
        seen = seen.__cause__ or seen.__context__
    return shown + pickle.dumps(error).decode("latin-1")


@pytest.mark.parametrize("given", [CANARY, lambda: CANARY], ids=["static", "callable"])
@pytest.mark.parametrize(
    "script",
    [[Fault(401)], [Fault(403)], [Fault(500)], [Fault("network")], [_echo], [UsageReceipt()]],
    ids=["401", "403", "500", "network", "echo", "ok"],
)
def test_the_key_is_shown_nowhere(
    given: Any, script: list[Any], caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    caplog.set_level(logging.DEBUG)
    registry = CollectorRegistry()
    config = ClientConfig(
        api_key=given,
        base_url="http://test",
        logging=LoggingConfig(enabled=True, level="DEBUG"),
        cache=CacheConfig(),
        proxy=f"http://user:{CANARY}@proxy:3128",
        default_headers={"x-api-key": CANARY},
    )
    metrics = CallMetrics([PrometheusExporter("tests", registry)])
    transport = ScriptedTransport(script, forever=True)
    client = CostOpsClient(
        config=config, transport=transport, interceptors=[metrics], runtime=VirtualRuntime()
    )
    shown = f"{client!r} {client} {config!r} {config} {client.with_options(timeout=1)!r}"
    try:
        shown += repr(client.with_raw_response.usage.submit(**CALL, headers={"x-auth-token": CANARY}))
    except CostOpsError as error:
        shown += _everything_about(error)
    shown += "".join(f"{record.getMessage()} {vars(record)}" for record in caplog.records)
    shown += (
        generate_latest(registry).decode() + repr(transport.calls[-1].context) + repr(transport.calls[-1])
    )
    shown += "".join(map(repr, client._channel.core.interceptors)) + "".join(capsys.readouterr())
    assert CANARY not in shown
    assert caplog.records, "something was logged"


@pytest.mark.parametrize(
    "wrong",
    [
        {"api_key": f"{CANARY}\n"},
        {"api_key": f" {CANARY}"},
        {"base_url": f"https://user:{CANARY}@host"},
        {"proxy": f"http://user:{CANARY}@proxy\n"},
        {"default_headers": {"x-api-key": f"{CANARY}\n"}},
    ],
)
def test_a_wrong_setting_does_not_show_it_either(wrong: dict[str, Any]) -> None:
    with pytest.raises(CostOpsError) as caught:
        ClientConfig(**wrong)
    assert CANARY not in _everything_about(caught.value).replace(f"{wrong}", "")


def test_a_wrong_header_of_a_call_does_not_show_it() -> None:
    client = CostOpsClient(base_url="http://test", transport=ScriptedTransport(), runtime=VirtualRuntime())
    with pytest.raises(CostOpsError) as caught:
        client.usage.submit(**CALL, headers={"authorization": f"Bearer {CANARY}\r\nx: y"})
    assert CANARY not in str(caught.value) + repr(caught.value)
