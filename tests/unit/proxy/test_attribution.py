"""Whose a call is: by headers, by the API key, by what the proxy has for those that say nothing."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest

from llm_cost_ops import ClientConfig, ConfigurationError, CostOpsClient
from llm_cost_ops._gen.methods import GET_HEALTH
from llm_cost_ops.ledger import open_ledger
from llm_cost_ops.ledger.sqlite.api_keys import SqliteKeys
from llm_cost_ops.proxy import asgi_app, serve
from llm_cost_ops.rpc.context import CallContext, Metadata
from llm_cost_ops.rpc.runtime import AsyncRuntime
from llm_cost_ops.rpc.status import RpcError, StatusCode
from llm_cost_ops.service.access.keys import create_key, revoke_key
from tests.proxies import CHAT, PATH, Provider, running_proxy
from tests.unit.instrumentation.matrix import records_of


def keys_of(path: Path, *made: dict[str, Any], revoke: str = "") -> list[str]:
    """New keys of a database."""

    async def make() -> list[str]:
        ledger = open_ledger(str(path))
        context = CallContext(GET_HEALTH, AsyncRuntime(), Metadata(), None)
        try:
            if revoke:
                await revoke_key(ledger.keys, revoke, context)
            return [(await create_key(ledger.keys, context, **each))[1] for each in made]
        finally:
            await ledger.aclose()

    return asyncio.run(make())


def post(url: str, **headers: str | bytes) -> httpx.Response:
    named = {"x-lco-" + name.replace("_", "-"): value for name, value in headers.items()}
    return httpx.post(url + PATH, json=CHAT, headers=named)


def test_headers_say_whose_a_call_is(proxy: str, provider: Provider, client: CostOpsClient) -> None:
    given = post(
        proxy,
        organization="acme",
        project="search",
        user="u-ü".encode(),
        session="s-1",
        label_feature="answers",
        label_team="a b",
        tags="nightly, eu",
    )
    assert given.status_code == 200
    (record,) = records_of(client)
    assert (record.organization_id, record.project_id) == ("acme", "search")
    assert (record.user_id, record.session_id) == ("u-ü", "s-1")
    assert record.labels == {"feature": "answers", "team": "a b"}
    assert record.tags == ["nightly", "eu"]
    assert not [name for name, _ in provider.seen[0].headers if name.startswith("x-lco")]


def test_what_a_request_does_not_say_is_the_clients(provider: Provider) -> None:
    config = ClientConfig(
        base_url="sqlite://", organization_id="acme", project_id="all", labels={"team": "x", "env": "prod"}
    )
    with CostOpsClient(config=config) as client, running_proxy({"openai": provider.url}, client) as url:
        assert post(url, label_team="y").status_code == 200
        (record,) = records_of(client)
    assert (record.organization_id, record.project_id) == ("acme", "all")
    assert record.labels == {"team": "y", "env": "prod"}


def test_a_call_that_nobody_owns_is_not_made(provider: Provider) -> None:
    config = ClientConfig(base_url="sqlite://")
    with CostOpsClient(config=config) as client, running_proxy({"openai": provider.url}, client) as url:
        given = post(url)
        assert given.status_code == 400
        assert "x-lco-organization is needed" in given.json()["error"]["message"]
        assert provider.seen == []
        assert httpx.get(url + "/openai/v1/models").status_code == 200
        assert post(url, organization="acme").status_code == 200


@pytest.mark.parametrize(
    ("headers", "says"),
    [
        ([("x-lco-projct", "x")], "x-lco-projct is no header of this proxy"),
        ([("x-lco-label-", "x")], "x-lco-label- is no header of this proxy"),
        ([("x-lco-user", "a"), ("x-lco-user", "b")], "x-lco-user is given more than once"),
        ([("x-lco-label-a", "1"), ("x-lco-label-a", "2")], "x-lco-label-a is given more than once"),
        ([("x-lco-user", b"\xff\xfe")], "x-lco-user must be UTF-8"),
        ([("x-lco-organization", "a" * 101)], "x-lco-organization must have at most 100 characters"),
        ([("x-lco-project", "p" * 300)], "x-lco-project must have at most"),
        ([("x-lco-idempotency-key", "k" * 256)], "x-lco-idempotency-key must have at most 255"),
        ([("x-lco-tags", ",".join(map(str, range(300))))], "x-lco-tags must"),
        ([("x-lco-label-a", "v" * 5000)], "x-lco-label-"),
    ],
)
def test_a_header_that_no_record_may_hold_is_refused_before_the_call(
    proxy: str, provider: Provider, client: CostOpsClient, headers: list[tuple[str, Any]], says: str
) -> None:
    given = httpx.post(proxy + PATH, json=CHAT, headers=headers)
    assert given.status_code == 400
    assert given.json()["error"]["code"] == "invalid_header"
    assert given.json()["error"]["message"].startswith(says), given.text
    assert provider.seen == []
    assert records_of(client) == []


class TestKeys:
    @pytest.fixture
    def path(self, tmp_path: Path) -> Path:
        return tmp_path / "costs.db"

    @pytest.fixture
    def keys(self, path: Path) -> dict[str, str]:
        made = keys_of(
            path,
            {"organizations": ["acme"]},
            {"organizations": ["acme", "globex"]},
            {"organizations": ["*"]},
            {"organizations": ["acme"], "role": "reader"},
            {"organizations": ["initech"]},
        )
        return dict(zip(("one", "two", "all", "reader", "revoked"), made, strict=True))

    @pytest.fixture
    def client(self, path: Path) -> Iterator[CostOpsClient]:
        with CostOpsClient(config=ClientConfig(base_url=f"sqlite:///{path}")) as made:
            yield made

    @pytest.fixture
    def url(
        self, provider: Provider, client: CostOpsClient, path: Path, keys: dict[str, str]
    ) -> Iterator[str]:
        upstreams = {"openai": provider.url}
        with running_proxy(upstreams, client, keys=str(path), require_keys=True) as url:
            yield url

    @pytest.mark.parametrize(
        ("key", "named", "status", "organization"),
        [
            ("one", "", 200, "acme"),
            ("one", "acme", 200, "acme"),
            ("one", "globex", 403, ""),
            ("two", "globex", 200, "globex"),
            ("two", "", 400, ""),
            ("all", "hooli", 200, "hooli"),
            ("all", "", 400, ""),
            ("reader", "acme", 403, ""),
            ("", "acme", 401, ""),
            ("wrong", "acme", 401, ""),
        ],
    )
    def test_a_key_says_for_whom_calls_may_be_recorded(
        self,
        url: str,
        provider: Provider,
        client: CostOpsClient,
        keys: dict[str, str],
        key: str,
        named: str,
        status: int,
        organization: str,
    ) -> None:
        headers = {"api_key": {**keys, "": "", "wrong": "lco_" + "a" * 61}[key], "organization": named}
        given = post(url, **{name: value for name, value in headers.items() if value})
        assert given.status_code == status, given.text
        assert len(provider.seen) == (1 if status == 200 else 0)
        client.flush(10)
        found = [record.organization_id for record in client.usage.list()]
        assert found == ([organization] if organization else [])
        for seen in provider.seen:
            assert not [name for name, _ in seen.headers if name.startswith("x-lco")]

    def test_a_key_is_asked_for_whatever_is_called(self, url: str, provider: Provider) -> None:
        assert httpx.get(url + "/openai/v1/models").status_code == 401
        assert httpx.get(url + "/health").status_code == 200
        assert httpx.get(url + "/ready").status_code == 200
        assert provider.seen == []

    def test_a_revoked_key_is_refused_from_then_on(
        self, url: str, provider: Provider, keys: dict[str, str], path: Path
    ) -> None:
        assert post(url, api_key=keys["revoked"]).status_code == 200
        keys_of(path, revoke=keys["revoked"])
        assert post(url, api_key=keys["revoked"]).status_code == 401
        assert len(provider.seen) == 1

    def test_on_loopback_a_key_that_is_shown_counts_too(
        self, provider: Provider, client: CostOpsClient, path: Path, keys: dict[str, str]
    ) -> None:
        with running_proxy({"openai": provider.url}, client, keys=str(path)) as url:
            assert post(url, organization="any").status_code == 200
            assert post(url, api_key=keys["one"]).status_code == 200
            assert post(url, api_key="lco_wrong").status_code == 401

    def test_a_good_key_stays_good_while_keys_cannot_be_looked_up(
        self,
        provider: Provider,
        client: CostOpsClient,
        path: Path,
        keys: dict[str, str],
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        ledger = open_ledger(str(path))
        away = False
        find = SqliteKeys.find

        async def found(*arguments: Any) -> Any:
            if away:
                raise RpcError(StatusCode.UNAVAILABLE, "locked")
            return await find(*arguments)

        monkeypatch.setattr(SqliteKeys, "find", found)
        with running_proxy({"openai": provider.url}, client, keys=ledger, require_keys=True) as url:
            assert post(url, api_key=keys["one"]).status_code == 200
            soon = datetime.now(UTC) + timedelta(seconds=3)
            (ends_soon,) = keys_of(path, {"organizations": ["acme"], "expires_at": soon})
            assert post(url, api_key=ends_soon).status_code == 200
            away = True
            assert post(url, api_key=keys["one"]).status_code == 200
            assert post(url, api_key=keys["one"], organization="globex").status_code == 403
            refused = post(url, api_key=keys["revoked"])
            assert (refused.status_code, refused.headers["retry-after"]) == (503, "1")
            while datetime.now(UTC) <= soon:
                pass
            assert post(url, api_key=ends_soon).status_code == 503, "its end was known"
            away = False
            assert post(url, api_key=ends_soon).status_code == 401
            assert post(url, api_key=keys["revoked"]).status_code == 200
        asyncio.run(ledger.aclose())

    def test_an_expired_key_is_none(self, url: str, path: Path) -> None:
        soon = datetime.now(UTC) + timedelta(seconds=1)
        (key,) = keys_of(path, {"organizations": ["acme"], "expires_at": soon})
        while datetime.now(UTC) <= soon:
            pass
        assert post(url, api_key=key).status_code == 401


@pytest.mark.parametrize(
    ("upstreams", "says"),
    [
        ({}, "upstream must be given"),
        ({"Open AI": "https://x.example"}, "the name must be"),
        ({"health": "https://x.example"}, "neither health nor ready"),
        ({"openai": "api.openai.com"}, "must begin with http:// or https://"),
        ({"openai": "file:///etc/passwd"}, "must begin with http:// or https://"),
        ({"openai": "https://user:secret@x.example"}, "may not have credentials"),
        ({"openai": "https://x.example?a=b"}, "may not have credentials, a query"),
    ],
)
def test_what_can_not_be_an_upstream_is_refused(
    client: CostOpsClient, upstreams: dict[str, str], says: str
) -> None:
    with pytest.raises(ConfigurationError, match=says) as caught:
        asgi_app(upstreams, client, require_keys=False)
    assert caught.value.parameter == "upstream"
    assert "secret" not in str(caught.value)


def test_others_than_loopback_need_keys(client: CostOpsClient) -> None:
    with pytest.raises(ConfigurationError, match="keys must be given"):
        serve({"openai": "https://x.example"}, client, http="0.0.0.0:0")
    with pytest.raises(ConfigurationError, match="keys must be given"):
        asgi_app({"openai": "https://x.example"}, client)
    with pytest.raises(ConfigurationError, match="HOST:PORT"):
        serve({"openai": "https://x.example"}, client, http="nowhere")
    anyhow: Any = asgi_app
    with pytest.raises(ConfigurationError, match="stream_usage"):
        anyhow({"openai": "https://x.example"}, client, require_keys=False, stream_usage="often")
