"""The catalog of public prices: loaded when first asked for, decoded model by model."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Iterator, Sequence
from datetime import datetime
from functools import lru_cache
from pathlib import Path

import msgspec

from llm_cost_ops._gen.messages import RateCard
from llm_cost_ops.catalog.bundle import (
    MAX_FILE_BYTES,
    CardRow,
    CatalogError,
    Header,
    ModelRow,
    Payload,
    ProviderRow,
    decode_rows,
    read_bundle,
    read_header,
)
from llm_cost_ops.catalog.cards import card_id, materialise, midnight
from llm_cost_ops.catalog.names import NameTable
from llm_cost_ops.rpc.forks import ForkSafeLock
from llm_cost_ops.rules.providers import canonical_provider

__all__ = [
    "CardEntry",
    "Catalog",
    "CatalogModel",
    "load_catalog",
    "read_catalog",
    "use_catalog",
    "user_catalog_path",
]

_log = logging.getLogger("llm_cost_ops.catalog")

_BUNDLED = Path(__file__).with_name("prices.bin")
# A cached answer holds the cards of one model: a few kilobytes.
_CACHED_MODELS = 2048
_CARD_ID = re.compile(r"(?P<model>.+?)(?:@\d{4}-\d{2}-\d{2}(?:T\d{2}:\d{2}Z)?)?(?:\[[^\]]*\])?")


class CatalogModel(msgspec.Struct, frozen=True, gc=False):
    """A model that a catalog has prices of. `aliases` are its further exact names."""

    provider: str
    id: str
    name: str = ""
    aliases: tuple[str, ...] = ()


class CardEntry(msgspec.Struct, frozen=True, gc=False):
    """What a listing needs to know of a card before it is made: `Catalog.card_of` makes it."""

    id: str
    provider: str
    currency: str
    effective_from: datetime | None
    effective_until: datetime | None
    place: int
    row: int


class _Provider:
    """The decoded rows of one provider; its models stay undecoded until they are asked for."""

    def __init__(self, row: ProviderRow) -> None:
        self.row = row
        self.names = NameTable(row.names, row.patterns)

    def model(self, place: int) -> ModelRow:
        if not 0 <= place < len(self.row.models):
            raise CatalogError("the price catalog is malformed: a name leads to no model")
        return decode_rows(self.row.models[place], ModelRow)


class Catalog:
    """Public prices, as cards. Safe to share between threads.

    `cards` is what the engine asks. Everything that was asked for before is answered from a bounded
    cache, unknown names included.
    """

    def __init__(self, header: Header, payload: Payload, path: str = "") -> None:
        self._header = header
        self._payload = payload
        self._path = path
        self._lock = ForkSafeLock()
        self._entries: tuple[CardEntry, ...] | None = None
        self._provider = lru_cache(maxsize=None)(self._read_provider)
        self._resolve = lru_cache(maxsize=_CACHED_MODELS)(self._find_cards)

    def __repr__(self) -> str:
        return f"Catalog({self.version!r}, published={self.published!r})"

    @property
    def version(self) -> str:
        """The source and its version: the `origin_version` of every card that no second source gave."""
        return self._header.version

    @property
    def published(self) -> str:
        """The ISO date of the data."""
        return self._header.published

    @property
    def checksum(self) -> str:
        """The SHA-256 of the data, in hexadecimal: two catalogs with the same one are the same."""
        return self._header.sha256

    @property
    def path(self) -> str:
        """The file that it was read from; empty for one read from bytes."""
        return self._path

    def providers(self) -> tuple[str, ...]:
        """The canonical names of all providers, sorted."""
        return tuple(self._payload.providers)

    def cards(self, provider: str, model_id: str) -> Sequence[RateCard]:
        """All cards of a model: every date, tier, processing, speed and region. Empty when unknown.

        The name is looked up exactly, then by the provider's patterns, then with a compact date
        spelt out; case does not matter. Each card has `model_id` among its names, and the provider
        as asked for, in its canonical form. The result is shared: do not change it.
        """
        return self._resolve(provider, model_id)

    def card(self, card_id: str) -> RateCard | None:
        """The card of an id, such as "openai/gpt-5[flex]", or None."""
        provider, _, rest = card_id.partition("/")
        match = _CARD_ID.fullmatch(rest)
        if match is None:
            return None
        # A model's own name may end in what looks like a card's date or kind: both readings are tried.
        for model_id in dict.fromkeys((match["model"], rest.partition("[")[0], rest)):
            for card in self.cards(provider, model_id):
                if card.id == card_id:
                    return card
        return None

    def models(self, provider: str = "") -> Iterator[CatalogModel]:
        """The models of a provider, or of all: those with prices, in the order of the catalog."""
        asked = self.provider_of(provider)
        for name in (
            self.providers() if not provider else (asked,) if asked in self._payload.providers else ()
        ):
            for place in range(len(self._provider(name).row.models)):
                row = self._provider(name).model(place)
                if row.cards:
                    yield CatalogModel(name, row.id, row.name, tuple(row.aliases))

    def find(self, text: str, provider: str = "") -> list[CatalogModel]:
        """The models whose provider, id, name or aliases contain every word of `text`.

        Those of one provider where it is given, by any of its names.
        """
        words = text.lower().split()
        found: list[CatalogModel] = []
        for model in self.models(provider):
            searched = " ".join((f"{model.provider}/{model.id}", model.name, *model.aliases)).lower()
            if all(word in searched for word in words):
                found.append(model)
        return found

    def __iter__(self) -> Iterator[RateCard]:
        """Every card of the catalog, made on the way."""
        for name in self.providers():
            for place in range(len(self._provider(name).row.models)):
                yield from self._cards_of(name, name, place)

    def entries(self) -> Sequence[CardEntry]:
        """An entry for each card, by provider and in the order of the catalog: decoded once, then kept."""
        with self._lock.held:
            if self._entries is None:
                self._entries = tuple(
                    CardEntry(
                        card_id(name, model.id, row),
                        name,
                        row.currency,
                        midnight(row.since),
                        midnight(row.until),
                        place,
                        number,
                    )
                    for name in self.providers()
                    for place in range(len(self._provider(name).row.models))
                    for model in (self._provider(name).model(place),)
                    for number, row in enumerate(model.cards)
                )
            return self._entries

    def card_of(self, entry: CardEntry) -> RateCard:
        """The card of an entry, made anew."""
        model = self._provider(entry.provider).model(entry.place)
        return self._made(model, model.cards[entry.row], entry.provider, entry.provider, list(model.aliases))

    def provider_of(self, provider: str) -> str:
        """The provider that a name stands for here; the name itself in its canonical form where for none."""
        name = canonical_provider(provider)
        return name if name in self._payload.providers else self._payload.aliases.get(name, name)

    def _read_provider(self, name: str) -> _Provider:
        return _Provider(decode_rows(self._payload.providers[name], ProviderRow))

    def _find_cards(self, provider: str, model_id: str) -> tuple[RateCard, ...]:
        owner = self.provider_of(provider)
        if owner not in self._payload.providers:
            return ()
        place = self._provider(owner).names.find(model_id)
        if place is None:
            return ()
        return tuple(self._cards_of(owner, canonical_provider(provider), place, model_id))

    def _cards_of(self, owner: str, shown: str, place: int, asked: str = "") -> Iterator[RateCard]:
        model = self._provider(owner).model(place)
        names = list(model.aliases)
        if asked and asked not in {model.id, *names}:
            names.append(asked)
        for row in model.cards:
            yield self._made(model, row, owner, shown, names)

    def _made(self, model: ModelRow, row: CardRow, owner: str, shown: str, names: list[str]) -> RateCard:
        if not 0 <= row.url < len(self._payload.urls):
            raise CatalogError(f"the price catalog is malformed: {owner}/{model.id} has no source")
        url = self._payload.urls[row.url]
        return materialise(
            row,
            provider=shown,
            model_id=model.id,
            names=names,
            version=self._payload.origins.get(url, self.version),
            url=url,
        )


class _InForce:
    """The catalog that this process uses, once it has been asked for."""

    def __init__(self) -> None:
        self.lock = ForkSafeLock()
        self.catalog: Catalog | None = None


_in_force = _InForce()


def user_catalog_path() -> Path:
    """Where a refreshed catalog is kept: in $XDG_DATA_HOME, or ~/.local/share."""
    home = os.environ.get("XDG_DATA_HOME", "")
    # The specification has a relative path ignored.
    base = Path(home) if home and Path(home).is_absolute() else Path.home() / ".local" / "share"
    return base / "llm-cost-ops" / "prices.bin"


def read_catalog(path: str | os.PathLike[str]) -> Catalog:
    """Reads a catalog file. Raises CatalogError when it cannot be read or trusted; changes nothing."""
    data = _read_file(Path(path))
    header, payload = read_bundle(data)
    return Catalog(header, payload, os.fspath(path))


def load_catalog(path: str | os.PathLike[str] | None = None) -> Catalog:
    """The catalog in force: the one bundled, or the refreshed one of this user where that is newer.

    Loads on the first call, once for all threads. A refreshed file that cannot be trusted is left
    alone with a warning in the log, and the bundled one stays in force. With `path`, reads that
    file instead, and leaves what is in force as it is.

    Raises CatalogError when `path`, or the bundled file, cannot be read.
    """
    if path is not None:
        return read_catalog(path)
    if (catalog := _in_force.catalog) is not None:
        return catalog
    with _in_force.lock.held:
        if _in_force.catalog is None:
            _in_force.catalog = _load_default()
        return _in_force.catalog


def use_catalog(catalog: Catalog | None) -> Catalog | None:
    """Puts a catalog in force in this process, None for that of the next load. Returns the one before."""
    with _in_force.lock.held:
        before, _in_force.catalog = _in_force.catalog, catalog
    return before


def _load_default() -> Catalog:
    data = _read_file(_BUNDLED)
    refreshed = _refreshed(read_header(data)[0].published)
    return refreshed or Catalog(*read_bundle(data), str(_BUNDLED))


def _refreshed(bundled: str) -> Catalog | None:
    """This user's refreshed catalog, unless there is none, it is older than `bundled`, or it is broken."""
    try:
        path = user_catalog_path()
        if not path.is_file():
            return None
        catalog = read_catalog(path)
    except (CatalogError, OSError, RuntimeError) as error:
        _log.warning("the refreshed price catalog is not used, the bundled one is: %s", error)
        return None
    return catalog if catalog.published >= bundled else None


def _read_file(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise CatalogError(f"the price catalog {path} cannot be read: {error}") from error
