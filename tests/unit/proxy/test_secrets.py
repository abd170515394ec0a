"""Keys are kept nowhere, a provider's and a caller's: in no log, error, ledger, spool or repr."""

from __future__ import annotations

import http.client
import json
import logging
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from llm_cost_ops import ClientConfig, CostOpsClient, RecorderConfig
from tests.proxies import ANSWER, CHUNK, Provider, event, running_proxy

CANARY = "canary-5f1c"
SECRETS = {
    "authorization": f"Bearer sk-{CANARY}",
    "x-api-key": f"sk-ant-{CANARY}",
    "api-key": f"azure-{CANARY}",
    "x-goog-api-key": f"AIza-{CANARY}",
    "cookie": f"session={CANARY}",
}
CHAT = {"model": "gpt-4o", "messages": [{"role": "user", "content": f"prompt {CANARY}"}]}


def _texts(folder: Path) -> list[Path]:
    needle = CANARY.encode()
    return [path for path in folder.rglob("*") if path.is_file() and needle in path.read_bytes()]


def post(url: str, path: str, **headers: str) -> tuple[int, bytes]:
    """A call by a client that logs nothing; an answer that breaks off is told by its status 0."""
    connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=60)
    try:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        connection.request("POST", f"{path}?key={CANARY}", json.dumps(CHAT), {**SECRETS, **named})
        answer = connection.getresponse()
        return answer.status, answer.read()
    except http.client.IncompleteRead:
        return 0, b""
    finally:
        connection.close()


def echo(handler: Any) -> None:
    """Answer as a provider that repeats what it got: in a body, in a header, in an error."""
    seen = handler.server.seen[-1]
    if "fails" in seen.path:
        handler.whole(json.dumps({"error": {"message": str(seen.headers)}}).encode(), 401)
    elif "breaks" in seen.path:
        handler.stream()
        handler.part(event({**CHUNK, "id": "chatcmpl-2"}))
        handler.close_connection = True
    elif "garbled" in seen.path:
        handler.whole(str(seen.headers).encode(), 200, ("content-encoding", "br"), ("x-got", CANARY))
    else:
        handler.whole(json.dumps({**ANSWER, "echo": str(seen.headers)}).encode())


def test_no_key_is_kept(
    provider: Provider, tmp_path: Path, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    caplog.set_level(logging.DEBUG)
    config = ClientConfig(
        base_url=f"sqlite:///{tmp_path}/costs.db",
        organization_id="acme",
        recorder=RecorderConfig(spool=f"{tmp_path}/spool"),
    )
    provider.answer = echo
    upstreams = {"openai": provider.url, "gone": "http://127.0.0.1:9"}
    with CostOpsClient(config=config) as client:
        with running_proxy(upstreams, client) as url:
            chat = "/v1/chat/completions"
            places = ["/openai", "/openai/fails", "/openai/garbled", "/openai/breaks"]
            assert [post(url, place + chat)[0] for place in places] == [200, 401, 200, 0]
            assert {dict(provider.seen[0].headers)[name] for name in SECRETS} == set(SECRETS.values())
            for path in ("/gone" + chat, "/nowhere" + chat, "/openai/.." + chat):
                status, body = post(url, path)
                assert status in (400, 404, 502)
                assert CANARY.encode() not in body
            status, body = post(url, "/openai/v1/models", x_lco_api_key=f"lco_{CANARY}")
            assert (status, CANARY.encode() in body) == (401, False)
            assert CANARY not in repr(client.flush(10))
            records = list(client.usage.list())
            assert len(records) == 3
            assert CANARY not in repr(records)
            assert _texts(tmp_path) == []
        assert CANARY not in repr(client)
    assert _texts(tmp_path) == []
    assert "the answer broke off" in caplog.text
    assert CANARY not in caplog.text
    output = capfd.readouterr()
    assert CANARY not in output.out + output.err
