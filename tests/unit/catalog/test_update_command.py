"""`prices update`: from where it is told, and nothing changes before somebody agreed."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import pytest

from llm_cost_ops.catalog import Catalog, load_catalog, update_catalog
from llm_cost_ops.cli import main
from llm_cost_ops.cli.prices import SOURCE_VARIABLE

pytestmark = pytest.mark.usefixtures("own_data_folder")


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def source(bundle: Callable[..., bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.delenv(SOURCE_VARIABLE, raising=False)
    path = tmp_path / "new.bin"
    path.write_bytes(bundle("1", "2", version="new 1"))
    return path


def test_without_a_source_nothing_is_got(source: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["prices", "update", "--yes"]) == 2
    assert f"give a file or a URL, or name one by {SOURCE_VARIABLE}" in capsys.readouterr().err


def test_a_script_changes_nothing_without_yes(
    source: Path, own_data_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = load_catalog()
    assert main(["prices", "update", str(source)]) == 1
    printed = capsys.readouterr().out
    assert "to new 1 of" in printed
    assert "cards added" in printed
    assert "Nothing was changed: --yes puts it in force." in printed
    assert load_catalog() is before
    assert not own_data_folder.exists()


def test_the_environment_names_a_source_and_yes_takes_it(
    source: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(SOURCE_VARIABLE, str(source))
    assert main(["prices", "update", "--yes"]) == 0
    assert "new 1 of" in capsys.readouterr().out
    assert load_catalog().version == "new 1"
    assert main(["prices", "update"]) == 0, "nothing would change"
    assert "was in force already" in capsys.readouterr().out


@pytest.mark.parametrize(("said", "version"), [("y\n", "new 1"), ("Yes\n", "new 1"), ("\n", ""), ("", "")])
def test_somebody_at_a_terminal_is_asked(
    source: Path, monkeypatch: pytest.MonkeyPatch, said: str, version: str
) -> None:
    before = load_catalog().version
    shown = Terminal()
    monkeypatch.setattr("sys.stdin", Terminal(said))
    monkeypatch.setattr("sys.stdout", shown)
    assert main(["prices", "update", str(source)]) == (0 if version else 1)
    assert "Put it in force? [y/N]" in shown.getvalue()
    assert load_catalog().version == (version or before)


def test_who_agrees_sees_both_and_is_not_asked_for_the_same(source: Path) -> None:
    seen: list[tuple[str, str]] = []
    before = load_catalog().version

    def agree(old: Catalog, new: Catalog) -> bool:
        seen.append((old.version, new.version))
        return True

    assert update_catalog(source, agree=agree).changed
    assert not update_catalog(source, agree=agree).changed
    assert seen == [(before, "new 1")]
