"""A catalog file is read whole and unchanged, or not at all."""

from __future__ import annotations

import hashlib
import random
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from llm_cost_ops.catalog import CatalogError, load_catalog
from llm_cost_ops.catalog import bundle as bundle_module
from llm_cost_ops.catalog.bundle import Payload, read_bundle, read_header, write_bundle

SHIPPED = Path(bundle_module.__file__).with_name("prices.bin")
Bundle = Callable[..., bytes]


def _with_header(data: bytes, **changes: Any) -> bytes:
    line, _, stream = data.partition(b"\n")
    return msgspec.json.encode({**msgspec.json.decode(line), **changes}) + b"\n" + stream


def _with_stream(data: bytes, stream: bytes, size: int) -> bytes:
    line, _, _ = data.partition(b"\n")
    digest = hashlib.sha256(stream).hexdigest()
    return msgspec.json.encode({**msgspec.json.decode(line), "sha256": digest, "size": size}) + b"\n" + stream


def test_what_is_written_is_read(bundle: Bundle) -> None:
    data = bundle("1", "2")
    header, payload = read_bundle(data)
    assert (header.version, header.published, header.schema) == ("test 1", "2027-01-01", 1)
    assert write_bundle(payload) == data
    assert read_header(data)[0] == header


def test_every_truncation_is_refused() -> None:
    data = SHIPPED.read_bytes()
    for length in [*range(0, 600, 7), *range(600, len(data), 997), len(data) - 1]:
        with pytest.raises(CatalogError):
            read_bundle(data[:length])


def test_every_change_is_refused(bundle: Bundle) -> None:
    data = bundle("1")
    chance = random.Random(7)
    for place in range(len(data)):
        changed = bytearray(data)
        changed[place] ^= 1 << chance.randrange(8)
        try:
            header, payload = read_bundle(bytes(changed))
        except CatalogError:
            continue
        # What is left are harmless spellings of the header: nothing that is used differs.
        assert (header.version, header.published, header.sha256) == (
            payload.version,
            "2027-01-01",
            header.sha256,
        )
        assert payload == read_bundle(data)[1]


def test_a_newer_schema_says_so(bundle: Bundle) -> None:
    with pytest.raises(CatalogError, match=r"schema 2, newer than the 1 .* upgrade llm-cost-ops"):
        read_bundle(_with_header(bundle(), schema=2))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"schema": 0}, "unknown schema"),
        ({"format": "other"}, "not a price catalog"),
        ({"sha256": "0" * 64}, "truncated or was changed"),
        ({"size": -1}, "the limit"),
        ({"size": 65 * 1024 * 1024}, "the limit"),
        ({"size": 3}, "does not unpack"),
        ({"size": 10_000_000}, "does not unpack"),
        ({"version": "test 2"}, "header is not that of its payload"),
        ({"published": "2099-01-01"}, "header is not that of its payload"),
        ({"schema": "1"}, "not a price catalog"),
    ],
)
def test_a_header_that_lies_is_refused(bundle: Bundle, change: dict[str, Any], message: str) -> None:
    with pytest.raises(CatalogError, match=message):
        read_bundle(_with_header(bundle(), **change))


def test_a_bomb_is_not_unpacked(bundle: Bundle) -> None:
    stream = zlib.compress(b" " * 200_000_000, 9)
    with pytest.raises(CatalogError, match="does not unpack"):
        read_bundle(_with_stream(bundle(), stream, 1000))


@pytest.mark.parametrize("payload", [b"{}", b"[1]", b"\xff\xfe", b"{" * 100_000, b'{"version": 1}'])
def test_a_payload_of_another_shape_is_refused(bundle: Bundle, payload: bytes) -> None:
    with pytest.raises(CatalogError, match="malformed"):
        read_bundle(_with_stream(bundle(), zlib.compress(payload), len(payload)))


def test_what_follows_the_stream_is_refused(bundle: Bundle) -> None:
    data = bundle()
    header, start = read_header(data)
    with pytest.raises(CatalogError, match="does not unpack"):
        read_bundle(_with_stream(data, data[start:] + b"more", header.size))


@pytest.mark.parametrize("data", [b"", b"\n", b"GIF89a", b"\xff" * 10_000, b"{}\n", b"null\n"])
def test_other_files_are_refused(data: bytes) -> None:
    with pytest.raises(CatalogError, match="not a price catalog"):
        read_bundle(data)


def test_a_row_of_another_shape_is_refused_when_it_is_asked_for(bundle: Bundle, tmp_path: Path) -> None:
    _, payload = read_bundle(bundle())
    broken = msgspec.structs.replace(payload, providers={"maker": msgspec.Raw(b'{"models": 3}')})
    assert isinstance(broken, Payload)
    path = tmp_path / "broken.bin"
    path.write_bytes(write_bundle(broken))
    with pytest.raises(CatalogError, match="malformed"):
        load_catalog(path).cards("maker", "model")
