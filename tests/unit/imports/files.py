"""Small files, and the records that are read from them."""

from __future__ import annotations

import io
import json
from decimal import Decimal
from pathlib import Path
from typing import Any

from llm_cost_ops import UsageRecord
from llm_cost_ops.cli import main
from llm_cost_ops.imports import UsageFile


def lines(*objects: dict[str, Any]) -> bytes:
    return "".join(json.dumps(each) + "\n" for each in objects).encode()


def opened(data: bytes | list[Any] | dict[str, Any], name: str = "", **options: Any) -> UsageFile:
    content = data if isinstance(data, bytes) else json.dumps(data, indent=1).encode()
    return UsageFile(io.BytesIO(content), name, **options)


def read(data: bytes | list[Any] | dict[str, Any], name: str = "", **options: Any) -> list[UsageRecord]:
    found = []
    for item in opened(data, name, **options):
        assert isinstance(item.record, UsageRecord), item
        found.append(item.record)
    return found


def priced(tmp_path: Path, data: bytes | list[Any] | dict[str, Any], name: str = "usage.json") -> Any:
    """The sums in a ledger into which a file was imported twice."""
    path = tmp_path / name
    path.write_bytes(data if isinstance(data, bytes) else json.dumps(data).encode())
    database = str(tmp_path / "a b#?%.db")
    for _ in range(2):
        assert main(["import", str(path), "--db", database]) == 0
    assert (tmp_path / "a b#?%.db").exists()
    assert main(["export", "--db", database, "--output", str(tmp_path / "out.jsonl")]) == 0
    records = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    costs = [Decimal(record["estimated_cost"]) for record in records if "estimated_cost" in record]
    return records, sum(costs, Decimal(0))
