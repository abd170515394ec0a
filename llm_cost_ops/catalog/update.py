"""Refreshes the catalog from a file or a URL that the user gives. Nothing here runs by itself."""

from __future__ import annotations

import contextlib
import hashlib
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import msgspec

from llm_cost_ops.catalog.bundle import MAX_FILE_BYTES, CatalogError, read_bundle
from llm_cost_ops.catalog.check import check_payload
from llm_cost_ops.catalog.load import Catalog, load_catalog, use_catalog, user_catalog_path

if TYPE_CHECKING:
    import httpx

__all__ = ["CatalogUpdate", "update_catalog"]

# The size is limited as it travels: a body that unpacks itself would not be.
_HEADERS = {"accept-encoding": "identity"}
_STEP_SECONDS = 5.0
_LOOPBACK = frozenset({"localhost", "127.0.0.1", "::1"})


class CatalogUpdate(msgspec.Struct, frozen=True, kw_only=True):
    """What a refresh did. `changed` is False when the data was in force already, or was not agreed to."""

    catalog: Catalog
    previous: Catalog
    path: str
    cards: int
    changed: bool


def update_catalog(
    source: str | os.PathLike[str],
    *,
    path: str | os.PathLike[str] | None = None,
    sha256: str | None = None,
    timeout: float = 30.0,
    allow_older: bool = False,
    client: httpx.Client | None = None,
    agree: Callable[[Catalog, Catalog], bool] | None = None,
) -> CatalogUpdate:
    """Puts another catalog in force, for this process and those that start later.

    `source` is a file, or a URL: https, or http on this machine. `path` is where to keep it, by
    default `user_catalog_path()`; processes that start later find it only there. `sha256` is that
    of the whole file, in hexadecimal, and makes sure that nobody changed it on the way. `timeout`
    is for the whole download, in seconds. Data older than what is in force is refused unless
    `allow_older`. `client` takes your own httpx client, for proxies and certificates. `agree` is asked, with
    the catalog in force and the new one, before a change is written; when it says no, nothing is.

    Everything is checked before anything is replaced. Raises CatalogError when the file cannot be
    got, is too big, broken, changed or from a newer schema; then nothing has changed.
    """
    previous = load_catalog()
    data = _get(os.fspath(source), timeout, client)
    if sha256 is not None and hashlib.sha256(data).hexdigest() != sha256.strip().lower():
        raise CatalogError("the price catalog does not have the SHA-256 that was asked for")
    header, payload = read_bundle(data)
    cards = check_payload(payload)
    if header.published < previous.published and not allow_older:
        raise CatalogError(
            f"the price catalog is of {header.published}, that in force of {previous.published}: it is older"
        )
    target = Path(path) if path is not None else user_catalog_path()
    catalog = Catalog(header, payload, str(target))
    changed = catalog.checksum != previous.checksum
    if changed and agree is not None and not agree(previous, catalog):
        catalog, changed = previous, False
    else:
        # Where the file is a link, as to a volume, the link stays.
        _replace(Path(os.path.realpath(target)), data)
        use_catalog(catalog)
    return CatalogUpdate(catalog=catalog, previous=previous, path=str(target), cards=cards, changed=changed)


def _get(source: str, timeout: float, client: httpx.Client | None) -> bytes:
    if "://" in source:
        data = _download(source, timeout, client)
    else:
        try:
            with Path(source).open("rb") as file:
                data = file.read(MAX_FILE_BYTES + 1)
        except (OSError, ValueError) as error:
            raise CatalogError(f"the price catalog {source!r} cannot be read: {error}") from error
    if len(data) > MAX_FILE_BYTES:
        raise CatalogError(f"the price catalog has more than the limit of {MAX_FILE_BYTES} bytes")
    return data


def _download(url: str, timeout: float, client: httpx.Client | None) -> bytes:
    import httpx

    shown = _without_secrets(url)
    deadline = time.monotonic() + timeout
    # httpx bounds single steps only: one that began just in time may end this much later.
    step = min(timeout, _STEP_SECONDS)
    try:
        with (
            contextlib.nullcontext(client) if client is not None else httpx.Client() as http,
            http.stream("GET", url, headers=_HEADERS, timeout=step, follow_redirects=False) as response,
        ):
            if response.status_code != httpx.codes.OK:
                raise CatalogError(f"the price catalog at {shown} answered {response.status_code}")
            if response.headers.get("content-encoding", "identity") != "identity":
                raise CatalogError(f"the price catalog at {shown} came compressed although it must not")
            return _limited(response, deadline, shown)
    except (httpx.HTTPError, httpx.InvalidURL, httpx.StreamError) as error:
        raise CatalogError(f"the price catalog at {shown} cannot be got: {type(error).__name__}") from error


def _limited(response: httpx.Response, deadline: float, shown: str) -> bytes:
    data = bytearray()
    for chunk in response.iter_bytes():
        data += chunk
        if len(data) > MAX_FILE_BYTES:
            raise CatalogError(f"the price catalog at {shown} has more than {MAX_FILE_BYTES} bytes")
        if time.monotonic() > deadline:
            raise CatalogError(f"the price catalog at {shown} did not come in time")
    return bytes(data)


def _without_secrets(url: str) -> str:
    """The URL without user, query and fragment, which may hold secrets. Refuses what is not safe to use."""
    try:
        parts = urlsplit(url)
        host = parts.hostname or ""
    except ValueError as error:
        raise CatalogError("the URL of the price catalog is malformed") from error
    if parts.scheme != "https" and not (parts.scheme == "http" and host in _LOOPBACK):
        raise CatalogError("the URL of a price catalog must begin with https://")
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"


def _replace(target: Path, data: bytes) -> None:
    """Writes a file whole or not at all, on the disk when this returns."""
    temporary = ""
    try:
        target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor, temporary = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        Path(temporary).replace(target)
        _sync_folder(target.parent)
    except OSError as error:
        if temporary:
            with contextlib.suppress(OSError):
                Path(temporary).unlink()
        raise CatalogError(f"the price catalog cannot be written to {target}: {error}") from error


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
