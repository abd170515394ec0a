"""Trouble with storage is the service's fault on every transport, and names no path to who is elsewhere."""

from __future__ import annotations

import resource
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from llm_cost_ops import CostOpsClient, ServerError
from llm_cost_ops.exceptions import error_from_rpc
from llm_cost_ops.rpc.context import Metadata
from llm_cost_ops.rpc.status import STATUS_BY_REASON, RpcError, StatusCode
from llm_cost_ops.service.failures import log_failure
from llm_cost_ops.transports.http.errors import error_from_response, error_to_response

RECORD = {"organization_id": "acme", "provider": "openai", "model_id": "gpt-4o", "input_tokens": 1}


@pytest.mark.parametrize("reason", STATUS_BY_REASON)
def test_the_class_and_status_are_those_of_a_server_that_fails(reason: str) -> None:
    code, http_status = STATUS_BY_REASON[reason]
    error = RpcError(code, "the database …", error_code=reason, local_detail="/secret/costs.db")
    status, _, body = error_to_response(error, "r")
    assert (status, b"secret" in body) == (http_status, False)
    received = error_from_response(status, Metadata(), body, safe=False, now=0.0)
    assert (received.code, received.error_code) == (code, reason)
    for told in (error_from_rpc(received), error_from_rpc(error)):
        assert type(told) is ServerError
        assert told.status_code == http_status >= 500
        assert told.code == reason
    assert "/secret/costs.db" in str(error_from_rpc(error))


def test_who_runs_the_server_reads_what_its_callers_do_not(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("llm_cost_ops.service.failures._logged", {})
    failed = RpcError(StatusCode.INTERNAL, "the disk failed", local_detail="/db")
    damaged = RpcError(StatusCode.DATA_LOSS, "the database is damaged", local_detail="page 7")
    with caplog.at_level("ERROR", "llm_cost_ops.server"):
        log_failure(RpcError(StatusCode.INTERNAL, "nothing to add"), "r0")
        for request_id in ("r1", "r2"):
            log_failure(failed, request_id)
        log_failure(damaged, "r3")
    assert caplog.messages == [
        "the disk failed (/db), request r1",
        "the database is damaged (page 7), request r3",
    ]


@contextmanager
def serving(path: Path) -> Iterator[tuple[subprocess.Popen[str], dict[str, str]]]:
    command = [sys.executable, "-m", "llm_cost_ops.cli", "serve", "--db", str(path)]
    command += ["--http", "127.0.0.1:0", "--grpc", "127.0.0.1:0"]
    with log_of(path).open("w") as log:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True)
    try:
        assert process.stdout is not None
        found: dict[str, str] = {}
        while len(found) < 2:
            line = process.stdout.readline()
            assert line, "the server ended"
            for word in line.replace(",", " ").split():
                if word.startswith(("http://", "grpc://")):
                    found[word[:4]] = word
        yield process, found
    finally:
        process.kill()
        process.communicate()


def log_of(path: Path) -> Path:
    return path.with_name("serve.log")


def refused(url: str, path: Path, **more: Any) -> ServerError:
    with CostOpsClient(base_url=url) as client:
        for _ in range(1000):
            try:
                client.usage.submit(**RECORD, **more, retry=None)
            except ServerError as error:
                assert str(path.parent) not in f"{error} {error.response}"  # noqa: PT017 - it comes at some time
                return error
    raise AssertionError("all of them were acknowledged")


@pytest.mark.slow
def test_a_database_that_was_removed_under_a_server(tmp_path: Path) -> None:
    path = tmp_path / "costs.db"
    with serving(path) as (_, urls):
        with CostOpsClient(base_url=urls["http"]) as client:
            client.usage.submit(**RECORD)
        path.rename(tmp_path / "elsewhere.db")
        for url in urls.values():
            error = refused(url, path)
            assert (error.status_code, error.code) == (503, "STORAGE_REPLACED")
        assert f"({path}), request " in log_of(path).read_text()
        answer = httpx.get(f"{urls['http']}/ready", timeout=60)
        assert answer.status_code == 503
        assert "removed" in answer.text
        (tmp_path / "elsewhere.db").rename(path)
        with CostOpsClient(base_url=urls["grpc"]) as client:
            client.usage.submit(**RECORD)
        assert httpx.get(f"{urls['http']}/ready", timeout=60).status_code == 200


@pytest.mark.slow
def test_no_room_for_files_is_no_rate_limit(tmp_path: Path) -> None:
    path = tmp_path / "costs.db"
    with serving(path) as (process, urls):
        with CostOpsClient(base_url=urls["http"]) as client:
            client.usage.submit(**RECORD)
        resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (200_000, resource.RLIM_INFINITY))
        for url in urls.values():
            error = refused(url, path, metadata={"text": "x" * 3000})
            assert (error.status_code, error.code) == (507, "STORAGE_FULL")
        resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY,) * 2)
        with CostOpsClient(base_url=urls["grpc"]) as client:
            client.usage.submit(**RECORD)
