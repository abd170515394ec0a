from __future__ import annotations

import asyncio
import json
import logging
from typing import Any

import pytest
import structlog

from llm_cost_ops import (
    APIError,
    CostOpsClient,
    LoggingConfig,
    NetworkError,
    RetryConfig,
    ServerError,
    ValidationError,
)
from llm_cost_ops.interceptors.logging import CallLogging, level_of
from llm_cost_ops.interceptors.retry import Retry
from llm_cost_ops.rpc.status import RpcError, StatusCode
from llm_cost_ops.testing import Delay, Fault, VirtualRuntime
from tests.calls import DONE, async_channel, put, sync_channel

LOGGER = "tests.calls"


def logged(script: Any, *between: Any, **settings: Any) -> Any:
    config = LoggingConfig(enabled=True, logger_name=LOGGER, **settings)
    return sync_channel(script, CallLogging(config), *between)


def lines(caplog: pytest.LogCaptureFixture) -> list[logging.LogRecord]:
    """What calls have logged: a thread that another test left may log too."""
    return [record for record in caplog.records if record.name == LOGGER]


@pytest.mark.parametrize(
    ("error", "level"),
    [
        (None, logging.DEBUG),
        (APIError("x"), logging.WARNING),
        (ValidationError("x"), logging.WARNING),
        (ServerError("x"), logging.ERROR),
        (NetworkError("x"), logging.ERROR),
        (KeyError("x"), logging.ERROR),
        (asyncio.CancelledError(), logging.DEBUG),
    ],
)
def test_levels_follow_the_outcome(error: BaseException | None, level: int) -> None:
    assert level_of(error, logging.DEBUG) == level


def test_one_line_per_call(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, LOGGER)
    retry = Retry(RetryConfig(jitter=False))
    put(logged([Fault(429, times=2), Delay(0.25, DONE)], retry))
    [record] = lines(caplog)
    assert record.levelno == logging.INFO
    assert record.getMessage() == (
        "rpc_method=tiny.v1.NoteService.PutNote outcome=OK duration_ms=1750.0 attempts=3 waited_ms=1500.0"
    )
    assert vars(record)["attempts"] == 3, "facts are attributes too"


def test_a_failure_names_its_code(caplog: pytest.LogCaptureFixture) -> None:
    channel = logged([Fault(503, message="down\nrpc_method=fake")], format="text")
    with pytest.raises(ServerError):
        put(channel)
    [record] = lines(caplog)
    assert record.levelno == logging.ERROR
    assert "outcome=UNAVAILABLE" in record.getMessage()
    assert "\n" not in record.getMessage(), "nobody forges a line"
    assert r'error="down\nrpc_method=fake"' in record.getMessage()


def test_json_lines_parse(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, LOGGER)
    put(logged([DONE], format="json", level="DEBUG"), timeout=5)
    begun, done = [json.loads(record.getMessage()) for record in lines(caplog)]
    assert begun == {
        "rpc_method": "tiny.v1.NoteService.PutNote",
        "outcome": "begun",
        "deadline_ms": 5000.0,
    }
    assert done["outcome"] == "OK"


def test_nothing_is_made_where_nobody_listens(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.ERROR, LOGGER)
    put(logged([DONE]))
    assert lines(caplog) == []


async def test_a_cancelled_call_is_told_without_alarm(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, LOGGER)
    hanging = asyncio.Event()

    async def hang(request: Any, context: Any) -> None:
        hanging.set()
        await asyncio.Event().wait()

    channel = async_channel([hang], CallLogging(LoggingConfig(enabled=True, logger_name=LOGGER)))
    call = asyncio.ensure_future(put(channel))
    await hanging.wait()
    call.cancel()
    await asyncio.gather(call, return_exceptions=True)
    assert [(r.levelno, vars(r)["outcome"]) for r in lines(caplog)] == [(logging.INFO, "CancelledError")]


def test_a_request_that_is_not_sent_is_a_warning_with_its_code(caplog: pytest.LogCaptureFixture) -> None:
    from llm_cost_ops import ClientConfig
    from llm_cost_ops.testing import ScriptedTransport

    config = ClientConfig(base_url="http://test", logging=LoggingConfig(enabled=True, logger_name=LOGGER))
    client = CostOpsClient(config=config, transport=ScriptedTransport(), runtime=VirtualRuntime())
    with pytest.raises(ValidationError):
        client.usage.submit(organization_id="", provider="p", model_id="m")
    [record] = lines(caplog)
    assert (record.levelno, vars(record)["outcome"]) == (logging.WARNING, "INVALID_ARGUMENT")
    assert vars(record)["attempts"] == 0


def test_structlog_finds_the_facts() -> None:
    events: list[dict[str, Any]] = []

    def keep(logger: Any, name: str, event: dict[str, Any]) -> str:
        events.append(event)
        return "shown"

    chain = [structlog.stdlib.ExtraAdder(), structlog.stdlib.add_log_level]
    formatter = structlog.stdlib.ProcessorFormatter(foreign_pre_chain=chain, processor=keep)
    handler = logging.StreamHandler()
    handler.setFormatter(formatter)
    handler.emit = lambda record: formatter.format(record) and None  # nothing is written
    logger = logging.getLogger(LOGGER)
    logger.addHandler(handler)
    try:
        with pytest.raises(APIError):
            put(logged([RpcError(StatusCode.NOT_FOUND, "gone", request_id="r-9")]))
    finally:
        logger.removeHandler(handler)
    [event] = events
    assert (event["level"], event["outcome"], event["request_id"]) == ("warning", "NOT_FOUND", "r-9")
    assert event["attempts"] == 1
