"""Signing in, what a session may see and do, and where forms may come from."""

from __future__ import annotations

import re
import tracemalloc
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import pytest

from llm_cost_ops.dashboard import app
from llm_cost_ops.dashboard.records import RECORD_PATH
from llm_cost_ops.dashboard.rendering import asset
from llm_cost_ops.dashboard.sessions import COOKIE, SESSION_SECONDS
from llm_cost_ops.ledger import Ledger
from llm_cost_ops.rpc.context import drive
from llm_cost_ops.rpc.status import RpcError
from llm_cost_ops.service.access.keys import key_id_of, revoke_key
from tests.unit.dashboard.site import browser, context, filled, key_of, sign_in, token_of, total_of

PAGES = [
    "/",
    "/dashboard/tokens",
    "/dashboard/requests",
    "/dashboard/breakdown.csv",
    "/dashboard/records",
    "/dashboard/records.csv",
    "/dashboard/record/0190",
    "/dashboard/unpriced",
    "/dashboard/prices",
    "/dashboard/prices/new",
    "/dashboard/keys",
]


@pytest.fixture
def ledger() -> Iterator[Ledger]:
    made = filled()
    yield made
    drive(made.aclose())


def test_every_page_that_is_read_is_tried_here() -> None:
    read = {path for verb, path in app._PAGES if verb == "GET"}
    assert {path for path in read if path not in PAGES} == {RECORD_PATH}


@pytest.mark.parametrize("address", PAGES)
async def test_every_page_asks_who_looks(ledger: Ledger, address: str) -> None:
    async with browser(ledger) as client:
        answer = await client.get(address)
        assert answer.status_code == 303
        assert answer.headers["location"].startswith("/dashboard/sign-in")
        assert answer.content == b""


def test_names_of_files_that_are_not_there_are_not_kept() -> None:
    """Whoever connects may ask for any."""
    tracemalloc.start()
    for number in range(100):
        assert asset(f"{number:030000}") is None
    kept, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert kept < 1_000_000


async def test_signing_in_gives_a_cookie_without_the_key(ledger: Ledger) -> None:
    key = key_of(ledger, "acme")
    async with browser(ledger) as client:
        answer = await sign_in(client, key)
        assert (answer.status_code, answer.headers["location"]) == (303, "/")
        cookie = answer.headers["set-cookie"]
        assert "HttpOnly" in cookie
        assert "SameSite=Strict" in cookie
        assert f"Max-Age={SESSION_SECONDS}" in cookie
        assert "Secure" not in cookie
        assert key.rpartition("_")[2] not in cookie
        assert (await client.get("/")).status_code == 200


async def test_over_tls_the_cookie_is_for_tls_alone(ledger: Ledger) -> None:
    async with browser(ledger) as client:
        answer = await sign_in(client, key_of(ledger, "acme"), headers={"x-forwarded-proto": "https"})
        assert "Secure" in answer.headers["set-cookie"]


@pytest.mark.parametrize("key", ["", "lco_aaaaaaaa_" + "a" * 52, "nonsense"])
async def test_a_key_that_is_none_lets_nobody_in(ledger: Ledger, key: str) -> None:
    key_of(ledger, "acme")
    async with browser(ledger) as client:
        answer = await sign_in(client, key)
        assert answer.status_code == 401
        assert "set-cookie" not in answer.headers
        assert "not an API key in force" in answer.text


async def test_a_token_that_was_changed_is_none(ledger: Ledger) -> None:
    other = key_id_of(key_of(ledger, "globex", role="admin"))
    async with browser(ledger) as client:
        await sign_in(client, key_of(ledger, "acme"))
        token = client.cookies[COOKIE]
        key_id, ends, rest = token.split(".", 2)
        later = f"{key_id}.{int(ends) + 1}.{rest}"
        for forged in (f"{other}.{ends}.{rest}", later, token[:-1], token + "0", "..", "a.b.c.d", ""):
            client.cookies.clear()
            answer = await client.get("/", headers={"cookie": f"{COOKIE}={forged}"})
            assert answer.status_code == 303, forged
        assert (await client.get("/", headers={"cookie": f"{COOKIE}={token}"})).status_code == 200


async def test_a_token_of_another_ledger_is_none(ledger: Ledger) -> None:
    one = filled()
    async with browser(one) as client:
        key_of(ledger, "acme")
        other = filled()
        async with browser(other) as elsewhere:
            await sign_in(elsewhere, key_of(other, "acme"))
            token = elsewhere.cookies[COOKIE]
        assert (await client.get("/", headers={"cookie": f"{COOKIE}={token}"})).status_code == 303
    drive(one.aclose())
    drive(other.aclose())


async def test_revoking_a_key_ends_its_sessions(ledger: Ledger) -> None:
    key = key_of(ledger, "acme")
    async with browser(ledger) as client:
        await sign_in(client, key)
        assert (await client.get("/")).status_code == 200
        drive(revoke_key(ledger.keys, key, context()))
        assert (await client.get("/")).status_code == 303


async def test_revoking_a_key_ends_a_file_under_way(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llm_cost_ops.dashboard.records._CSV_PAGE_SIZE", 10)
    key = key_of(ledger, "acme")
    list_usage, read = ledger.list_usage, []

    async def revoked_meanwhile(*arguments: Any) -> Any:
        read.append(await list_usage(*arguments))
        if len(read) == 2:
            await revoke_key(ledger.keys, key, context())
        return read[-1]

    monkeypatch.setattr(ledger, "list_usage", revoked_meanwhile)
    async with browser(ledger) as client:
        await sign_in(client, key)
        with pytest.raises(RpcError, match="the session has ended"):  # the file is cut off
            await client.get("/dashboard/records.csv?period=90d")
    assert len(read) == 2


async def test_sessions_end(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    async with browser(ledger) as client:
        await sign_in(client, key_of(ledger, "acme"))
        cookie = {"cookie": f"{COOKIE}={client.cookies[COOKIE]}"}
        client.cookies.clear()
        began = datetime.now(UTC).timestamp()
        for later, status in ((SESSION_SECONDS - 60, 200), (SESSION_SECONDS + 60, 303)):
            monkeypatch.setattr("llm_cost_ops.rpc.runtime.AsyncRuntime.now", lambda _, now=began + later: now)
            assert (await client.get("/", headers=cookie)).status_code == status


async def test_signing_out_takes_the_cookie_away(ledger: Ledger) -> None:
    async with browser(ledger) as client:
        await sign_in(client, key_of(ledger, "acme"))
        token = token_of(await client.get("/"))
        assert (await client.post("/dashboard/sign-out", data={"token": "0" * 48})).status_code == 403
        answer = await client.post("/dashboard/sign-out", data={"token": token})
        assert answer.headers["location"] == "/dashboard/sign-in"
        assert "Max-Age=0" in answer.headers["set-cookie"]
        assert (await client.get("/")).status_code == 303


@pytest.mark.parametrize(
    ("target", "location"),
    [
        ("/dashboard/tokens?by=user", "/dashboard/tokens?by=user"),
        ("/?period=7d", "/?period=7d"),
        ("https://evil.example/", "/"),
        ("//evil.example/", "/"),
        ("/\\evil.example", "/"),
        ("/dashboard/\r\nset-cookie: a=b", "/"),
        ("/dashboard/\\..\\", "/"),
        ("javascript:alert(1)", "/"),
    ],
)
async def test_after_signing_in_one_stays_here(ledger: Ledger, target: str, location: str) -> None:
    async with browser(ledger) as client:
        answer = await sign_in(client, key_of(ledger, "acme"), params={"next": target})
        assert answer.headers["location"] == location


async def test_a_page_shows_what_its_key_may_see(ledger: Ledger) -> None:
    keys = {name: key_of(ledger, name) for name in ("acme", "globex", "*")}
    totals = {}
    for name, key in keys.items():
        async with browser(ledger) as client:
            await sign_in(client, key)
            page = await client.get("/?by=organization&period=90d")
            totals[name] = total_of(page)
            api = await client.get("/api/v1/costs", headers={"authorization": f"Bearer {key}"})
            assert totals[name] == api.json()["data"]["total_cost"]
            lines = (await client.get("/dashboard/records.csv?period=90d")).text.splitlines()[1:]
            seen = {line.split(",")[1] for line in lines}
            assert seen == ({"acme", "globex"} if name == "*" else {name})
    assert len(set(totals.values())) == 3


@pytest.mark.parametrize("address", ["/?organization=globex", "/dashboard/records?organization=globex"])
async def test_another_organization_is_refused(ledger: Ledger, address: str) -> None:
    async with browser(ledger) as client:
        await sign_in(client, key_of(ledger, "acme", role="admin"))
        answer = await client.get(address)
        assert answer.status_code == 403
        assert "is not one that this API key may use" in answer.text


async def test_a_record_of_another_organization_is_not_found(ledger: Ledger) -> None:
    async with browser(ledger) as client:
        await sign_in(client, key_of(ledger, "globex"))
        listed = (await client.get("/dashboard/records?period=90d")).text
        found = re.search(r"/dashboard/record/([0-9a-f-]+)", listed)
        assert found is not None
        assert (await client.get(f"/dashboard/record/{found[1]}")).status_code == 200
    async with browser(ledger) as client:
        await sign_in(client, key_of(ledger, "acme"))
        assert (await client.get(f"/dashboard/record/{found[1]}")).status_code == 404


@pytest.mark.parametrize("role", ["reader", "writer"])
async def test_who_is_no_admin_writes_nothing(ledger: Ledger, role: str) -> None:
    async with browser(ledger) as client:
        await sign_in(client, key_of(ledger, "*", role=role))
        token = token_of(await client.get("/"))
        assert "API keys" not in (await client.get("/")).text
        assert (await client.get("/dashboard/keys")).status_code == 403
        for address, form in FORMS:
            answer = await client.post(address, data={**form, "token": token})
            assert answer.status_code in {400, 403}, address
            assert "admin" in answer.text
    assert len(drive(ledger.keys.all(context()))) == 1
    assert drive(ledger.all_cards(context())) == []


FORMS = [
    ("/dashboard/prices/new", {"provider": "p", "model": "m", "input": "1", "currency": "USD"}),
    ("/dashboard/reprice", {"provider": "openai", "model": "gpt-4o", "apply": "1"}),
    ("/dashboard/keys", {"organizations": "acme", "role": "admin"}),
    ("/dashboard/keys/revoke", {"id": "aaaaaaaa"}),
]


@pytest.mark.parametrize(("address", "form"), FORMS)
@pytest.mark.parametrize("origin", ["none", "cross-site", "same-site", "foreign", "no address", "no-token"])
async def test_a_form_of_another_page_is_refused(
    ledger: Ledger, address: str, form: dict[str, str], origin: str
) -> None:
    headers = {
        "cross-site": {"sec-fetch-site": "cross-site"},
        "same-site": {"sec-fetch-site": "same-site"},
        "foreign": {"origin": "https://evil.example"},
        "no address": {"origin": "http://["},
    }.get(origin, {})
    async with browser(ledger) as client:
        await sign_in(client, key_of(ledger, "*", role="admin"))
        token = token_of(await client.get("/"))
        others = {"no-token": "", "none": "0" * 48}
        answer = await client.post(
            address, data={**form, "token": others.get(origin, token)}, headers=headers
        )
        assert answer.status_code == 403
        assert "not from a page of this session" in answer.text
    assert len(drive(ledger.keys.all(context()))) == 1
    assert drive(ledger.all_cards(context())) == []


async def test_the_token_of_a_form_is_of_its_session(ledger: Ledger) -> None:
    async with browser(ledger) as first, browser(ledger) as second:
        await sign_in(first, key_of(ledger, "*", role="admin"))
        await sign_in(second, key_of(ledger, "*", role="admin"))
        token = token_of(await first.get("/"))
        form = {**FORMS[2][1], "token": token}
        assert (await second.post("/dashboard/keys", data=form)).status_code == 403
        assert (await first.post("/dashboard/keys", data=form)).status_code == 200


async def test_an_admin_manages_the_keys_of_its_organizations(ledger: Ledger) -> None:
    foreign = key_of(ledger, "globex", role="admin")
    both = key_of(ledger, "acme", "globex")
    every = key_of(ledger, "*")
    own = key_of(ledger, "acme", name="ours")
    async with browser(ledger) as client:
        await sign_in(client, key_of(ledger, "acme", role="admin"))
        page = await client.get("/dashboard/keys")
        token = token_of(page)
        assert key_id_of(own) in page.text
        for hidden in (foreign, both, every):
            assert key_id_of(hidden) not in page.text
            form = {"token": token, "id": key_id_of(hidden)}
            assert (await client.post("/dashboard/keys/revoke", data=form)).status_code == 404
        for organizations in ("globex", "acme, globex", "*", ""):
            form = {"token": token, "organizations": organizations, "role": "reader"}
            assert (await client.post("/dashboard/keys", data=form)).status_code == 400, organizations
        made = await client.post(
            "/dashboard/keys", data={"token": token, "organizations": "acme", "role": "reader"}
        )
        key = re.search(r'id="made">(lco_[a-z2-7]{8}_[a-z2-7]{52})<', made.text)
        assert key is not None
        assert key[1] not in (await client.get("/dashboard/keys")).text
        answer = await client.post("/dashboard/keys/revoke", data={"token": token, "id": key_id_of(own)})
        assert answer.status_code == 303
    states = {key.id: key.revoked_at for key in drive(ledger.keys.all(context()))}
    assert states[key_id_of(own)] is not None
    assert [state for state in states.values() if state is not None] == [states[key_id_of(own)]]


async def test_a_key_is_for_the_organization_that_was_named_spaces_and_all(ledger: Ledger) -> None:
    async with browser(ledger) as client:
        await sign_in(client, key_of(ledger, "Acme Inc", "globex", role="admin"))
        page = await client.get("/dashboard/keys")
        assert 'name="organizations" required value="Acme Inc, globex"' in page.text
        form = {"token": token_of(page), "organizations": "Acme Inc, globex", "role": "reader"}
        assert (await client.post("/dashboard/keys", data=form)).status_code == 200
    assert {key.organizations for key in drive(ledger.keys.all(context()))} == {("Acme Inc", "globex")}


async def test_an_expired_key_ends_its_session(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    key = key_of(ledger, "acme", expires_at=datetime.now(UTC) + timedelta(seconds=60))
    async with browser(ledger) as client:
        await sign_in(client, key)
        assert (await client.get("/")).status_code == 200
        monkeypatch.setattr(
            "llm_cost_ops.rpc.runtime.AsyncRuntime.now", lambda _: datetime.now(UTC).timestamp() + 61
        )
        assert (await client.get("/")).status_code == 303


async def test_without_keys_whoever_connects_sees_everything(ledger: Ledger) -> None:
    async with browser(ledger, require_keys=False) as client:
        page = await client.get("/")
        assert page.status_code == 200
        assert "no API keys" in page.text
        assert (await client.get("/", headers={"host": "127.0.0.1:8080"})).status_code == 200
        assert (await client.get("/", headers={"host": "[::1]:8080"})).status_code == 200


@pytest.mark.parametrize(
    "host", ["evil.example", "localhost.evil.example", "", "10.0.0.1", "127.0.0.1.evil.example"]
)
async def test_without_keys_other_names_are_not_answered(ledger: Ledger, host: str) -> None:
    """A page whose name was made to lead to this machine would be of the same origin as the dashboard."""
    async with browser(ledger, require_keys=False) as client:
        assert (await client.get("/", headers={"host": host})).status_code == 403
        token = token_of(await client.get("/dashboard/keys"))
        form = {**FORMS[2][1], "token": token}
        assert (await client.post("/dashboard/keys", data=form, headers={"host": host})).status_code == 403


async def test_the_first_key_closes_the_dashboard(ledger: Ledger) -> None:
    async with browser(ledger, require_keys=False) as client:
        token = token_of(await client.get("/dashboard/keys"))
        form = {"token": token, "organizations": "*", "role": "admin"}
        made = await client.post("/dashboard/keys", data=form)
        key = re.search(r'id="made">(lco_[a-z2-7_]+)<', made.text)
        assert key is not None
        assert (await client.get("/")).status_code == 303
        assert (await client.post("/dashboard/keys", data=form)).status_code == 401
        await sign_in(client, key[1])
        assert (await client.get("/")).status_code == 200


async def test_pages_say_what_browsers_may_do_with_them(ledger: Ledger) -> None:
    async with browser(ledger, require_keys=False) as client:
        for address in ("/", "/dashboard/sign-in", "/dashboard/none", "/dashboard/assets/dashboard.css"):
            headers = (await client.get(address)).headers
            policy = headers["content-security-policy"]
            assert "default-src 'none'" in policy
            assert "unsafe" not in policy
            assert "frame-ancestors 'none'" in policy
            assert headers["x-content-type-options"] == "nosniff"
            assert headers["referrer-policy"] == "same-origin"
        assert (await client.get("/")).headers["cache-control"] == "no-store"


async def test_the_api_beside_it_is_as_before(ledger: Ledger) -> None:
    async with browser(ledger) as client:
        assert (await client.get("/api/v1/costs")).status_code == 401
        assert (await client.get("/health")).status_code == 200
        assert (await client.get("/nothing")).json()["error"]["code"] == "NOT_FOUND"
        # A session is for pages alone.
        await sign_in(client, key_of(ledger, "acme"))
        assert (await client.get("/api/v1/costs")).status_code == 401


async def test_without_a_dashboard_there_is_nothing_at_the_root() -> None:
    from llm_cost_ops.server import asgi_app

    app = asgi_app("sqlite://", require_keys=False)
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://localhost") as client:
        assert (await client.get("/")).status_code == 404
        assert (await client.get("/dashboard/keys")).status_code == 404
    await app.aclose()
