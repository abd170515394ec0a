"""Looks into a recorder's spool, and sends what lies in it."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from llm_cost_ops.cli.target import open_client
from llm_cost_ops.client.flush_report import FlushReport
from llm_cost_ops.client.spool import Spool
from llm_cost_ops.config import RecorderConfig
from llm_cost_ops.exceptions import ConfigurationError

__all__ = ["spool"]


def spool(options: argparse.Namespace) -> int:
    """The `spool` command; the exit status is 1 when records are left."""
    if not Path(options.folder).is_dir():
        # A recorder makes its folder; here it is a wrong name, and nothing would seem to be left.
        raise ConfigurationError(f"there is no folder {options.folder}", parameter="folder")
    return _status(options.folder) if options.action == "status" else _drain(options)


def _status(folder: str) -> int:
    try:
        opened = Spool(folder)
    except OSError as error:
        raise ConfigurationError(f"{folder}: {error.strerror}", parameter="folder") from error
    status = opened.status()
    opened.close()
    print(
        f"{folder}: {status.records:,} records in {status.segments} segments, {status.bytes:,} bytes; "
        "segments of processes that run are theirs, and not counted"
    )
    return 1 if status.records else 0


def _drain(options: argparse.Namespace) -> int:
    with open_client(options, create=True, waits=True) as client:
        settings = RecorderConfig(spool=options.folder, shutdown_timeout=options.timeout)
        with type(client)(config=client.config.replace(recorder=settings)) as sender:
            report = sender.flush(options.timeout)
    _print(report)
    return 1 if report.spooled or report.rejected_count or report.conflicts else 0


def _print(report: FlushReport) -> None:
    print(
        f"{report.delivered:,} delivered, {report.duplicates:,} were there before, {report.conflicts:,} in "
        f"conflict, {report.rejected_count:,} rejected, {report.spooled:,} left"
    )
    for item in report.rejected[:20]:
        print(f"  {item.reason}", file=sys.stderr)
