"""Servers over one database: behind nginx, which takes each in its turn, or all named in the client's URL."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import Any

import pytest

from llm_cost_ops import CostOpsClient, UsageRecord
from tests.faults.shared_database import USAGE, Load, Server, check_kept, servers, submit
from tests.nginx import nginx

pytestmark = pytest.mark.slow

MANY = {"organization_id": "many", **USAGE}


class Site:
    """Three servers, the URLs that lead to all of them, and their database."""

    def __init__(self, db: str, running: list[Server], urls: list[str]) -> None:
        self.db = db
        self.running = running
        self.urls = urls


@pytest.fixture(scope="module", params=["nginx", "list"])
def site(
    request: pytest.FixtureRequest, postgres: Any, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Site]:
    url = postgres.new_database()
    with servers(url) as running:
        http = [server.url.partition("://")[2] for server in running]
        grpc = [server.grpc.partition("://")[2] for server in running]
        if request.param == "list":
            yield Site(url, running, [f"http://{','.join(http)}", f"grpc://{','.join(grpc)}"])
        else:
            with nginx(tmp_path_factory.mktemp("nginx"), http=http, grpc=grpc) as urls:
                yield Site(url, running, [*urls.values()])
    postgres.drop(url)


def test_a_key_counts_once_and_all_answer_the_same(site: Site) -> None:
    with ExitStack() as stack:
        clients = [stack.enter_context(CostOpsClient(base_url=url)) for url in site.urls]
        with ThreadPoolExecutor(32) as pool:
            for round_ in range(4):
                ids = set(pool.map(lambda n, r=round_: submit(clients[n % 2], f"k{r}"), range(32)))
                assert len(ids) == 1
        clients[0].usage.submit_batch([UsageRecord(idempotency_key=f"m{n}", **MANY) for n in range(50)])
        # More calls than there are servers, so that each of them answers some; and the pages of a list come
        # from one server after the other.
        for ask in (totals, listed):
            answers = [ask(client) for client in clients for _ in range(4)]
            assert answers == [answers[0]] * 8
        assert totals(clients[0])[0] == 4
        assert len(set(listed(clients[0]))) == 50


def totals(client: CostOpsClient) -> list[object]:
    cost = client.costs.get(organization_id="acme")
    return [cost.total_requests, cost.total_cost]


def listed(client: CostOpsClient) -> list[str]:
    return [record.id for record in client.usage.list(organization_id="many", page_size=7)]


def test_any_server_may_be_killed_under_load(site: Site) -> None:
    """The last of this module: one server is left."""
    with Load(site.urls, timeout=60.0) as load:
        for server in site.running[:2]:
            load.wait_for(100)
            server.kill()
        load.wait_for(100)
    assert load.failed == []
    check_kept(site.db, load)
