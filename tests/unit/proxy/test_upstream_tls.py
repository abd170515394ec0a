"""Providers speak TLS: their certificates are verified, also through the HTTP proxy of the environment."""

from __future__ import annotations

import ssl
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import pytest

from llm_cost_ops import CostOpsClient
from tests.proxies import ANSWER, Provider, running_proxy
from tests.tunnels import self_signed, tunnels
from tests.unit.instrumentation.matrix import only_record, records_of

CHAT = {"model": "gpt-4o", "messages": []}


@pytest.mark.parametrize("tunnelled", [False, True])
@pytest.mark.parametrize("trusted", [False, True])
def test_a_certificate_is_verified(
    tmp_path: Path,
    provider: Provider,
    client: CostOpsClient,
    monkeypatch: pytest.MonkeyPatch,
    *,
    trusted: bool,
    tunnelled: bool,
) -> None:
    cert, key = self_signed(tmp_path)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(cert, key)
    if trusted:
        monkeypatch.setenv("SSL_CERT_FILE", str(cert))
    with tunnels() as there:
        port = there.tls_front(urlsplit(provider.url).port or 0, context)
        if tunnelled:
            monkeypatch.setenv("https_proxy", f"http://127.0.0.1:{there.proxy_port}")
        with running_proxy({"openai": f"https://localhost:{port}"}, client) as url, httpx.Client() as caller:
            headers = {"authorization": "Bearer sk-canary"}
            given = caller.post(f"{url}/openai/v1/chat/completions", json=CHAT, headers=headers)
        assert len(there.asked) == (1 if tunnelled else 0)
        assert b"canary" not in b"".join(there.asked)
    if trusted:
        assert given.json() == ANSWER
        assert provider.seen[0].header("host") == f"localhost:{port}"
        only_record(client, "measured")
    else:
        assert given.status_code == 502
        assert provider.seen == []
        assert records_of(client) == []
