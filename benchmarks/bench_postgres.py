"""How fast is a ledger in PostgreSQL, beside COPY of the same rows into one table with the same key?

The database is started for this, with fsync on, on the machine that the writers run on: compare the ratios of
one run. "CPU" is what the process that writes, or the server, and the database computed for a record.

Targets: batches of 1,000 at least 0.35 of COPY, two servers not slower than one, 64 callers that wait for
each submit at least 0.5 of the rate of batches, a query of 30 days at most 20 ms (by what grows with events
0.3 s, from the second time on) and flat in the number of rows, 99 % of submits at most twice as slow while
sums are folded.

Run: python benchmarks/bench_postgres.py [--records 40000] [--rows 100000 1000000] [--only-queries]
"""

from __future__ import annotations

import argparse
import asyncio
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime, timedelta
from itertools import count
from pathlib import Path
from statistics import median, quantiles
from threading import Event, Thread
from typing import Any, Self
from unittest.mock import patch

import psycopg

from llm_cost_ops import AsyncCostOpsClient, CostOpsClient
from llm_cost_ops._gen.messages import CostStatus, UsageRecord
from llm_cost_ops.ledger import Entry, Filter, open_ledger
from llm_cost_ops.ledger.encoding import to_micros
from llm_cost_ops.ledger.postgres import sums
from llm_cost_ops.ledger.postgres.rows import prepare, written
from llm_cost_ops.ledger.postgres.sums import fold
from llm_cost_ops.pricing.types import Pricing
from llm_cost_ops.rpc.context import drive, uuid7
from tests.postgres_server import PostgresServer
from tests.unit.ledger.making import context

BATCH = 1000
# So many batches are on their way to each server, as in bench_ingest.py.
CALLERS = 4
# Sent beside single submits, at most 5,000 rows a second: one fold a second.
FOLDED_BATCH, BATCHES_A_TURN = 250, 20
START = datetime(2026, 6, 1, tzinfo=UTC)
# Of what is queried. More rows than these are copies of the others, made in the database.
DAYS, MAX_APPENDED = 60, 1_000_000
RECORD = {
    "organization_id": "acme",
    "provider": "openai",
    "model_id": "gpt-4o",
    "input_tokens": 1000,
    "output_tokens": 500,
}
PRICINGS = [Pricing(CostStatus.PRICED, "USD", f"card-{n}", 1) for n in range(5)]


def entries(count: int, first: int = 0, *, days: int = 0) -> list[Entry]:
    """Entries of a hundred calls a second, or all over so many days with more users, tags and labels."""
    made = []
    for n in range(first, first + count):
        record = UsageRecord(
            organization_id="acme",
            provider="openai",
            model_id=f"model-{n % 5}",
            input_tokens=1000 + n % 977,
            output_tokens=n % 491,
            project_id=f"project-{n % 7}",
            user_id=f"user-{n % (499 if days else 50)}",
            timestamp=START
            + (timedelta(seconds=(n * 7919) % (days * 86400)) if days else timedelta(milliseconds=10 * n)),
        )
        record.total_tokens = (record.input_tokens or 0) + (record.output_tokens or 0)
        if days:
            record.tags, record.labels = [f"tag-{n % 6}"], {"team": f"team-{n % 9}"}
        made.append(Entry(record, uuid7(), datetime.now(UTC), 1_500_000_000 + n, PRICINGS[n % 5]))
    return made


def batches(count: int) -> list[list[Entry]]:
    return [entries(BATCH, first) for first in range(0, count, BATCH)]


def cpu_of(pids: list[int]) -> float:
    total = 0
    for pid in pids:
        with open(f"/proc/{pid}/stat") as file:  # noqa: PTH123
            fields = file.read().rpartition(")")[2].split()
        # Its own and that of its children that ended; those that run are counted by themselves.
        total += sum(map(int, fields[11:15]))
    return total / os.sysconf("SC_CLK_TCK")


def database_pids(server: PostgresServer) -> list[int]:
    assert server._process is not None
    return [server._process.pid, *server._children(server._process.pid)]


class Measured:
    """The seconds and the CPU of what is done inside."""

    def __init__(self, server: PostgresServer, *pids: int) -> None:
        self._server = server
        self._pids = list(pids)

    def __enter__(self) -> Self:
        self._database = cpu_of(database_pids(self._server))
        self._writers = cpu_of(self._pids)
        self._began = time.perf_counter()
        return self

    def __exit__(self, *_: object) -> None:
        self.seconds = time.perf_counter() - self._began
        self.writers = cpu_of(self._pids) - self._writers
        self.database = cpu_of(database_pids(self._server)) - self._database

    def line(self, name: str, count: int, raw: float | None = None) -> float:
        rate = count / self.seconds
        ratio = f"  {rate / raw:5.2f} of COPY" if raw else ""
        cpu = f"CPU {self.writers / count * 1e6:5.0f} + {self.database / count * 1e6:4.0f} us a record"
        print(f"{name:<44}{rate:>10,.0f}/s  {cpu}{ratio}", flush=True)
        return rate


def raw_copy(server: PostgresServer, count: int) -> float:
    url = server.new_database()
    rows = [
        [
            (1, row.id, *(str(part) for part in row.series[1:]), *written(row)[1:])
            for row in map(prepare, batch)
        ]
        for batch in batches(count)
    ]
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(
            "CREATE TABLE raw (org int, id uuid, provider text, model text, project text, operation text, "
            "service_tier text, processing text, region text, currency text, status text, key text, "
            "ingested bigint, ts bigint, requests bigint, input bigint, output bigint, cached bigint, "
            "cost numeric(38, 12), usr text, tags jsonb, labels jsonb, record text, PRIMARY KEY (org, id))"
        )
        with Measured(server, os.getpid()) as measured:
            for batch in rows:
                with connection.transaction(), connection.cursor().copy("COPY raw FROM STDIN") as copy:
                    for row in batch:
                        copy.write_row(row)
    return measured.line("COPY of batches into one table", count)


def in_process(server: PostgresServer, count: int, raw: float, callers: int) -> None:
    ledger = open_ledger(server.new_database())
    first, *made = batches(count + BATCH)
    drive(ledger.append(first, context()))

    def send(some: list[list[Entry]]) -> None:
        for batch in some:
            drive(ledger.append(batch, context()))

    threads = [Thread(target=send, args=(made[at::callers],)) for at in range(callers)]
    with Measured(server, os.getpid()) as measured:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    measured.line(f"append, batches in the process, {callers} caller{'s' * (callers > 1)}", count, raw)
    drive(ledger.aclose())


@contextmanager
def served(db: str, count: int) -> Iterator[list[tuple[str, int]]]:
    """The gRPC addresses and process ids of so many servers."""
    with ExitStack() as stack:
        found = []
        for _ in range(count):
            command = [sys.executable, "-m", "llm_cost_ops.cli", "serve", "--db", db, "--grpc", "127.0.0.1:0"]
            process = stack.enter_context(
                subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[1])
            )
            stack.callback(process.terminate)
            assert process.stdout is not None
            for line in process.stdout:
                if match := re.search(r"grpc://[^\s,]+", line):
                    found.append((match[0], process.pid))
                    break
        yield found


def records(count: int) -> list[UsageRecord]:
    made = [each.record for each in entries(count)]
    for record in made:
        record.timestamp = None
    return made


def through_servers(server: PostgresServer, count: int, raw: float) -> float:
    rates = []
    for number in (1, 2):
        with served(server.new_database(), number) as running, ExitStack() as stack:
            clients = [stack.enter_context(CostOpsClient(base_url=url, timeout=120)) for url, _ in running]
            sent = records(BATCH)
            for client in clients:
                client.usage.submit_batch(sent)

            def send(client: CostOpsClient, rounds: int, sent: list[UsageRecord] = sent) -> None:
                for _ in range(rounds):
                    client.usage.submit_batch(sent)

            share = count // BATCH // number // CALLERS
            threads = [
                Thread(target=send, args=(client, share)) for client in clients for _ in range(CALLERS)
            ]
            with Measured(server, *(pid for _, pid in running)) as measured:
                for thread in threads:
                    thread.start()
                for thread in threads:
                    thread.join()
            name = f"batches by gRPC, {number} server{'s' * (number > 1)}, {CALLERS} callers each"
            rates.append(measured.line(name, share * CALLERS * number * BATCH, raw))
    print(f"{'two servers beside one':<44}{rates[1] / rates[0]:>10.2f}")
    return rates[0]


def single_submits(server: PostgresServer, seconds: float, of_batches: float) -> None:
    with served(server.new_database(), 1) as [(url, pid)]:
        done = 0
        submit: dict[str, Any] = {**RECORD}

        async def call(client: AsyncCostOpsClient, until: float) -> None:
            nonlocal done
            while time.perf_counter() < until:
                await client.usage.submit(**submit)
                done += 1

        async def main() -> Measured:
            async with AsyncCostOpsClient(base_url=url, timeout=60) as client:
                await client.usage.submit(**submit)
                with Measured(server, pid) as measured:
                    until = time.perf_counter() + seconds
                    await asyncio.gather(*(call(client, until) for _ in range(64)))
            return measured

        rate = asyncio.run(main()).line("64 callers, each awaits each submit", done)
        print(f"{'beside the rate of batches':<44}{rate / of_batches:>10.2f}")


def fold_all(ledger: Any) -> None:
    while drive(ledger.figures(context())).unfolded_rows:
        drive(ledger._workers.run(lambda session: fold(session, 1, wait=True), context(60.0)))


_COPIED = "series, pricing, ingested, requests, input, output, cached, cost, usr, tags, labels, record"
# The rows of a copy lie some minutes after those that they are copied from, within the same days.
_MAKE = f"""
    INSERT INTO llm_cost_ops.usage (org, id, key, seq, ts, {_COPIED})
    SELECT org, made::uuid, made, number, %(start)s + mod(ts - %(start)s + %(later)s, %(length)s), {_COPIED}
    FROM (SELECT *, seq + %(first)s AS number, lpad(to_hex(seq + %(first)s), 32, '0') AS made FROM base) AS u
"""
_QUARTER, _DAY = sums.quarter_sql("ts"), sums.day_sql(sums.quarter_sql("ts"))
_SUM = """
    INSERT INTO llm_cost_ops.rollup
    SELECT org, {level}, {bucket}, series, count(*), sum(requests), sum(input), sum(output), sum(cached), 0,
        sum(cost) FROM llm_cost_ops.usage GROUP BY 1, 2, 3, 4
"""


def make_rows(url: str, base: int, size: int) -> None:
    """Copy the `base` rows that are there until there are `size`, and sum all of them again."""
    start, length = to_micros(START), DAYS * 86_400_000_000
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("CREATE TEMPORARY TABLE base AS SELECT * FROM llm_cost_ops.usage")
        for number in range(1, size // base):
            values = {"start": start, "length": length, "later": number * 37 * 60_000_000}
            connection.execute(_MAKE.encode(), {**values, "first": number * 10**10})
        with connection.transaction():
            connection.execute("TRUNCATE llm_cost_ops.rollup, llm_cost_ops.delta")
            for level, bucket in ((sums.QUARTERS, _QUARTER), (sums.DAYS, _DAY)):
                connection.execute(_SUM.format(level=level, bucket=bucket).encode())
        connection.execute("VACUUM ANALYZE")


def query_cases(ledger: Any) -> dict[str, Callable[[], object]]:
    """The queries that are timed, by name."""
    month, every = (START + timedelta(days=10), START + timedelta(days=40)), (None, None)
    hour = START + timedelta(days=20, minutes=7)
    days = [(month[0] + timedelta(days=n), month[0] + timedelta(days=n + 1)) for n in range(30)]

    def cost(
        of: tuple[Any, Any], group_by: tuple[str, ...] = (), buckets: Any = None, user: str = ""
    ) -> Callable[[], object]:
        users = (user,) if user else ()
        where = Filter(organization_ids=("acme",), start=of[0], end=of[1], user_ids=users)
        return lambda: drive(ledger.sums.summarize(where, group_by, buckets, context(600.0)))

    def page() -> object:
        where = Filter(organization_ids=("acme",))
        return drive(ledger.list_usage(where, "timestamp", True, 100, None, None, context(60.0)))

    return {
        "30 days": cost(month),
        "30 days by model": cost(month, ("model",)),
        "30 days by day and model": cost(month, ("model",), days),
        "30 days by user": cost(month, ("user",)),
        "30 days by user and model": cost(month, ("user", "model")),
        "30 days by day and user": cost(month, ("user",), days),
        "30 days by label": cost(month, ("label:team",)),
        "30 days by tag": cost(month, ("tag",)),
        "30 days by meter": cost(month, ("meter",)),
        "30 days of a user": cost(month, user="user-7"),
        "all by project": cost(every, ("project",)),
        "an hour within quarters, by model": cost((hour, hour + timedelta(hours=1)), ("model",)),
        "a page of 100 records, newest first": page,
    }


def queries(server: PostgresServer, sizes: list[int]) -> None:
    url = server.new_database()
    ledger = open_ledger(url)
    written = 0
    for size in sizes:
        if size > MAX_APPENDED and written:
            make_rows(url, written, size)
            [(_, _, found)] = drive(
                ledger.sums.summarize(Filter(organization_ids=("acme",)), (), None, context(60.0))
            )
            assert found.requests == size, found
            written = size
        while written < size:
            drive(ledger.append(entries(10 * BATCH, written, days=DAYS), context(120.0)))
            written += 10 * BATCH
        for _ in range(2):
            figures = drive(ledger.figures(context()))
            unfolded = figures.unfolded_rows
            print(f"{size:,} rows, {figures.bytes / 1e9:.1f} GB")
            for name, query in query_cases(ledger).items():
                times = []
                for _ in range(15):
                    began = time.perf_counter()
                    query()
                    times.append((time.perf_counter() - began) * 1000)
                line = f"{size:>12,} rows, {unfolded:>6,} not folded: {name}"
                print(
                    f"{line:<74}{min(times):>8.1f} ms best, {median(times):.1f} ms median, "
                    f"{times[0]:.1f} ms first",
                    flush=True,
                )
            if not unfolded:
                break
            fold_all(ledger)
    drive(ledger.aclose())


def folding(server: PostgresServer, seconds: float) -> None:
    """One caller's submits beside another's batches, in turns with sums folded and with a wait instead.

    The wait is as long as a fold. Folds begin right after a batch, which some submits waited for: those are
    to be compared with submits that were as unlucky, and not with all.
    """
    moments: dict[bool, list[tuple[float, float]]] = {False: [], True: []}
    length = 0.02
    folds_now = False

    def fold_or_wait(session: Any, org: int, *, wait: bool = False) -> None:
        nonlocal length
        began, folds = time.perf_counter(), folds_now
        if folds:
            fold(session, org, wait=wait)
            length = time.perf_counter() - began
        else:
            time.sleep(length)
        moments[folds].append((began, time.perf_counter()))

    ledger = open_ledger(server.new_database())
    turns = max(4, int(2 * seconds))
    singles = (entries(1, at)[0] for at in count())
    made = iter([entries(FOLDED_BATCH, at * FOLDED_BATCH) for at in range(2 * turns * BATCHES_A_TURN)])
    drive(ledger.append([next(singles)], context()))
    calls: dict[bool, list[tuple[float, float]]] = {False: [], True: []}
    with patch.object(sums, "fold", fold_or_wait):
        for turn in range(2 * turns):
            # In the order A B B A, so that neither has the larger tables.
            folds_now = turn % 4 in (1, 2)
            calls[folds_now] += _turn(ledger, singles, made)
            fold_all(ledger)
    drive(ledger.aclose())
    _print_folding(calls, moments)


def _print_folding(
    calls: dict[bool, list[tuple[float, float]]], moments: dict[bool, list[tuple[float, float]]]
) -> None:
    def during(folds: bool) -> list[tuple[float, float]]:
        return [
            call
            for call in calls[folds]
            if any(began < call[1] and call[0] < ended for began, ended in moments[folds])
        ]

    p99 = {}
    for name, found in (
        ("without folding", calls[False]),
        ("while sums are folded", calls[True]),
        ("at such a moment, without", during(False)),
        ("at the moment of a fold", during(True)),
    ):
        times = [(ended - began) * 1000 for began, ended in found]
        p99[name] = quantiles(times, n=100, method="inclusive")[98]
        line = f"submit, {name:<26}{len(times):>8,} calls {median(times):>8.2f} ms median"
        print(f"{line}, {p99[name]:.2f} ms p99")
    lengths = [(ended - began) * 1000 for began, ended in moments[True]]
    print(f"{len(lengths)} folds of {median(lengths):.0f} ms")
    names = list(p99)
    for without, name in (names[:2], names[2:]):
        print(f"{'p99 beside without: ' + name:<54}{p99[name] / p99[without]:>10.2f}")


def _turn(ledger: Any, singles: Iterator[Entry], made: Iterator[list[Entry]]) -> list[tuple[float, float]]:
    """When each submit began and ended, of those beside some batches."""
    calls = []
    ended = Event()

    def send_batches() -> None:
        try:
            for _ in range(BATCHES_A_TURN):
                drive(ledger.append(next(made), context()))
                ended.wait(0.05)
        finally:
            ended.set()

    thread = Thread(target=send_batches)
    thread.start()
    while not ended.is_set():
        one, began = [next(singles)], time.perf_counter()
        drive(ledger.append(one, context()))
        calls.append((began, time.perf_counter()))
    thread.join()
    return calls


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--records", type=int, default=40_000)
    parser.add_argument("--rows", type=int, nargs="*", default=[100_000, 1_000_000])
    parser.add_argument("--seconds", type=float, default=4.0)
    parser.add_argument("--only-queries", action="store_true")
    options = parser.parse_args()
    with PostgresServer("shared_buffers=512MB", "max_wal_size=4GB") as server:
        if not options.only_queries:
            raw = raw_copy(server, options.records)
            for callers in (1, 2, 8):
                in_process(server, options.records, raw, callers)
            rate = through_servers(server, options.records, raw)
            single_submits(server, options.seconds, rate)
            folding(server, options.seconds)
        queries(server, options.rows)


if __name__ == "__main__":
    main()
