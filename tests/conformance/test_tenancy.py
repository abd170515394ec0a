"""Tenants: every method with what belongs to another organization, over each network transport and colour."""

from __future__ import annotations

import inspect
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from decimal import Decimal
from functools import partial
from typing import Any

import pytest

from llm_cost_ops import AuthenticationError, AuthorizationError, NotFoundError, UsageRecord, ValidationError
from llm_cost_ops._gen import methods
from llm_cost_ops._gen.messages import StreamUsageRequest
from llm_cost_ops.rpc.context import drive, uuid7
from llm_cost_ops.rpc.method import MethodDescriptor
from llm_cost_ops.server.admission import Admission
from llm_cost_ops.service import open_service
from llm_cost_ops.service.access.authentication import Authentication
from llm_cost_ops.service.access.tenancy import OPEN, RULES, Tenancy
from llm_cost_ops.types import SubmitStatus
from tests.conformance.clients import COLOURS
from tests.conformance.keyed import Clients, KeyedServer, keyed_server

CALL: dict[str, Any] = {
    "provider": "openai",
    "model_id": "gpt-4o",
    "input_tokens": 1000,
    "output_tokens": 500,
    "timestamp": "2026-11-20T15:00:00Z",
}
COST = Decimal("0.0075")
DAY = {"start_date": "2026-11-20", "end_date": "2026-11-20"}

Case = Callable[[Clients, str], Awaitable[None]]
CASES: dict[str, Case] = {}


def covers(method: Any) -> Callable[[Case], Case]:
    def add(case: Case) -> Case:
        CASES[method.path] = case
        return case

    return add


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[KeyedServer]:
    with keyed_server(tmp_path_factory.mktemp("keyed")) as server:
        yield server


@pytest.fixture(params=[f"{transport}-{colour}" for transport in ("http", "grpc") for colour in COLOURS])
async def clients(server: KeyedServer, request: pytest.FixtureRequest) -> AsyncIterator[Clients]:
    made = Clients(server, *request.param.split("-"))
    yield made
    await made.close()


def served() -> list[str]:
    service = open_service("sqlite://")
    found = sorted(service.handler.methods)
    drive(service.aclose())
    return found


def test_every_method_is_open_or_has_a_rule_and_a_case() -> None:
    assert set(served()) == OPEN | RULES.keys()
    assert RULES.keys() == CASES.keys()


@pytest.mark.parametrize("interceptor", [Admission, Authentication, Tenancy])
def test_no_kind_of_method_passes_by(interceptor: Any) -> None:
    kinds = {found.cardinality for found in vars(methods).values() if isinstance(found, MethodDescriptor)}
    assert [kind for kind in kinds if not hasattr(interceptor, f"intercept_{kind.value}")] == []


@pytest.mark.parametrize("path", [path for path in served() if path not in OPEN])
async def test_a_foreign_object(clients: Clients, path: str) -> None:
    await CASES[path](clients, f"p-{uuid7()}")


async def refused(call: Awaitable[Any], field: str = "organization_id") -> None:
    with pytest.raises(AuthorizationError, match=field) as caught:
        await call
    assert (caught.value.status_code, caught.value.code) == (403, "PERMISSION_DENIED")
    assert "globex" not in str(caught.value)


async def fill(clients: Clients, project: str) -> None:
    """Two records of acme and one of globex, in projects of the same name."""
    for who, count in ((clients.acme, 2), (clients.globex, 1)):
        organization = "acme" if count == 2 else "globex"
        for _ in range(count):
            await who.usage.submit(
                organization_id=organization, project_id=project, user_id=organization, **CALL
            )


@covers(methods.SUBMIT_USAGE)
async def submit(clients: Clients, project: str) -> None:
    for organization in ("globex", "no-such-organization"):
        await refused(clients.acme.usage.submit(organization_id=organization, project_id=project, **CALL))
    await refused(clients.acme_reader.usage.submit(organization_id="acme", **CALL), "role writer")
    key = f"key-{project}"
    sent = {**CALL, "project_id": project, "idempotency_key": key}
    ours = await clients.acme.usage.submit(organization_id="acme", **sent)
    theirs = await clients.globex.usage.submit(organization_id="globex", **{**sent, "input_tokens": 7})
    assert not theirs.duplicate
    assert theirs.usage_id != ours.usage_id
    again = await clients.both.usage.submit(organization_id="acme", **sent)
    assert (again.usage_id, again.duplicate) == (ours.usage_id, True)


@covers(methods.BATCH_SUBMIT_USAGE)
async def submit_batch(clients: Clients, project: str) -> None:
    organizations = ("acme", "globex", "no-such-organization", "acme")
    records = [
        UsageRecord(organization_id=name, project_id=project, provider="openai", model_id="gpt-4o")
        for name in organizations
    ]
    receipt = await clients.acme.usage.submit_batch(records)
    assert [result.status for result in receipt.results] == [
        SubmitStatus.CREATED,
        SubmitStatus.INVALID,
        SubmitStatus.INVALID,
        SubmitStatus.CREATED,
    ]
    assert (receipt.created, receipt.invalid) == (2, 2)
    errors = [result.error for result in receipt.results[1:3]]
    assert {error.code for error in errors} == {"PERMISSION_DENIED"}
    assert [error.violations[0].field for error in errors] == [
        "records[1].organization_id",
        "records[2].organization_id",
    ]
    assert (await clients.globex.costs.get(project_id=project)).total_requests == 0
    await refused(clients.acme_reader.usage.submit_batch(records), "role writer")


@covers(methods.LIST_USAGE)
async def history(clients: Clients, project: str) -> None:
    await fill(clients, project)
    await refused_filters(lambda client: client.usage.get_history, clients, project)
    for who, count in (
        (clients.acme_reader, 2),
        (clients.globex, 1),
        (clients.both, 3),
        (clients.everyone, 3),
    ):
        page = await who.usage.get_history(project_id=project)
        assert (len(page.data), page.pagination.total_items) == (count, count)
    theirs = await clients.acme.usage.get_history(user_id="globex", project_id=project)
    assert theirs.data == []
    first = await clients.acme.usage.get_history(project_id=project, page_size=1)
    cursor = first.pagination.next_cursor
    second = await clients.acme_reader.usage.get_history(project_id=project, page_size=1, cursor=cursor)
    assert [record.organization_id for record in second.data] == ["acme"]
    assert second.data[0].id != first.data[0].id
    for other in (clients.globex, clients.both, clients.everyone):
        with pytest.raises(ValidationError, match="cursor"):
            await other.usage.get_history(project_id=project, page_size=1, cursor=cursor)


async def refused_filters(
    get: Callable[[Any], Any], clients: Clients, project: str, *, client: str = "acme"
) -> None:
    """To name another organization is refused, whether there is one or not."""
    asker = getattr(clients, client)
    for organization in ("globex", "no-such-organization", ["acme", "globex"]):
        await refused(get(asker)(organization_id=organization, project_id=project, **DAY))


async def taken(stream: Any) -> list[Any]:
    """All messages of a stream, of either colour."""
    found = await stream if inspect.isawaitable(stream) else stream
    return [one async for one in found] if hasattr(found, "__aiter__") else list(found)


@covers(methods.EXPORT_USAGE)
async def export_usage(clients: Clients, project: str) -> None:
    await fill(clients, project)

    async def exported(client: Any, **options: Any) -> list[str]:
        records = await taken(client.usage.export(project_id=project, **options))
        return sorted(record.organization_id for record in records)

    assert await exported(clients.acme_reader) == ["acme", "acme"]
    assert await exported(clients.globex) == ["globex"]
    assert await exported(clients.everyone) == ["acme", "acme", "globex"]
    assert await exported(clients.acme, user_id="globex") == []
    for organization in ("globex", "no-such-organization", ["acme", "globex"]):
        await refused(exported(clients.acme, organization_id=organization))
    with pytest.raises(AuthenticationError):
        await exported(clients.of(None))


@covers(methods.STREAM_USAGE)
async def stream_usage(clients: Clients, project: str) -> None:
    records = [
        UsageRecord(organization_id=name, project_id=project, provider="openai", model_id="gpt-4o")
        for name in ("acme", "globex", "acme")
    ]
    requests = [StreamUsageRequest(records=[record]) for record in records]
    answers = await taken(clients.acme.usage.stream_requests(requests))
    assert (answers[-1].durable, answers[-1].created) == (3, 2)
    problems = [(problem.index, problem.error.code) for answer in answers for problem in answer.problems]
    assert problems == [(1, "PERMISSION_DENIED")]
    assert (await clients.globex.costs.get(project_id=project)).total_requests == 0
    await refused(taken(clients.acme_reader.usage.stream_requests(requests)), "role writer")
    with pytest.raises(AuthenticationError):
        await taken(clients.of(None).usage.stream_requests(requests))


@covers(methods.GET_COST_SUMMARY)
async def costs(clients: Clients, project: str) -> None:
    await fill(clients, project)
    await refused_filters(lambda client: client.costs.get, clients, project)
    for who, shares in (
        (clients.acme_reader, {"acme": 2}),
        (clients.globex, {"globex": 1}),
        (clients.both, {"acme": 2, "globex": 1}),
        (clients.everyone, {"acme": 2, "globex": 1}),
    ):
        summary = await who.costs.get(project_id=project, group_by="organization")
        assert {group.value: group.requests for group in summary.breakdown} == shares
        assert summary.total_cost == COST * sum(shares.values())
        by_day = await who.costs.get(project_id=project, group_by="day")
        assert by_day.total_requests == sum(shares.values())
    named = await clients.both.costs.get(organization_id="acme", project_id=project)
    assert named.total_requests == 2


@covers(methods.GET_ANALYTICS)
async def analytics(clients: Clients, project: str) -> None:
    await fill(clients, project)
    await refused_filters(lambda client: client.analytics.get, clients, project)
    for who, count in ((clients.acme_reader, 2), (clients.globex, 1), (clients.both, 3)):
        series = await who.analytics.get(project_id=project, group_by="organization", **DAY)
        assert series.summary.total_requests == count
        assert sum(point.metrics.total_requests for point in series.time_series) == count


async def one_record(clients: Clients, project: str) -> str:
    """The id of a record of globex."""
    call = {**CALL, "project_id": project}
    receipt = await clients.globex.usage.submit(organization_id="globex", **call)
    return str(receipt.usage_id)


async def hidden(get: Callable[[Any], Any], clients: Clients, found: str) -> None:
    """What is another organization's is not found, in the words for what does not exist."""
    said = []
    for name in (found, str(uuid7())):
        with pytest.raises(NotFoundError) as caught:
            await get(clients.acme_admin)(name)
        said.append(caught.value.message.replace(name, "ID"))
    assert said[0] == said[1]


@covers(methods.GET_COST)
async def get_cost(clients: Clients, project: str) -> None:
    usage_id = await one_record(clients, project)
    for client in (clients.globex, clients.both, clients.everyone):
        assert (await client.costs.get_record(usage_id, organization_id="globex")).total_cost == COST
    assert (await clients.globex.costs.get_record(usage_id)).total_cost == COST, "it has one organization"
    for client in (clients.both, clients.everyone):
        with pytest.raises(ValidationError, match="organization_id must be given"):
            await client.costs.get_record(usage_id)
    await refused(clients.acme_admin.costs.get_record(usage_id, organization_id="globex"))
    await refused(clients.acme_admin.costs.verify(usage_id, organization_id="globex"))
    await hidden(lambda client: client.costs.get_record, clients, usage_id)


@covers(methods.VERIFY_COST)
async def verify_cost(clients: Clients, project: str) -> None:
    usage_id = await one_record(clients, project)
    assert (await clients.globex.costs.verify(usage_id)).matches
    await hidden(lambda client: client.costs.verify, clients, usage_id)


@covers(methods.VOID_USAGE)
async def void_usage(clients: Clients, project: str) -> None:
    usage_id = await one_record(clients, project)
    await hidden(lambda client: partial(client.usage.void, reason="r"), clients, usage_id)
    await refused(clients.acme_admin.usage.void(usage_id, reason="r", organization_id="globex"))
    await refused(clients.globex.usage.void(usage_id, reason="r"), "role admin")
    assert (await clients.globex.costs.get(project_id=project)).total_requests == 1
    voided = await clients.globex_admin.usage.void(usage_id, reason="r")
    assert voided.actor
    assert (await clients.globex.costs.get(project_id=project)).total_requests == 0


@covers(methods.CORRECT_USAGE)
async def correct_usage(clients: Clients, project: str) -> None:
    usage_id = await one_record(clients, project)
    change: dict[str, Any] = {"reason": "r", "changes": {"input_tokens": 7}}
    await hidden(lambda client: partial(client.usage.correct, **change), clients, usage_id)
    await refused(clients.acme_admin.usage.correct(usage_id, organization_id="globex", **change))
    await refused(clients.globex.usage.correct(usage_id, **change), "role admin")
    with pytest.raises(ValidationError, match=r"changes\.organization_id"):
        await clients.everyone.usage.correct(
            usage_id, organization_id="globex", reason="r", changes={"organization_id": "acme"}
        )
    corrected = await clients.globex_admin.usage.correct(usage_id, **change)
    assert (corrected.revision, corrected.usage.input_tokens) == (2, 7)
    assert corrected.actor


@covers(methods.LIST_USAGE_REVISIONS)
async def list_usage_revisions(clients: Clients, project: str) -> None:
    usage_id = await one_record(clients, project)
    assert len((await clients.globex.usage.revisions(usage_id)).revisions) == 1
    await hidden(lambda client: client.usage.revisions, clients, usage_id)
    await refused(clients.acme_admin.usage.revisions(usage_id, organization_id="globex"))


@covers(methods.ESTIMATE_COST)
async def estimate_cost(clients: Clients, project: str) -> None:
    await contract(clients, project)
    used = {"provider": "house", "model_id": project, "input_tokens": 1000}
    theirs = await clients.globex.costs.estimate(organization_id="globex", **used)
    assert theirs.total_cost == Decimal(1)
    for organization in ("acme", ""):
        ours = await clients.acme_reader.costs.estimate(organization_id=organization, **used)
        assert ours.total_cost is None
    for organization in ("globex", "no-such-organization"):
        await refused(clients.acme.costs.estimate(organization_id=organization, **used))


@covers(methods.REPRICE_USAGE)
async def reprice_usage(clients: Clients, project: str) -> None:
    used = {"provider": "house", "model_id": project, "input_tokens": 1000}
    for organization in ("acme", "globex"):
        await clients.everyone.usage.submit(organization_id=organization, **used)
    price = {"provider": "house", "model_id": project, "input_price_per_1k": "1"}
    await clients.everyone.pricing.create(effective_date="2020-01-01", **price)
    await refused(clients.acme.costs.reprice(model_id=project, dry_run=True), "role admin")
    await refused_filters(lambda client: client.costs.reprice, clients, project, client="acme_admin")
    report = await clients.acme_admin.costs.reprice(model_id=project)
    assert (report.examined, report.changed) == (1, 1)
    [record] = (await clients.acme_admin.usage.get_history(model_id=project)).data
    history = await clients.acme_admin.usage.revisions(record.id)
    assert [bool(each.actor) for each in history.revisions] == [False, True]
    summary = await clients.everyone.costs.get(model_id=project, group_by="organization")
    shares = {group.value: (group.cost, group.unpriced_requests) for group in summary.breakdown}
    assert shares == {"acme": (Decimal(1), 0), "globex": (Decimal(0), 1)}


@covers(methods.CREATE_PRICE)
async def create_price(clients: Clients, project: str) -> None:
    price = {"provider": "house", "model_id": project, "input_price_per_1k": "1"}
    await refused(clients.acme.pricing.create(organization_id="acme", **price), "role admin")
    for organization in ("globex", "no-such-organization", ""):
        await refused(clients.acme_admin.pricing.create(organization_id=organization, **price))
    key = f"key-{project}"
    ours = await clients.acme_admin.pricing.create(organization_id="acme", idempotency_key=key, **price)
    theirs = await clients.globex_admin.pricing.create(organization_id="globex", idempotency_key=key, **price)
    everyones = await clients.everyone.pricing.create(idempotency_key=key, **price)
    assert len({ours.id, theirs.id, everyones.id}) == 3


async def contract(clients: Clients, project: str) -> Any:
    """A price that globex alone has."""
    return await clients.globex_admin.pricing.create(
        organization_id="globex", provider="house", model_id=project, input_price_per_1k="1"
    )


@covers(methods.GET_PRICE)
async def get_price(clients: Clients, project: str) -> None:
    card = await contract(clients, project)
    assert (await clients.globex.pricing.get(card.id)).id == card.id
    assert (await clients.everyone.pricing.get(card.id)).id == card.id
    await hidden(lambda client: client.pricing.get, clients, card.id)


@covers(methods.LIST_PRICES)
async def list_prices(clients: Clients, project: str) -> None:
    card = await contract(clients, project)
    assert (await clients.acme_admin.pricing.list(model_id=project)).data == []
    assert [found.id for found in (await clients.globex.pricing.list(model_id=project)).data] == [card.id]
    assert [found.id for found in (await clients.everyone.pricing.list(model_id=project)).data] == [card.id]
    named = await clients.everyone.pricing.list(model_id=project, organization_id="globex")
    assert [found.id for found in named.data] == [card.id]
    for organization in ("globex", "no-such-organization"):
        await refused(clients.acme.pricing.list(model_id=project, organization_id=organization))
    used = {"provider": "house", "model_id": project, "input_tokens": 1000}
    ours = await clients.acme.usage.submit(organization_id="acme", **used)
    theirs = await clients.globex.usage.submit(organization_id="globex", **used)
    assert (ours.estimated_cost, theirs.estimated_cost) == (None, Decimal(1))
    cursor = (await clients.globex.pricing.list(page_size=1)).pagination.next_cursor
    with pytest.raises(ValidationError, match="cursor"):
        await clients.acme.pricing.list(page_size=1, cursor=cursor)


@covers(methods.LIST_AUDIT_EVENTS)
async def list_audit_events(clients: Clients, project: str) -> None:
    sent = await clients.acme.usage.submit(organization_id="acme", project_id=project, **CALL)
    await clients.acme_admin.usage.void(sent.usage_id, reason=project)
    await clients.everyone.pricing.create(provider="house", model_id=project, input_price_per_1k="1")
    await refused(clients.acme.audit.list(), "role admin")
    for organization in ("globex", "no-such-organization"):
        await refused(clients.acme_admin.audit.list(organization_id=organization))
    [event] = (await clients.acme_admin.audit.list(subject=sent.usage_id)).data
    assert (event.action, event.organization_id, event.details) == ("usage.voided", "acme", {"revision": 2})
    assert event.actor == clients.server.keys["acme_admin"][4:12]
    assert (await clients.globex_admin.audit.list(subject=sent.usage_id)).data == []
    prices = (await clients.acme_admin.audit.list(action="price.created", page_size=1000)).data
    assert project not in [event.details["model_id"] for event in prices]
    newest = (await clients.everyone.audit.list(action="price.created")).data[0]
    assert (newest.organization_id, newest.details["model_id"]) == ("", project)
    cursor = (await clients.everyone.audit.list(page_size=1)).pagination.next_cursor
    with pytest.raises(ValidationError, match="cursor"):
        await clients.acme_admin.audit.list(page_size=1, cursor=cursor)


@covers(methods.ERASE_USER)
async def erase_user(clients: Clients, project: str) -> None:
    for organization in ("acme", "globex"):
        used = {"organization_id": organization, "user_id": project, **CALL}
        await clients.everyone.usage.submit(**used)
    await refused(clients.acme.privacy.erase(user_id=project), "role admin")
    for organization in ("globex", "no-such-organization"):
        await refused(clients.acme_admin.privacy.erase(user_id=project, organization_id=organization))
    done = await clients.acme_admin.privacy.erase(user_id=project)
    assert done.records == 1
    summary = await clients.everyone.costs.get(user_id=project, group_by="organization")
    assert [group.value for group in summary.breakdown] == ["globex"]
    [event] = (await clients.everyone.audit.list(subject=done.id)).data
    assert (event.organization_id, event.details) == ("acme", {"records": 1})
    assert event.actor == clients.server.keys["acme_admin"][4:12]


@covers(methods.SET_RETENTION)
async def set_retention(clients: Clients, project: str) -> None:
    await refused(clients.acme.retention.set(organization_id="acme", days=9), "role admin")
    for organization in ("globex", "no-such-organization"):
        await refused(clients.acme_admin.retention.set(organization_id=organization, days=9))
    policy = await clients.acme_admin.retention.set(organization_id="acme", days=36500)
    assert (policy.organization_id, policy.days) == ("acme", 36500)


@covers(methods.LIST_RETENTION)
async def list_retention(clients: Clients, project: str) -> None:
    for name in ("acme", "globex"):
        await clients.everyone.retention.set(organization_id=name, days=36500)
    await refused(clients.acme_reader.retention.list(organization_id="globex"))
    found = (await clients.acme_reader.retention.list()).policies
    assert [policy.organization_id for policy in found] == ["acme"]
    both = (await clients.everyone.retention.list()).policies
    assert {"acme", "globex"} <= {policy.organization_id for policy in both}


@covers(methods.APPLY_RETENTION)
async def apply_retention(clients: Clients, project: str) -> None:
    old = {**CALL, "timestamp": "2000-06-01T00:00:00Z", "project_id": project}
    for name in ("acme", "globex"):
        await clients.everyone.usage.submit(organization_id=name, **old)
        await clients.everyone.retention.set(organization_id=name, days=9000)
    await refused(clients.acme.retention.apply(), "role admin")
    await refused(clients.acme_admin.retention.apply(organization_id="globex"))
    # Not removed: what is left could not be asked for by user any more.
    [policy] = (await clients.acme_admin.retention.apply(dry_run=True)).policies
    assert policy.organization_id == "acme"
    found = (await clients.everyone.retention.apply(dry_run=True)).policies
    assert {"acme", "globex"} <= {policy.organization_id for policy in found}
