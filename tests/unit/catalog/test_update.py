"""A refresh happens whole, or leaves everything as it was."""

from __future__ import annotations

import hashlib
import http.server
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from llm_cost_ops.catalog import Catalog, CatalogError, load_catalog, update_catalog, use_catalog
from tests.served import serving

Bundle = Callable[..., bytes]
Answer = Callable[[httpx.Request], httpx.Response]
URL = "https://prices.example.com/catalog.bin"


def _client(answer: httpx.Response | Answer, *, follow: bool = False) -> httpx.Client:
    handler = answer if callable(answer) else lambda _: answer
    return httpx.Client(transport=httpx.MockTransport(handler), follow_redirects=follow)


@contextmanager
def _nothing_changes(folder: Path) -> Iterator[Catalog]:
    before = load_catalog()
    files = sorted(folder.glob("*")) if folder.exists() else []
    kept = [path.read_bytes() for path in files]
    yield before
    assert load_catalog() is before
    assert (sorted(folder.glob("*")) if folder.exists() else []) == files
    assert [path.read_bytes() for path in files] == kept


def test_a_file_is_put_in_force_and_kept(bundle: Bundle, tmp_path: Path, own_data_folder: Path) -> None:
    source = tmp_path / "new.bin"
    source.write_bytes(bundle("1", "2", version="new 1"))
    before = load_catalog()
    update = update_catalog(source)
    assert (update.changed, update.cards, update.previous) == (True, 2, before)
    assert update.path == str(own_data_folder / "prices.bin")
    assert load_catalog() is update.catalog
    assert load_catalog().version == "new 1"
    use_catalog(None)
    assert load_catalog().version == "new 1"
    assert [path.name for path in own_data_folder.iterdir()] == ["prices.bin"]
    assert update_catalog(source).changed is False


def test_another_path_is_for_this_process_only(bundle: Bundle, tmp_path: Path) -> None:
    (tmp_path / "new.bin").write_bytes(bundle(version="new 1"))
    update = update_catalog(str(tmp_path / "new.bin"), path=tmp_path / "deep" / "kept.bin")
    assert update.path == str(tmp_path / "deep" / "kept.bin")
    assert load_catalog().version == "new 1"
    assert load_catalog(update.path).version == "new 1"
    use_catalog(None)
    assert load_catalog().version.startswith("genai-prices")


def test_a_link_leads_to_the_new_file(bundle: Bundle, tmp_path: Path) -> None:
    volume, link = tmp_path / "volume", tmp_path / "prices.bin"
    volume.mkdir()
    link.symlink_to(volume / "shared.bin")
    (tmp_path / "new.bin").write_bytes(bundle(version="new 1"))
    update_catalog(tmp_path / "new.bin", path=link)
    assert link.is_symlink()
    assert load_catalog(volume / "shared.bin").version == "new 1"


def test_a_url_is_got_as_it_is(bundle: Bundle) -> None:
    seen: list[httpx.Request] = []

    def answer(request: httpx.Request) -> httpx.Response:
        seen.append(request)
        return httpx.Response(200, content=bundle(version="new 2"))

    assert update_catalog(URL, client=_client(answer)).catalog.version == "new 2"
    (request,) = seen
    assert request.headers["accept-encoding"] == "identity"


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (httpx.Response(404), "answered 404"),
        (httpx.Response(302, headers={"location": "https://elsewhere.example.com"}), "answered 302"),
        (httpx.Response(200, content=b"x", headers={"content-encoding": "br"}), "compressed"),
        (httpx.Response(200, content=b"<html>"), "not a price catalog"),
        (httpx.Response(200, content=b"x" * (8 * 1024 * 1024 + 1)), "more than 8388608 bytes"),
    ],
)
def test_an_answer_that_is_no_catalog_changes_nothing(
    own_data_folder: Path, answer: httpx.Response, message: str
) -> None:
    with _nothing_changes(own_data_folder), pytest.raises(CatalogError, match=message):
        update_catalog(URL, client=_client(answer, follow=True))


def test_a_network_error_names_no_secret(own_data_folder: Path) -> None:
    def answer(request: httpx.Request) -> httpx.Response:
        raise httpx.ConnectError("canary in the message", request=request)

    url = "https://user:canary@prices.example.com/catalog.bin?token=canary#canary"
    with _nothing_changes(own_data_folder), pytest.raises(CatalogError) as caught:
        update_catalog(url, client=_client(answer))
    assert str(caught.value) == (
        "the price catalog at https://prices.example.com/catalog.bin cannot be got: ConnectError"
    )


@pytest.mark.parametrize(
    "url",
    [
        "http://prices.example.com/c",
        "ftp://x/y",
        "file:///etc/passwd",
        "https://[bad/c",
        "http://localhost.evil.com/",
    ],
)
def test_an_unsafe_url_is_refused_before_anything_is_sent(own_data_folder: Path, url: str) -> None:
    client = _client(httpx.Response(200))
    with _nothing_changes(own_data_folder), pytest.raises(CatalogError, match="URL"):
        update_catalog(url, client=client)


def test_the_whole_download_has_one_deadline() -> None:
    class Dripping(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            try:
                for _ in range(1200):
                    self.wfile.write(b"x")
                    time.sleep(0.05)
            except OSError:
                return

        def log_message(self, *_: object) -> None:
            return

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Dripping)
    with serving(server), pytest.raises(CatalogError, match="did not come in time"):
        update_catalog(f"http://127.0.0.1:{server.server_port}/", timeout=0.3)


def test_truncated_changed_newer_and_broken_files_change_nothing(
    bundle: Bundle, tmp_path: Path, own_data_folder: Path
) -> None:
    source = tmp_path / "new.bin"
    source.write_bytes(bundle(version="kept"))
    update_catalog(source)
    good = bundle("1", version="next")
    bad = [
        good[:-1],
        good[:50],
        good[:-1] + bytes([good[-1] ^ 1]),
        good.replace(b'"schema":1', b'"schema":2', 1),
        bundle("1e3"),
        bundle(names={"a": 5}),
        b"",
    ]
    for data in bad:
        source.write_bytes(data)
        with _nothing_changes(own_data_folder) as before, pytest.raises(CatalogError):
            update_catalog(source)
        assert before.version == "kept"


def test_older_data_is_refused_unless_it_is_wanted(
    bundle: Bundle, tmp_path: Path, own_data_folder: Path
) -> None:
    source = tmp_path / "old.bin"
    source.write_bytes(bundle(published="2020-01-01", version="old"))
    with _nothing_changes(own_data_folder), pytest.raises(CatalogError, match="it is older"):
        update_catalog(source)
    assert update_catalog(source, allow_older=True).catalog.version == "old"


def test_a_digest_that_was_given_must_fit(bundle: Bundle, tmp_path: Path, own_data_folder: Path) -> None:
    source = tmp_path / "new.bin"
    source.write_bytes(bundle(version="new"))
    for wrong in ("0" * 64, "", "é"):
        with _nothing_changes(own_data_folder), pytest.raises(CatalogError, match="SHA-256"):
            update_catalog(source, sha256=wrong)
    digest = hashlib.sha256(source.read_bytes()).hexdigest().upper()
    assert update_catalog(source, sha256=f" {digest}\n").catalog.version == "new"


@pytest.mark.parametrize("source", ["missing.bin", ".", "nul\0byte"])
def test_a_file_that_cannot_be_read_changes_nothing(
    tmp_path: Path, own_data_folder: Path, source: str
) -> None:
    with _nothing_changes(own_data_folder), pytest.raises(CatalogError, match="cannot be read"):
        update_catalog(str(tmp_path / source))


def test_a_file_that_is_too_big_changes_nothing(tmp_path: Path, own_data_folder: Path) -> None:
    source = tmp_path / "big.bin"
    with source.open("wb") as file:
        file.truncate(100 * 1024 * 1024)
    with _nothing_changes(own_data_folder), pytest.raises(CatalogError, match="more than the limit"):
        update_catalog(source)


@pytest.mark.parametrize("step", ["fsync", "replace", "folder"])
def test_a_failing_disk_changes_nothing(
    bundle: Bundle, tmp_path: Path, own_data_folder: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    source = tmp_path / "new.bin"
    source.write_bytes(bundle(version="kept"))
    update_catalog(source)
    source.write_bytes(bundle(version="next"))

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    path = None
    if step == "fsync":
        monkeypatch.setattr("os.fsync", fail)
    elif step == "replace":
        monkeypatch.setattr(Path, "replace", fail)
    else:
        path = source / "prices.bin"
    with _nothing_changes(own_data_folder), pytest.raises(CatalogError, match="cannot be written"):
        update_catalog(source, path=path)
