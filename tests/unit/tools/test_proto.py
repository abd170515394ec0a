"""The gates over proto/ pass today, and fail when they should."""

from __future__ import annotations

from pathlib import Path

import pytest

from tools import proto as tasks


@pytest.fixture
def module(tmp_path: Path) -> Path:
    return tasks.stage(tmp_path / "proto")


def _edit(module: Path, file: str, old: str, new: str) -> None:
    path = module / "proto" / "llm_cost_ops" / "v1" / file
    text = path.read_text()
    assert old in text, f"{file} has no {old!r} any more: choose another line to break"
    path.write_text(text.replace(old, new, 1))


def test_the_protocol_passes_lint_and_format(module: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert tasks.lint(module) == 0, capfd.readouterr().out


def test_the_protocol_does_not_break_the_last_release(
    module: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert tasks.breaking(module) == 0, capfd.readouterr().out


@pytest.mark.parametrize(
    ("file", "old", "new", "rule"),
    [
        ("costs.proto", "int32 revision = 3;", "int64 revision = 30;", 'field "3" with name "revision"'),
        (
            "costs.proto",
            "string usage_id = 2;",
            "bytes usage_id = 2;",
            'changed type from "string" to "bytes"',
        ),
        ("costs.proto", "string usage_id = 2;", "string usage_key = 2;", 'changed option "json_name"'),
        ("analytics.proto", "INTERVAL_WEEK = 3;", "INTERVAL_WEEK = 5;", 'enum value "3"'),
        ("costs.proto", "  string usage_id = 2;\n", "", "deleted without reserving the number"),
    ],
)
def test_a_breaking_change_fails(
    module: Path, capfd: pytest.CaptureFixture[str], file: str, old: str, new: str, rule: str
) -> None:
    _edit(module, file, old, new)
    assert tasks.breaking(module) != 0
    assert rule in capfd.readouterr().out


def test_a_new_field_is_no_breaking_change(module: Path, capfd: pytest.CaptureFixture[str]) -> None:
    _edit(
        module,
        "costs.proto",
        "  string usage_id = 2;",
        "  string usage_id = 2;\n  // New.\n  string new = 1000;",
    )
    assert tasks.breaking(module) == 0, capfd.readouterr().out
    assert tasks.lint(module) == 0, capfd.readouterr().out


@pytest.mark.parametrize(
    ("old", "new", "rule"),
    [
        ("  // The usage that it prices.\n", "", "comment"),
        ("string usage_id = 2;", "string usageId = 2;", "lower_snake_case"),
        ("  string usage_id = 2;", "    string usage_id = 2;", "-    string usage_id"),
    ],
)
def test_style_is_checked(
    module: Path, capfd: pytest.CaptureFixture[str], old: str, new: str, rule: str
) -> None:
    _edit(module, "costs.proto", old, new)
    assert tasks.lint(module) != 0
    assert rule in capfd.readouterr().out


def test_generated_code_is_what_the_protocol_generates(module: Path, tmp_path: Path) -> None:
    status, fresh = tasks.generate(tmp_path / "generated", module)
    assert status == 0
    assert tasks.differences(fresh) == []


def test_a_difference_in_generated_code_is_named(tmp_path: Path) -> None:
    fresh, checked_in = tmp_path / "fresh", tmp_path / "checked_in"
    for folder in (fresh, checked_in):
        folder.mkdir()
        (folder / "same.py").write_text("x = 1\n")
        (folder / "changed.py").write_text(f"x = {folder.name!r}\n")
    (fresh / "new.py").touch()
    (checked_in / "stale.py").touch()
    assert tasks.differences(fresh, checked_in) == ["changed.py", "new.py", "stale.py"]
