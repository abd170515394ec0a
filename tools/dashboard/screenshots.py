"""Takes the pictures of the dashboard in docs/images, over example data: `make screenshots`.

It wants the extra `browser`, a Chromium (`BROWSER` names its program where it is not on the path), and the
assets. The company in the pictures does not exist.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, NamedTuple

from tools.dashboard.example_data import fill

__all__ = ["main"]

TARGET = Path(__file__).resolve().parents[2] / "docs" / "images"
SIZE = (1280, 860)


class _Picture(NamedTuple):
    name: str
    address: str
    scheme: Literal["light", "dark"]


PICTURES = (
    _Picture("dashboard-light", "/?tz=Europe/Berlin", "light"),
    _Picture("dashboard-dark", "/?tz=Europe/Berlin&by=provider", "dark"),
)


def main() -> int:
    """Fill a ledger, serve it, and look at it; the exit status is 1 where something is missing."""
    program = os.environ.get("BROWSER") or shutil.which("chromium") or shutil.which("google-chrome")
    if program is None:
        print("make screenshots: there is no Chromium (Debian: apt install chromium)", file=sys.stderr)
        return 1
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "costs.db"
        print(f"{fill(f'sqlite:///{path}', datetime.now(UTC)):,} example records")
        command = [
            sys.executable,
            "-u",
            "-m",
            "llm_cost_ops.cli",
            "dashboard",
            "--no-browser",
            "--db",
            str(path),
        ]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
            assert server.stdout is not None
            try:
                address = _address(server.stdout)
                _take(program, address)
            finally:
                server.terminate()
    return 0


def _address(lines: Iterable[str]) -> str:
    for line in lines:
        found = re.search(r"listening on (http://[^ ,]+)", line)
        if found is not None:
            return found[1]
    raise RuntimeError("the server did not start")


def _take(program: str, address: str) -> None:
    from playwright.sync_api import sync_playwright

    TARGET.mkdir(parents=True, exist_ok=True)
    with sync_playwright() as playwright:
        # As root Chromium has no sandbox; it looks at our own pages only.
        browser = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
        for picture in PICTURES:
            context = browser.new_context(
                viewport={"width": SIZE[0], "height": SIZE[1]},
                color_scheme=picture.scheme,
                device_scale_factor=1.5,
            )
            _one(context.new_page(), picture, address)
            context.close()
        browser.close()


def _one(page: Any, picture: _Picture, address: str) -> None:
    page.goto(address + picture.address)
    page.wait_for_load_state("networkidle")
    if picture.name == "dashboard-light":
        box = page.locator(".chart .u-over").bounding_box()
        page.mouse.move(box["x"] + box["width"] * 0.62, box["y"] + 90)
    target = TARGET / f"{picture.name}.png"
    page.screenshot(path=str(target))
    print(f"{target.name}: {target.stat().st_size:,} bytes")


if __name__ == "__main__":
    sys.exit(main())
