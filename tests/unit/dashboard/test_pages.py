"""What the pages show: the service's figures, whatever the names are."""

from __future__ import annotations

import asyncio
import csv
import io
import re
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx
import pytest

from llm_cost_ops import CostOpsClient
from llm_cost_ops.dashboard import rendering
from llm_cost_ops.ledger import Ledger, open_ledger
from llm_cost_ops.rpc.context import drive
from llm_cost_ops.server import asgi_app
from tests.unit.dashboard.site import (
    FORMULA,
    HOSTILE,
    browser,
    context,
    filled,
    key_of,
    sign_in,
    token_of,
    total_of,
)

MAX_PAGE_BYTES = 200_000


@pytest.fixture(scope="module")
def ledger() -> Iterator[Ledger]:
    made = filled()
    yield made
    drive(made.aclose())


@pytest.fixture
async def client(ledger: Ledger):
    async with browser(ledger, require_keys=False) as client:
        yield client


class _Tags(HTMLParser):
    """Collects the elements of a page, and faults of its form."""

    VOID = frozenset(("meta", "link", "input", "br", "img", "rect", "polyline", "path"))

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: list[tuple[str, dict[str, str | None]]] = []
        self.faults: list[str] = []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.seen.append((tag, dict(attributes)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.seen.append((tag, dict(attributes)))

    def handle_endtag(self, tag: str) -> None:
        if tag in self.VOID:
            return
        if not self.open or self.open[-1] != tag:
            self.faults.append(f"</{tag}> at {self.getpos()}, in {self.open[-3:]}")
        elif self.open:
            self.open.pop()


def parsed(page: httpx.Response) -> _Tags:
    tags = _Tags()
    tags.feed(page.text)
    return tags


async def api(client: httpx.AsyncClient, path: str, **parameters: str):
    answer = await client.get(path, params=parameters)
    assert answer.status_code == 200, answer.text
    return answer.json()["data"]


VIEWS = [
    "/",
    "/?period=90d",
    "/?period=7d&interval=hour",
    "/?period=24h&by=provider",
    "/?by=project&interval=week",
    "/?by=user&period=90d",
    "/?by=tag&period=90d",
    "/?by=organization&period=month&tz=Asia/Kolkata",
    "/?by=tag&tag=tag-1",
    f"/?model={quote(HOSTILE)}",
    f"/?user={quote(FORMULA)}&period=90d",
    "/?currency=EUR",
    "/?start=2020-01-01&end=2020-12-31",
    "/?start=2020-01-01&interval=hour",
    "/dashboard/tokens?period=90d",
    "/dashboard/requests?period=90d&by=user",
    "/dashboard/records?period=90d",
    "/dashboard/records?period=90d&status=unpriced",
    "/dashboard/unpriced?period=90d",
    "/dashboard/prices?provider=openai&all=1",
    "/dashboard/prices/new?model=x",
    "/dashboard/keys",
    "/dashboard/sign-in",
]


@pytest.mark.parametrize("address", VIEWS)
async def test_a_page_is_whole_small_and_has_nothing_inline(client: httpx.AsyncClient, address: str) -> None:
    page = await client.get(address)
    assert page.status_code == 200, page.text
    assert len(page.content) <= MAX_PAGE_BYTES
    tags = parsed(page)
    assert tags.faults == []
    assert tags.open == []
    for tag, attributes in tags.seen:
        assert "style" not in attributes, tag
        assert not [name for name in attributes if name.startswith("on")], (tag, attributes)
        assert tag not in ("style", "img", "iframe", "object"), attributes
        if tag == "script":
            assert (attributes.get("src") or "").startswith("/dashboard/assets/")
        for name in ("src", "href", "action"):
            assert (attributes.get(name) or "/")[0] in "/#", (tag, attributes)


@pytest.mark.parametrize("by", ["model", "provider", "project", "user", "organization", "tag"])
@pytest.mark.parametrize(
    "filters", ["", "&provider=openai", "&user=user-3&user=user-4", "&tag=tag-1", "&model=none"]
)
async def test_figures_are_those_of_the_api(client: httpx.AsyncClient, by: str, filters: str) -> None:
    query = (
        f"start={datetime.now(UTC) - timedelta(days=35):%Y-%m-%d}&end={datetime.now(UTC):%Y-%m-%d}{filters}"
    )
    page = await client.get(f"/?by={by}&{query}")
    asked = query.replace("start=", "start_date=").replace("end=", "end_date=")
    asked = asked.replace("user=", "user_id=").replace("model=", "model_id=")
    expected = (await client.get(f"/api/v1/costs?{asked}&group_by={by}")).json()["data"]
    assert total_of(page) == expected["total_cost"]
    rows = (await client.get(f"/dashboard/breakdown.csv?by={by}&{query}")).text
    found = {line[0].removeprefix("'"): line for line in list(csv.reader(io.StringIO(rows)))[1:]}
    assert set(found) == {group["value"] for group in expected["breakdown"]}
    for group in expected["breakdown"]:
        line = found[group["value"]]
        assert Decimal(line[1]) == Decimal(group["cost"])
        counts = ("requests", "unpriced_requests", "input_tokens", "cached_tokens", "output_tokens")
        assert [int(cell) for cell in line[3:]] == [group[name] for name in counts]


@pytest.mark.parametrize("interval", ["hour", "day", "week", "month"])
@pytest.mark.parametrize("zone", ["", "Asia/Kolkata", "America/New_York"])
async def test_buckets_add_up_to_the_total(client: httpx.AsyncClient, interval: str, zone: str) -> None:
    period = "7d" if interval == "hour" else "90d"
    query = f"period={period}&interval={interval}&tz={zone}"
    page = await client.get(f"/?{query}")
    rows = (await client.get(f"/dashboard/breakdown.csv?rows=time&{query}")).text
    lines = list(csv.reader(io.StringIO(rows)))[1:]
    assert sum(Decimal(line[1]) for line in lines) == Decimal(total_of(page))
    data = re.search(r'data-chart="([^"]*)"', page.text)
    assert data is None or "NaN" not in data[1]


async def test_the_plot_has_every_digit(client: httpx.AsyncClient) -> None:
    import html

    import msgspec

    page = await client.get("/?period=90d")
    if not rendering.has_charts():
        pytest.skip("the library that draws is not there: make assets")
    found = re.search(r'data-chart="([^"]*)"', page.text)
    assert found is not None
    plot = msgspec.json.decode(html.unescape(found[1]))
    total = sum(Decimal(point) for series in plot["series"] for point in series["points"])
    assert total == Decimal(total_of(page))
    assert {len(series["points"]) for series in plot["series"]} == {len(plot["labels"])}


async def test_a_share_of_nothing_is_no_share(client: httpx.AsyncClient) -> None:
    page = (await client.get("/dashboard/tokens?period=90d&interval=hour")).text
    cells = {}
    for label, row in re.findall(
        r'<tr><th scope="row">([^<]*)</th>((?:<td class="num">[^<]*</td>)+)</tr>', page
    ):
        cells.setdefault(label, []).append(re.findall(r'<td class="num">([^<]*)</td>', row))
    shares = {counts[:2] == ["0", "0"]: share for (counts, [share]) in cells.values()}
    assert shares[True] == "–"
    assert shares[False].endswith(" %")


async def test_what_a_call_cost_is_of_calls_in_one_currency(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'costs.db'}"
    with CostOpsClient(base_url=url, organization_id="acme") as client:
        client.pricing.create(
            provider="house",
            model_id="m",
            currency="EUR",
            output_price_per_1k="1",
            effective_date="2020-01-01",
        )
        for provider, model in (("openai", "gpt-4o"), ("house", "m"), ("house", "m")):
            client.usage.submit(provider=provider, model_id=model, output_tokens=1000, tags=["t"])
        series = client.analytics.get(start_date=datetime.now(UTC) - timedelta(days=1))
        assert str(series.summary.average_cost_per_request) == "0.01"
    ledger = open_ledger(url)
    async with browser(ledger, require_keys=False) as web:
        for by in ("organization", "tag", "user"):
            for address in ("/", "/dashboard/requests"):
                page = (await web.get(f"{address}?by={by}")).text
                # A cent for the one call in USD: in the tile, the group and the total below.
                assert re.sub(r"<[^>]*>", " ", page).count("$0.01 ") >= 3, (address, by)
                assert "$0.0033" not in page, (address, by)
    await ledger.aclose()


async def test_the_same_names_have_the_same_colours(client: httpx.AsyncClient) -> None:
    pages = [(await client.get(f"/{path}?period=90d&interval={interval}")).text
             for path in ("", "dashboard/requests") for interval in ("day", "week", "month")]  # fmt: skip
    form = re.compile(r'<li><svg class="swatch s(\d)"[^>]*>.*?</svg><bdi>([^<]*)</bdi>')
    seen = {(name, colour) for page in pages for colour, name in form.findall(page)}
    assert len(seen) == len({name for name, _ in seen}) == len({colour for _, colour in seen}) == 5


async def test_names_are_text_whatever_they_are(client: httpx.AsyncClient) -> None:
    for address in VIEWS:
        text = (await client.get(address)).text
        assert HOSTILE not in text
        assert "<img" not in text
    page = (await client.get("/?period=90d")).text
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page


async def test_csv_is_no_formula(client: httpx.AsyncClient) -> None:
    for address in ("/dashboard/records.csv?period=90d", "/dashboard/breakdown.csv?by=user&period=90d"):
        answer = await client.get(address)
        assert answer.headers["content-type"] == "text/csv; charset=utf-8"
        assert "attachment" in answer.headers["content-disposition"]
        cells = [cell for line in csv.reader(io.StringIO(answer.text)) for cell in line]
        assert f"'{FORMULA}" in cells
        assert [cell for cell in cells if cell[:1] in ("=", "+", "-", "@")] == []


async def test_csv_of_records_has_every_one_in_order(client: httpx.AsyncClient, monkeypatch) -> None:
    monkeypatch.setattr("llm_cost_ops.dashboard.records._CSV_PAGE_SIZE", 50)
    answer = await client.get("/dashboard/records.csv?period=90d")
    lines = list(csv.DictReader(io.StringIO(answer.text)))
    assert len(lines) == len({line["id"] for line in lines}) == 240
    assert [line["timestamp"] for line in lines] == sorted(
        (line["timestamp"] for line in lines), reverse=True
    )
    total = sum(Decimal(line["cost"]) for line in lines if line["cost"])
    assert total == Decimal(total_of(await client.get("/?period=90d")))


async def test_csv_takes_as_long_as_it_takes_and_ends_with_its_reader(ledger: Ledger, monkeypatch) -> None:
    monkeypatch.setattr("llm_cost_ops.dashboard.records._CSV_PAGE_SIZE", 10)
    read = 0
    list_usage = ledger.list_usage

    async def counted(*arguments: Any) -> Any:
        nonlocal read
        read += 1
        await asyncio.sleep(0.15)
        return await list_usage(*arguments)

    monkeypatch.setattr(ledger, "list_usage", counted)
    async with browser(ledger, require_keys=False) as client:
        # 24 pages of 150 ms, and a page of the dashboard may take three seconds.
        monkeypatch.setattr("llm_cost_ops.dashboard.caller.PAGE_SECONDS", 3.0)
        answer = await client.get("/dashboard/records.csv?period=90d")
        assert (len(answer.text.splitlines()), read) == (241, 24)
    read = 0
    gone = asyncio.Event()

    async def receive() -> dict[str, Any]:
        await gone.wait()
        return {"type": "http.disconnect"}

    async def send(message: dict[str, Any]) -> None:
        if read == 2:
            gone.set()

    scope = {"type": "http", "method": "GET", "path": "/dashboard/records.csv", "query_string": b"period=90d",
             "headers": [(b"host", b"localhost")]}  # fmt: skip
    await asgi_app(ledger, require_keys=False, dashboard=True)(scope, receive, send)
    assert read <= 4


@pytest.mark.parametrize("period", ["start=0001-01-01", "end=0001-01-01", "start=1999-01-01&end=1999-02-01"])
@pytest.mark.parametrize(
    "address", ["/", "/dashboard/breakdown.csv", "/dashboard/records", "/dashboard/records.csv"]
)
async def test_a_period_before_all_records_is_one(
    client: httpx.AsyncClient, address: str, period: str
) -> None:
    answer = await client.get(f"{address}?{period}&tz=America/New_York")
    assert answer.status_code in (200, 400), answer.text
    if answer.status_code == 400:
        assert "more than" in answer.text  # as the buckets of 2,000 years


@pytest.mark.parametrize("wrong", ["by=NaN", "project=%00", "start=2024-02-30"])
async def test_a_file_is_not_begun_for_a_request_that_is_refused(
    client: httpx.AsyncClient, wrong: str
) -> None:
    for name in ("records", "breakdown"):
        answer = await client.get(f"/dashboard/{name}.csv?{wrong}")
        assert answer.status_code == 400
        assert answer.headers["content-type"].startswith("text/html")


async def test_pages_of_records_follow_each_other(client: httpx.AsyncClient) -> None:
    seen: list[str] = []
    address = "/dashboard/records?period=90d&tz=Asia/Kolkata"
    while address:
        page = (await client.get(address)).text
        seen += re.findall(r'href="/dashboard/record/([0-9a-f-]+)\?', page)
        older = re.search(r'href="([^"]*)">Older<', page)
        address = older[1].replace("&amp;", "&") if older else ""
    assert len(seen) == len(set(seen)) == 240


async def test_a_record_and_its_receipt(client: httpx.AsyncClient) -> None:
    page = (await client.get("/dashboard/records?period=90d&model=gpt-4o")).text
    link = re.search(r'href="(/dashboard/record/[^"]+)"', page)
    assert link is not None
    record = await client.get(link[1].replace("&amp;", "&"))
    assert record.status_code == 200
    usage_id = re.search(r"record/([0-9a-f-]+)", link[1])
    organization = re.search(r"organization=(\w+)", link[1])
    assert usage_id is not None
    assert organization is not None
    cost = await api(client, f"/api/v1/usage/{usage_id[1]}/cost", organization_id=organization[1])
    assert total_of(record) == cost["total_cost"]
    assert "The same" in record.text
    assert ">1 M<" in record.text
    assert "Factor" not in record.text, "a column of ones tells nothing"
    for line in cost["lines"]:
        assert f">{line['cost']}<" in record.text
    assert "<dt>Model</dt><dd><bdi>gpt-4o</bdi></dd>" in record.text


async def test_a_record_shows_what_became_of_it() -> None:
    ledger = filled()
    async with browser(ledger, require_keys=False) as client:
        record = {"organization_id": "acme", "provider": "openai", "model_id": "gpt-4o", "input_tokens": 1000}
        usage_id = (await client.post("/api/v1/usage", json=record)).json()["data"]["usage_id"]
        address = f"/dashboard/record/{usage_id}?organization=acme"
        assert "Revisions" not in (await client.get(address)).text
        scope = {"organization_id": "acme"}
        changes = {**scope, "reason": "<b>counted twice</b>", "changes": {"input_tokens": 500}}
        assert (await client.post(f"/api/v1/usage/{usage_id}/correct", json=changes)).status_code == 200
        page = await client.get(address)
        assert total_of(page) == "0.00125"
        assert "&lt;b&gt;counted twice&lt;/b&gt;" in page.text
        assert page.text.count("<td>correct") == 1
        void = {**scope, "reason": "a test"}
        assert (await client.post(f"/api/v1/usage/{usage_id}/void", json=void)).status_code == 200
        page = await client.get(address)
        assert "it is in no sum" in page.text
        assert parsed(page).faults == []
    drive(ledger.aclose())


async def test_what_providers_stated_is_told() -> None:
    ledger = filled()
    async with browser(ledger, require_keys=False) as client:
        assert "providers stated" not in (await client.get("/")).text
        record = {"organization_id": "acme", "provider": "openrouter", "model_id": "x/y", "input_tokens": 10,
                  "reported_cost": "1.25"}  # fmt: skip
        assert (await client.post("/api/v1/usage", json=record)).status_code == 201
        assert 'Of the cost, <data value="1.25"' in (await client.get("/")).text
    drive(ledger.aclose())


async def test_what_cannot_be_shown_says_why(client: httpx.AsyncClient) -> None:
    for address, status, words in (
        ("/?period=1y", 400, "period must be one of"),
        ("/?currency=XYZ", 400, "currency"),
        ("/?start=2026-02-30", 400, "start"),
        ("/dashboard/records?cursor=abc", 400, "cursor"),
        ("/dashboard/record/none?organization=acme", 404, "there is no usage record"),
        ("/dashboard/nothing", 404, "no such page"),
        ("/dashboard/assets/../app.py", 404, ""),
        ("/dashboard/assets/app.py", 404, "no such file"),
        ("/?" + "a" * 9000, 400, "longer than"),
        ("/?" + "&".join(f"a{number}=1" for number in range(300)), 400, "can't be decoded"),
        ("/?user=%FF", 400, "can't be decoded"),
    ):
        answer = await client.get(address)
        assert answer.status_code == status, address
        assert words in answer.text.replace("&#39;", "'"), address
        assert parsed(answer).faults == []
    assert (await client.put("/")).status_code == 405
    head = await client.head("/")
    assert (head.status_code, head.content) == (200, b"")


async def test_a_fault_of_ours_is_hidden(client: httpx.AsyncClient, monkeypatch, caplog) -> None:
    async def broken(*_: object) -> None:
        raise KeyError("a secret of the server")

    monkeypatch.setattr("llm_cost_ops.dashboard.breakdowns.read_report", broken)
    answer = await client.get("/")
    assert answer.status_code == 500
    assert "secret" not in answer.text
    assert answer.headers["x-request-id"] in answer.text
    assert answer.headers["x-request-id"] in caplog.text


async def test_a_period_without_calls_says_what_to_do(client: httpx.AsyncClient) -> None:
    page = await client.get("/?start=2020-01-01&end=2020-01-31")
    assert "No calls in this time" in page.text
    assert total_of(page) == "0"


async def test_without_the_library_the_tables_are_there(client: httpx.AsyncClient, monkeypatch) -> None:
    before = await client.get("/?period=90d")
    monkeypatch.setattr("llm_cost_ops.dashboard.page.has_charts", lambda: False)
    page = await client.get("/?period=90d")
    assert "make assets" in page.text
    assert "uplot" not in page.text
    assert "data-chart" not in page.text
    assert total_of(page) == total_of(before)
    assert page.text.count("<table") == before.text.count("<table") == 2


async def test_a_small_amount_of_meters_is_worked_out_at_once(client: httpx.AsyncClient, monkeypatch) -> None:
    page = await client.get("/dashboard/tokens?period=90d")
    assert "Cache read" in page.text
    monkeypatch.setattr("llm_cost_ops.dashboard.breakdowns._MAX_METERED", 10)
    page = await client.get("/dashboard/tokens?period=90d")
    assert "Cache read" not in page.text
    page = await client.get("/dashboard/tokens?period=90d&meters=1")
    assert "Cache read" in page.text


async def test_many_groups_are_cut_and_still_add_up() -> None:
    ledger = filled()
    async with browser(ledger, require_keys=False) as client:
        records = [
            {"organization_id": "acme", "provider": "openai", "model_id": "gpt-4o", "input_tokens": 1000 + n,
             "project_id": f"p{n:03}", "user_id": f"u{n:03}"} for n in range(150)
        ]  # fmt: skip
        assert (await client.post("/api/v1/usage/batch", json={"records": records})).status_code == 200
        for by in ("project", "user"):
            page = await client.get(f"/?by={by}&period=90d")
            assert len(page.content) <= MAX_PAGE_BYTES
            assert "more; the CSV has every one" in page.text
            rows = (await client.get(f"/dashboard/breakdown.csv?by={by}&period=90d")).text
            lines = list(csv.reader(io.StringIO(rows)))[1:]
            assert len(lines) >= 150
            assert sum(Decimal(line[1]) for line in lines) == Decimal(total_of(page))
    drive(ledger.aclose())


async def test_from_an_unpriced_model_to_its_price() -> None:
    ledger = filled()
    async with browser(ledger) as client:
        await sign_in(client, key_of(ledger, "*", role="admin"))
        page = await client.get("/dashboard/unpriced?period=90d")
        assert "No price of this model is known" in page.text
        costs = await client.get("/?period=90d")
        before = Decimal(total_of(costs))
        assert '<td class="share">–</td>' in costs.text, "a share of what is not known is not known"
        form = {"token": token_of(page), "provider": "acme-labs", "model": HOSTILE, "currency": "USD",
                "effective": f"{datetime.now(UTC) - timedelta(days=89):%Y-%m-%d}", "key": "k-1"}  # fmt: skip
        refused = await client.post("/dashboard/prices/new", data={**form, "input": "two"})
        assert refused.status_code == 400
        assert "must be a decimal number" in refused.text
        assert f'value="{form["effective"]}"' in refused.text
        refused = await client.post("/dashboard/prices/new", data={**form, "input": "-1"})
        assert refused.status_code == 400
        refused = await client.post(
            "/dashboard/prices/new", data={**form, "input": "1", "source": "their mail"}
        )
        assert refused.status_code == 400
        assert "must be a URL" in refused.text
        for _ in range(2):
            done = await client.post("/dashboard/prices/new", data={**form, "input": "2.0625", "output": "8"})
            assert done.status_code == 303
        assert len(drive(ledger.all_cards(context()))) == 1
        shown = await client.get(done.headers["location"])
        assert "$2.0625" in shown.text
        again = {"token": form["token"], "provider": "acme-labs", "model": HOSTILE}
        dry = await client.post("/dashboard/reprice?period=90d", data=again)
        assert "48 of 48 records would change" in dry.text
        assert Decimal(total_of(await client.get("/?period=90d"))) == before
        done = await client.post("/dashboard/reprice?period=90d", data={**again, "apply": "1"})
        assert "48 of 48 records changed" in done.text
        assert Decimal(total_of(await client.get("/?period=90d"))) > before
        assert "Every call has its price" in (await client.get("/dashboard/unpriced?period=90d")).text
    drive(ledger.aclose())


async def test_it_is_mounted_under_a_prefix() -> None:
    ledger = filled()
    app = asgi_app(ledger, dashboard=True)

    async def mounted(scope, receive, send) -> None:
        await app({**scope, "root_path": "/costs"}, receive, send)

    async with httpx.AsyncClient(
        transport=httpx.ASGITransport(mounted), base_url="http://localhost"
    ) as client:
        answer = await client.get("/costs/dashboard/tokens")
        assert answer.headers["location"] == "/costs/dashboard/sign-in?next=%2Fdashboard%2Ftokens"
        answer = await client.post(answer.headers["location"], data={"key": key_of(ledger, "acme")})
        assert answer.headers["location"] == "/costs/dashboard/tokens"
        assert "Path=/costs" in answer.headers["set-cookie"]
        page = await client.get(answer.headers["location"])
        assert page.status_code == 200
        for tag, attributes in parsed(page).seen:
            for name in ("src", "href", "action"):
                assert (attributes.get(name) or "/costs/").startswith(("/costs/", "#")), (tag, attributes)
    drive(ledger.aclose())
