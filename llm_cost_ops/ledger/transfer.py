"""Copying a whole ledger into another database, from one backend to another: what is read, and written there.

Everything that cannot be calculated is carried over as it is: ids, keys, times, costs with what priced them,
every revision, cards, and API keys with the secret that their hashes are keyed with. Sums are made anew.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from typing import NamedTuple, Protocol

import msgspec

from llm_cost_ops._gen.messages import CostStatus
from llm_cost_ops.exceptions import ConfigurationError
from llm_cost_ops.ledger import backend_of
from llm_cost_ops.ledger.types import Entry, Revision
from llm_cost_ops.pricing.types import Pricing

__all__ = [
    "Added",
    "Moved",
    "Pricings",
    "SharedRows",
    "Transfer",
    "check_same",
    "missing_rows",
    "open_transfer",
    "other_cards",
]

SharedRows = dict[str, list[tuple[object, ...]]]
"""Rows that belong to no record, by what they are: kept_card, card, card_key, secret, api_key, audit and
retention. Digests, fingerprints, hashes and secrets are bytes, cards JSON, times microseconds since 1970."""


class Moved(msgspec.Struct, gc=False):
    """A record as it was first appended, under its id, and all that became of it since.

    In no Pricing is the card itself: `SharedRows` has each, and the digest names it. `erased` says that a
    user was erased from the record.
    """

    usage_id: str
    entry: Entry
    erased: bool
    revisions: list[Revision]


class Pricings:
    """How rows were priced: one object for all that are alike, as a SQLite ledger tells them apart by it."""

    def __init__(self) -> None:
        self._made: dict[tuple[object, ...], Pricing] = {}

    def of(
        self,
        currency: str,
        status: str,
        card_id: str,
        card_version: int,
        origin_version: str,
        fallbacks: str,
        digest: bytes,
    ) -> Pricing:
        """The Pricing that columns of series and pricing stand for."""
        columns = (currency, status, card_id, card_version, origin_version, fallbacks, digest)
        if columns not in self._made:
            self._made[columns] = Pricing(
                CostStatus(status),
                currency,
                card_id,
                card_version,
                tuple(filter(None, fallbacks.split(","))),
                origin_version,
                digest=bytes(digest),
            )
        return self._made[columns]


class Added(NamedTuple):
    """How many records and revisions of a page were not there before."""

    records: int
    revisions: int


class Transfer(Protocol):
    """A database that is copied from or to. Methods raise RpcError as those of its Ledger do."""

    def shared(self) -> SharedRows:
        """What belongs to no record."""

    def add_shared(self, rows: SharedRows) -> bool:
        """Add what is not there yet; False when keys of its own, under another secret, kept API keys out.

        ConfigurationError when it has cards that the source has not.
        """

    def read(self, after: str | None, limit: int) -> tuple[list[Moved], str | None]:
        """The next records in the order of their commits, and where to go on; none at the end."""

    def add(self, moved: Sequence[Moved]) -> Added:
        """Add the records and revisions that are not there yet, in one transaction with their sums.

        ConfigurationError when it has another record under the id of one of them.
        """

    def close(self) -> None:
        """Close the connection."""


def open_transfer(url: str, *, make: bool) -> Transfer:
    """The database at a URL or path as `open_ledger` takes it; without `make` it has to be there."""
    url, package = backend_of(url)
    opened: Transfer = import_module(f"{package}.transfer").open(url, make=make)
    return opened


def missing_rows(wanted: SharedRows, there: SharedRows) -> tuple[SharedRows, bool]:
    """What is to be added to the rows that are there, and whether that is all that is missing.

    Hashes of API keys are worth nothing under another secret: where there are keys, they keep theirs.
    """
    missing = {}
    for name, rows in wanted.items():
        known = set(there[name])
        missing[name] = [row for row in rows if row not in known]
    complete = not there["api_key"] or there["secret"] == wanted["secret"]
    if not complete:
        missing |= {"api_key": [], "secret": []}
    return missing, complete


def check_same(moved: Moved, *, same: bool, erased: bool) -> None:
    """ConfigurationError unless what the target has under an id is that record: the same as it was sent, or
    with a user `erased` from it there.
    """
    organization = moved.entry.record.organization_id
    which = f"the record {moved.usage_id} of {organization!r}"
    if moved.erased and not erased:
        raise ConfigurationError(
            f"a user was erased from {which} in the source since it was copied: erase them from the target "
            "too, with `llm-cost-ops privacy erase`, and copy again",
            parameter="target",
        )
    if not same and not erased:
        raise ConfigurationError(f"the target has another record in place of {which}", parameter="target")


def other_cards() -> ConfigurationError:
    """The error when the target has price cards that the source has not."""
    return ConfigurationError(
        "the target has price cards of its own, under versions that the source's cards have",
        parameter="target",
    )
