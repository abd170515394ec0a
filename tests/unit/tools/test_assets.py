"""What is fetched from others is what was pinned, or nothing."""

from __future__ import annotations

import base64
import hashlib
import io
import stat
import tarfile
from pathlib import Path

import pytest

from tools import assets
from tools.assets import Package, fetch

FILES = {"package/a.js": "a.js", "package/LICENSE": "a.LICENSE.txt"}


def archive(**contents: bytes) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as file:
        for name, content in contents.items():
            member = tarfile.TarInfo(f"package/{name.replace('_', '.')}")
            member.size = len(content)
            file.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


def package(data: bytes) -> Package:
    return Package("a", "1.0.0", base64.b64encode(hashlib.sha512(data).digest()).decode(), FILES)


@pytest.fixture
def npm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An npm whose every package is the file `a.tgz` beside it."""
    folder = tmp_path / "bin"
    folder.mkdir()
    program = folder / "npm"
    program.write_text('#!/bin/sh\n[ -f "$(dirname "$0")/a.tgz" ] && cp "$(dirname "$0")/a.tgz" "$4"\n')
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")
    return folder


def test_what_was_pinned_is_kept_with_its_licence(npm: Path, tmp_path: Path) -> None:
    data = archive(a_js=b"1", LICENSE=b"MIT")
    (npm / "a.tgz").write_bytes(data)
    fetch(package(data), tmp_path / "to")
    assert {path.name: path.read_bytes() for path in (tmp_path / "to").iterdir()} == {
        "a.js": b"1",
        "a.LICENSE.txt": b"MIT",
    }


def test_another_archive_is_refused(npm: Path, tmp_path: Path) -> None:
    (npm / "a.tgz").write_bytes(archive(a_js=b"2", LICENSE=b"MIT"))
    with pytest.raises(RuntimeError, match="was pinned"):
        fetch(package(archive(a_js=b"1", LICENSE=b"MIT")), tmp_path / "to")
    assert not (tmp_path / "to").exists()


def test_a_package_that_cannot_be_had_says_so(npm: Path, tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match=r"npm pack .* failed"):
        fetch(package(b""), tmp_path / "to")


def test_without_npm_it_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert assets.main() == 1
    assert "npm is not installed" in capsys.readouterr().err


def test_every_package_brings_its_licence() -> None:
    for shipped in (assets.UPLOT, assets.SWAGGER_UI):
        assert any("LICENSE" in name for name in shipped.files.values())
        assert len(base64.b64decode(shipped.sha512)) == 64
