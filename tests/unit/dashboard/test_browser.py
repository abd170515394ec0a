"""The dashboard in a real browser: Chromium, the assets and axe-core; without them these tests skip.

`BROWSER` names the browser's program where it is not on the path.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import shutil
import threading
from collections.abc import Callable, Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import httpx
import pytest

from llm_cost_ops import CostOpsClient
from llm_cost_ops.dashboard import rendering
from llm_cost_ops.ledger import Ledger, open_ledger
from llm_cost_ops.rpc.context import drive
from llm_cost_ops.server import asgi_app
from llm_cost_ops.server.app import HttpServer, serve
from tests.unit.dashboard.site import HOSTILE, filled, key_of
from tests.waiting import MAX_WAIT
from tools.assets import AXE, fetch

sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: the extra browser")
BROWSER = os.environ.get("BROWSER") or shutil.which("chromium") or shutil.which("google-chrome")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(BROWSER is None, reason="there is no Chromium (Debian: apt install chromium)"),
    pytest.mark.skipif(not rendering.has_charts(), reason="the assets are not there: make assets"),
]

WIDE, NARROW = {"width": 1280, "height": 800}, {"width": 390, "height": 844}
VIEWS = {
    "cost": "/?period=90d",
    "cost-by-tag": "/?period=90d&by=tag",
    "cost-by-hour": "/?period=7d&interval=hour",
    "cost-of-one": "/?period=90d&provider=openai&user=user-3",
    "nothing": "/?start=2020-01-01&end=2020-01-31",
    "tokens": "/dashboard/tokens?period=90d",
    "requests": "/dashboard/requests?period=90d&by=project",
    "records": "/dashboard/records?period=90d",
    "unpriced": "/dashboard/unpriced?period=90d",
    "prices": "/dashboard/prices?provider=openai",
    "price": "/dashboard/prices/new",
    "keys": "/dashboard/keys",
    "error": "/?period=1y",
}


@contextlib.contextmanager
def served(ledger: Ledger, *, require_keys: bool) -> Iterator[str]:
    """The address of a server in a thread."""
    addresses: list[str] = []
    ready = threading.Event()
    loop = asyncio.new_event_loop()
    stopped = asyncio.Event()

    def announce(text: str) -> None:
        addresses.append(text.removeprefix("listening on "))
        ready.set()

    app = asgi_app(ledger, require_keys=require_keys, dashboard=True)
    server = HttpServer(app, port=0)
    thread = threading.Thread(
        target=lambda: loop.run_until_complete(
            serve([server], announce=announce, drain_delay=0, grace=1, stopped=stopped)
        )
    )
    thread.start()
    assert ready.wait(MAX_WAIT)
    try:
        yield addresses[0]
    finally:
        loop.call_soon_threadsafe(stopped.set)
        thread.join()
        loop.close()


@pytest.fixture(scope="module")
def ledger(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ledger]:
    made = filled(str(tmp_path_factory.mktemp("browser") / "costs.db"))
    yield made
    drive(made.aclose())


@pytest.fixture(scope="module")
def site(ledger: Ledger) -> Iterator[str]:
    with served(ledger, require_keys=False) as address:
        yield address


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    with sync_api.sync_playwright() as playwright:
        # As root it has no sandbox; it looks at our own pages only.
        browser = playwright.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"])
        yield browser
        browser.close()


def _failures(request: Any) -> list[str]:
    # A page that is left while its icon is on the way ends that request.
    return [] if request.failure == "net::ERR_ABORTED" else [f"{request.url} failed: {request.failure}"]


@pytest.fixture
def tab(chromium: Any) -> Iterator[Callable[..., Any]]:
    """Opens a page, and fails when the browser has anything to say about one: CSP, scripts, other hosts."""
    contexts = []
    said: list[str] = []

    def opened(viewport: dict[str, int] = WIDE, *, zone: str = "UTC", **options: Any) -> Any:
        context = chromium.new_context(viewport=viewport, timezone_id=zone, **options)
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda message: said.append(f"{message.type}: {message.text}"))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.on("requestfailed", lambda request: said.extend(_failures(request)))
        page.on("request", lambda request: hosts.add(httpx.URL(request.url).host))
        return page

    hosts: set[str] = set()
    yield opened
    for context in contexts:
        context.close()
    # The console also says that a page answered 400, as the page of an error must.
    assert [text for text in said if "the server responded with a status of 4" not in text] == []
    assert hosts <= {"127.0.0.1"}


def drawn(page: Any) -> None:
    page.wait_for_function("document.querySelectorAll('[data-chart]:not([data-drawn])').length === 0")


@pytest.mark.parametrize("viewport", [WIDE, NARROW], ids=["wide", "narrow"])
@pytest.mark.parametrize("name", VIEWS)
def test_a_view_fits_and_the_browser_has_no_complaint(
    site: str, tab: Callable[..., Any], name: str, viewport: dict[str, int]
) -> None:
    page = tab(viewport)
    page.goto(site + VIEWS[name])
    drawn(page)
    assert page.locator("h1").count() == 1
    # Tables scroll in a frame of their own: the page itself never to the side.
    assert page.evaluate("document.documentElement.scrollWidth") <= viewport["width"]
    for plot in page.locator("[data-chart]").all():
        box = plot.locator("canvas").bounding_box()
        assert box is not None
        assert box["width"] > 200
        assert box["height"] > 150


def test_on_a_phone_every_page_choice_and_cost_is_in_sight(site: str, tab: Any) -> None:
    page = tab(NARROW)

    def beyond(selector: str) -> list[str]:
        places = page.locator(selector).all()
        assert places, selector
        return [
            place.inner_text()
            for place in places
            if (box := place.bounding_box()) is None or box["x"] + box["width"] > NARROW["width"]
        ]

    page.goto(f"{site}/dashboard/records?period=90d")
    assert beyond("nav a, .segments a, .records .cost, .records .state") == []
    page.locator("table.records tbody th a").first.click()
    assert beyond(".receipt tr > :last-child") == []


@pytest.fixture(scope="module")
def axe(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("axe")
    try:
        fetch(AXE, folder)
    except RuntimeError as error:
        pytest.skip(f"axe-core can't be fetched: {error}")
    return (folder / "axe.min.js").read_text(encoding="utf-8")


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("name", [*VIEWS, "sign-in"])
def test_axe_finds_nothing_serious(
    site: str, tab: Callable[..., Any], axe: str, name: str, scheme: str
) -> None:
    page = tab(color_scheme=scheme)
    page.goto(site + VIEWS.get(name, "/dashboard/sign-in"))
    drawn(page)
    page.evaluate("document.querySelectorAll('details').forEach((each) => { each.open = true })")
    page.evaluate(axe)
    found = page.evaluate("axe.run(document, {resultTypes: ['violations']})")
    faults = [
        (each["id"], each["impact"], [node["html"][:200] for node in each["nodes"]][:3])
        for each in found["violations"]
        if each["impact"] in ("serious", "critical", "moderate")
    ]
    assert faults == []


def test_totals_are_those_of_the_api(site: str, tab: Callable[..., Any]) -> None:
    page = tab()
    page.goto(f"{site}/?period=90d&by=provider")
    total = page.locator("#total data").get_attribute("value")
    expected = httpx.get(f"{site}/api/v1/costs?group_by=provider").json()["data"]
    assert Decimal(total) == Decimal(expected["total_cost"])
    rows = page.locator("table.groups tbody tr")
    assert rows.count() == len(expected["breakdown"])
    costs = {group["value"]: group["cost"] for group in expected["breakdown"]}
    for row in rows.all():
        name = row.locator("th").inner_text().strip()
        if row.locator("td data").count():
            assert Decimal(row.locator("td data").first.get_attribute("value")) == Decimal(costs[name])
        else:
            assert "no price" in row.inner_text()


def test_hostile_names_are_text(site: str, tab: Callable[..., Any]) -> None:
    page = tab()
    page.on("dialog", lambda dialog: pytest.fail("a script of a name has run"))
    for by in ("model", "user", "tag"):
        page.goto(f"{site}/?period=90d&by={by}")
        drawn(page)
        page.locator(".chart .u-over").hover()
        assert page.locator("img").count() == 0
    page.goto(f"{site}/dashboard/requests?period=90d")
    assert page.get_by_role("link", name=HOSTILE).count() == 1
    page.get_by_role("link", name=HOSTILE).click()
    assert page.locator(".chips").inner_text().count(HOSTILE) == 1


def test_the_readers_zone_goes_into_the_address(site: str, tab: Callable[..., Any]) -> None:
    page = tab(zone="Europe/Berlin")
    page.goto(f"{site}/dashboard/records?period=90d")
    page.wait_for_url(re.compile(r"tz=Europe%2FBerlin$"))
    assert page.locator("footer select").input_value() == "Europe/Berlin"
    first = page.locator("table.records tbody th").first.inner_text()
    page.locator("footer select").select_option("UTC")
    page.get_by_role("button", name="Change").click()
    page.wait_for_url(re.compile(r"tz=UTC$"))
    assert "period=90d" in page.url
    assert page.locator("table.records tbody th").first.inner_text() != first


def test_the_state_is_in_the_address_and_back_goes_back(site: str, tab: Callable[..., Any]) -> None:
    page = tab()
    page.goto(f"{site}/?tz=UTC")
    page.get_by_role("navigation", name="Period").get_by_role("link", name="90 days").click()
    page.get_by_role("navigation", name="Group by").get_by_role("link", name="Project").click()
    page.get_by_role("navigation", name="Interval").get_by_role("link", name="Week").click()
    page.get_by_role("link", name="project-1", exact=True).click()
    page.get_by_role("navigation", name="Pages").get_by_role("link", name="Tokens").click()
    for part in ("period=90d", "by=project", "interval=week", "project=project-1", "/dashboard/tokens"):
        assert part in page.url
    seen = page.locator("main").inner_text()
    page.reload()
    assert page.locator("main").inner_text() == seen
    page.go_back()
    page.go_back()
    assert "project=project-1" not in page.url
    assert page.locator(".chips").count() == 0


def test_filters_by_form(site: str, tab: Callable[..., Any]) -> None:
    page = tab()
    page.goto(f"{site}/?period=90d")
    page.get_by_text("Filter", exact=True).click()
    page.get_by_label("Provider", exact=True).fill("openai")
    page.get_by_role("button", name="Add").click()
    assert re.search(r"\?(.*&)?provider=openai", page.url)
    assert "model=" not in page.url
    assert page.locator("table.groups tbody tr").count() == 2
    page.get_by_role("link", name="Remove the filter provider openai").click()
    assert "provider=" not in page.url


def test_the_keyboard_reaches_everything(site: str, tab: Callable[..., Any]) -> None:
    page = tab()
    page.goto(f"{site}/?period=90d")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.className") == "skip"
    page.keyboard.press("Enter")
    page.wait_for_function("location.hash === '#main'")
    seen = set()
    for _ in range(80):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement === document.body"):
            break  # behind the last
        seen.add(page.evaluate("document.activeElement.innerText || document.activeElement.tagName"))
        outline = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
        assert outline != "none", page.evaluate("document.activeElement.outerHTML")
    for name in ("90 days", "Project", "Week", "CSV", "gpt-4o", "Show as a table"):
        assert any(name in text for text in seen), name
    page.get_by_text("Filter", exact=True).focus()
    page.keyboard.press("Enter")
    assert page.get_by_label("Provider", exact=True).is_visible()
    page.keyboard.press("Escape")
    assert not page.get_by_label("Provider", exact=True).is_visible()


def test_a_plot_says_what_is_under_the_pointer(site: str, tab: Callable[..., Any]) -> None:
    page = tab()
    page.goto(f"{site}/?period=90d&interval=week&by=provider")
    drawn(page)
    box = page.locator(".chart .u-over").bounding_box()
    page.mouse.move(box["x"] + box["width"] * 0.9, box["y"] + box["height"] / 2)
    text = page.locator(".tip").inner_text()
    assert "openai" in text
    assert "Total" in text
    # With the pen of the other scheme when the reader changes it.
    page.emulate_media(color_scheme="dark")
    page.wait_for_function("document.querySelectorAll('.chart canvas').length === 1")


def test_without_scripts_the_figures_are_there(site: str, tab: Callable[..., Any]) -> None:
    page = tab(java_script_enabled=False)
    page.goto(f"{site}/?period=90d")
    assert page.locator("table.groups tbody tr").count() == 5
    assert page.locator("noscript p").count() == 1


def test_what_a_page_loads_is_small(site: str, tab: Callable[..., Any]) -> None:
    page = tab()
    sizes: dict[str, int] = {}
    page.on("response", lambda response: sizes.__setitem__(response.url, len(response.body())))
    page.goto(f"{site}/?period=90d&tz=UTC")
    drawn(page)
    # The icon may come later.
    assert len(sizes) >= 5, sizes
    assert sum(sizes.values()) <= 200_000, sizes


def test_signing_in_and_out(ledger: Ledger, tab: Callable[..., Any], tmp_path: Path) -> None:
    own = filled(str(tmp_path / "costs.db"))
    with served(own, require_keys=True) as site:
        page = tab()
        page.goto(f"{site}/dashboard/records?period=90d&tz=UTC")
        assert "/dashboard/sign-in" in page.url
        page.get_by_label("API key").fill("lco_nothing")
        page.get_by_role("button", name="Sign in").click()
        assert page.get_by_role("alert").inner_text().startswith("That is not an API key in force")
        page.get_by_label("API key").fill(key_of(own, "acme"))
        page.get_by_role("button", name="Sign in").click()
        assert page.url == f"{site}/dashboard/records?period=90d&tz=UTC"
        [cookie] = page.context.cookies()
        assert (cookie["httpOnly"], cookie["sameSite"]) == (True, "Strict")
        assert page.evaluate("document.cookie") == ""
        page.get_by_role("link", name="Cost", exact=True).click()
        assert "globex" not in page.content()
        page.get_by_role("button", name="Sign out").click()
        assert page.get_by_label("API key").is_visible()
        assert page.context.cookies() == []
    drive(own.aclose())


def test_an_admin_adds_a_price_and_a_key(tab: Callable[..., Any], tmp_path: Path) -> None:
    own = filled(str(tmp_path / "costs.db"))
    with served(own, require_keys=True) as site:
        page = tab()
        page.goto(f"{site}/dashboard/unpriced?period=90d&tz=UTC")
        page.get_by_label("API key").fill(key_of(own, "*", role="admin"))
        page.get_by_role("button", name="Sign in").click()
        page.get_by_role("link", name="Add a price").click()
        assert page.get_by_label("Model").input_value() == HOSTILE
        page.get_by_label("Input").fill("2.0625")
        page.get_by_label("Output").fill("8")
        page.get_by_role("button", name="Add the price").click()
        assert "The price was added" in page.content()
        assert "$2.0625" in page.locator("table").inner_text()
        page.goto(f"{site}/dashboard/unpriced?period=90d&tz=UTC")
        page.get_by_role("button", name="Price again").click()
        page.get_by_role("button", name="Write these prices").click()
        assert "48 of 48 records changed" in page.content()
        page.goto(f"{site}/dashboard/keys?tz=UTC")
        page.get_by_label("Organizations").fill("acme")
        page.get_by_role("button", name="Make the key").click()
        made = page.locator("#made").inner_text()
        answer = httpx.get(f"{site}/api/v1/costs", headers={"authorization": f"Bearer {made}"})
        assert answer.status_code == 200
        page.goto(f"{site}/dashboard/keys?tz=UTC")
        page.set_viewport_size({"width": 390, "height": 844})
        assert page.evaluate("document.documentElement.scrollWidth") == 390
        row = page.locator("tbody tr", has_text=made[4:12])
        row.get_by_text("Revoke…").click()
        row.get_by_role("button").click()
        page.wait_for_url("**/dashboard/keys?tz=UTC")
        assert "revoked" in page.locator("tbody tr", has_text=made[4:12]).inner_text()
        answer = httpx.get(f"{site}/api/v1/costs", headers={"authorization": f"Bearer {made}"})
        assert answer.status_code == 401
    drive(own.aclose())


@pytest.mark.parametrize("viewport", [WIDE, NARROW], ids=["wide", "narrow"])
def test_long_names_leave_the_costs_of_records_in_sight(
    tmp_path: Path, tab: Callable[..., Any], viewport: dict[str, int]
) -> None:
    url, long = f"sqlite:///{tmp_path}/costs.db", ("long name " * 19).strip()
    with CostOpsClient(base_url=url, organization_id="acme") as client:
        for model in ("gpt-4o", "x" * 200, long):
            client.usage.submit(
                provider="openai", model_id=model, project_id=long, user_id=long, input_tokens=9
            )
    own = open_ledger(url)
    with served(own, require_keys=False) as site:
        page = tab(viewport)
        page.goto(f"{site}/dashboard/records")
        cost = page.locator("tbody tr", has_text="gpt-4o").locator(".cost").bounding_box()
        assert cost["x"] + cost["width"] <= viewport["width"]
        assert (
            page.evaluate("(box => box.scrollWidth - box.clientWidth)(document.querySelector('.scroll'))")
            == 0
        )
    drive(own.aclose())
