"""Fetches the files of others that the server's pages load, from npm, into the `assets` beside them.

Each package is pinned, and its archive checked against a SHA-512 before anything of it is kept.
`python -m tools.assets` needs npm, which knows the registry of this machine.
"""

from __future__ import annotations

import base64
import hashlib
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path
from typing import NamedTuple

__all__ = ["AXE", "SWAGGER_UI", "UPLOT", "Package", "fetch", "fetch_missing", "main"]

_PACKAGE = Path(__file__).resolve().parents[1] / "llm_cost_ops"
TARGET = _PACKAGE / "dashboard" / "assets"
REFERENCE = _PACKAGE / "server" / "assets"


class Package(NamedTuple):
    """A package of npm: `files` are paths in its archive, and the names to keep them under."""

    name: str
    version: str
    sha512: str
    files: dict[str, str]


UPLOT = Package(
    "uplot",
    "1.6.32",
    "KIMVnG68zvu5XXUbC4LQEPnhwOxBuLyW1AHtpm6IKTXImkbLgkMy+jabjLgSLMasNuGGzQm/ep3tOkyTxpiQIw==",
    {
        "package/dist/uPlot.iife.min.js": "uPlot.iife.min.js",
        "package/dist/uPlot.min.css": "uPlot.min.css",
        "package/LICENSE": "uPlot.LICENSE.txt",
    },
)
SWAGGER_UI = Package(
    "swagger-ui-dist",
    "5.35.0",
    "U06rpMtW9V3XPGOBeamTUSr0Z09jMX4IJuANpE/EZbAhw0G8CgwrzU4YmXkn/h0wCDNsXdGarTNNHC3sU8yVUQ==",
    {
        "package/swagger-ui.css": "swagger-ui.css",
        "package/swagger-ui-bundle.js": "swagger-ui-bundle.js",
        "package/swagger-ui-bundle.js.LICENSE.txt": "swagger-ui-bundle.js.LICENSE.txt",
        "package/LICENSE": "swagger-ui.LICENSE.txt",
        "package/NOTICE": "swagger-ui.NOTICE.txt",
    },
)
"""What shows the HTTP reference at /docs."""
AXE = Package(
    "axe-core",
    "4.14.1",
    "FHfa+lmNjQZfJz1q8wKqIDwC6DExcHt/pkjNQb09a3NPjCKg2rhu5qb2S4r76ASyFNNtuFooJpZe37OgudVGtQ==",
    {"package/axe.min.js": "axe.min.js"},
)
"""What the tests look for faults of accessibility with. It is not shipped."""


_SHIPPED = ((UPLOT, TARGET), (SWAGGER_UI, REFERENCE))


def fetch(package: Package, target: Path) -> None:
    """Put the files of a package into a folder, all of them or none.

    Raises RuntimeError when npm can't fetch it, or gives another archive than the one that was pinned.
    """
    npm = shutil.which("npm")
    if npm is None:
        raise RuntimeError("npm is not installed (Debian: apt install npm)")
    with tempfile.TemporaryDirectory() as folder:
        wanted = f"{package.name}@{package.version}"
        command = [npm, "pack", wanted, "--pack-destination", folder, "--silent"]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
        archives = list(Path(folder).glob("*.tgz"))
        if done.returncode or len(archives) != 1:
            raise RuntimeError(f"npm pack {wanted} failed: {done.stderr.strip()[:500]}")
        data = archives[0].read_bytes()
        found = base64.b64encode(hashlib.sha512(data).digest()).decode()
        if found != package.sha512:
            raise RuntimeError(f"{wanted} has the SHA-512 {found}, and {package.sha512} was pinned")
        with tarfile.open(archives[0]) as archive:
            contents = {name: _member(archive, member) for member, name in package.files.items()}
    target.mkdir(parents=True, exist_ok=True)
    for name, content in contents.items():
        (target / name).write_bytes(content)


def _member(archive: tarfile.TarFile, name: str) -> bytes:
    file = archive.extractfile(name)
    if file is None:
        raise RuntimeError(f"the archive has no file {name}")
    return file.read()


def fetch_missing() -> None:
    """Fetch what pages load and is not there. Raises RuntimeError as `fetch` does."""
    for package, target in _SHIPPED:
        if not all((target / name).is_file() for name in package.files.values()):
            fetch(package, target)


def main() -> int:
    """Fetch what pages load; the exit status is 1 when that failed."""
    for package, target in _SHIPPED:
        try:
            fetch(package, target)
        except RuntimeError as error:
            print(f"make assets: {error}", file=sys.stderr)
            return 1
        print(f"{package.name} {package.version} is in {target}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
