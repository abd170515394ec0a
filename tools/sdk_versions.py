"""Tries instrumentation and the callbacks with versions of SDKs, each in an environment of its own.

`python -m tools.sdk_versions` prints a table of those in `SDKS`, `python -m tools.sdk_versions openai 2.0.0
1.3.9,httpx==0.27` of the named ones, with what follows a comma beside it. Wants `uv` and a package index.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

__all__ = ["SDKS", "Sdk", "main"]

_ROOT = Path(__file__).resolve().parents[1]
_MATRIX = "instrumentation/test_matrix.py"
_ABSENT = re.compile(r"^(SKIPPED \[(\d+)\].*this version of the SDK can't.*)$", re.MULTILINE)
_PASSED = re.compile(r"^(?:\d+ failed, )?(\d+) passed", re.MULTILINE)
_FAILED = re.compile(r"^(?:FAILED|ERROR) \S*?::(.+?)(?: - .*)?$", re.MULTILINE)


class Sdk(NamedTuple):
    """The versions of a package that are tried, by a file of `tests/unit`, and what goes with it."""

    versions: str
    tests: str = _MATRIX
    beside: tuple[str, ...] = ()


_OLD_HTTPX = "httpx<0.28"
SDKS = {
    "openai": Sdk(
        f"1.0.1,{_OLD_HTTPX} 1.10.0,{_OLD_HTTPX} 1.30.5,{_OLD_HTTPX} 1.50.2,{_OLD_HTTPX} "
        "1.66.5 1.86.0 1.109.1 2.0.1 2.20.0 2.45.0 2.54.0 3.0.0 3.20.0 3.40.0 3.57.0"
    ),
    "anthropic": Sdk(
        f"0.20.0,{_OLD_HTTPX} 0.28.1,{_OLD_HTTPX} "
        "0.45.2 0.60.0 0.80.0 0.105.2 0.125.0 1.0.0 1.17.0 2.0.0 2.14.0",
        beside=("google-auth", "requests", "boto3"),
    ),
    "google-genai": Sdk(
        "0.8.0 1.0.0 1.10.0 1.20.0 1.21.1 1.30.0 1.40.0 1.50.1 1.75.0 2.0.1 2.17.0 3.0.0 3.6.1"
    ),
    "mistralai": Sdk("1.0.3 1.2.6 1.5.2 1.8.2 1.12.4 2.0.5 2.5.2 2.10.1 3.0.0 3.7.0"),
    "cohere": Sdk("5.9.4 5.10.0 5.13.12 5.16.3 5.21.1 6.0.0 6.1.0 7.0.0 7.3.1"),
    "boto3": Sdk("1.29.7 1.34.162 1.38.46 1.43.127 1.44.8"),
    "langchain-openai": Sdk(
        "0.3.35 1.0.3 1.4.3 1.7.4", "callbacks/test_langchain.py", ("langchain-anthropic",)
    ),
    "litellm": Sdk("1.63.14 1.76.3 1.80.17 1.99.4 1.110.2", "callbacks/test_litellm.py"),
    "pydantic-ai-slim[openai]": Sdk(
        "1.0.18,opentelemetry-api<1.36,openai<2 1.50.0,genai-prices<0.0.60 2.68.0",
        "callbacks/test_pydantic_ai.py",
    ),
    "openai-agents": Sdk("0.21.1 0.24.0", "callbacks/test_openai_agents.py"),
    "llama-index-llms-openai": Sdk("0.3.44 0.4.7 0.6.26 0.8.3", "callbacks/test_llama_index.py"),
}


def main(arguments: Sequence[str]) -> int:
    """Try the versions and print the table, to stderr what is not there or fails; 1 where a test failed."""
    asked = {arguments[0]: SDKS[arguments[0]]} if arguments else SDKS
    sys.stdout.write(
        "| package | version | recorded as expected | not in this version | failed |\n|---|---|---|---|---|\n"
    )
    failed = False
    for name, sdk in asked.items():
        for version in arguments[1:] or sdk.versions.split():
            row = _row(name, version, sdk)
            failed = failed or not row.endswith(" | 0")
            sys.stdout.write(f"| {name} | {version} | {row} |\n")
            sys.stdout.flush()
    return int(failed)


def _row(name: str, version: str, sdk: Sdk) -> str:
    """The rest of the row of a version."""
    version, *others = version.split(",")
    wanted = [f"{name}=={version}", *others, *sdk.beside, "hypothesis", "pytest>=8.4", "pytest-asyncio>=1.1"]
    with tempfile.TemporaryDirectory() as at:
        python = f"{at}/bin/python"
        status, said = _run("uv", "venv", "--clear", "--python", sys.executable, at)
        if not status:
            status, said = _run("uv", "pip", "install", "--python", python, *wanted, "-e", f"{_ROOT}[server]")
        if status:
            sys.stderr.write(said)
            return "| | can't be installed"
        tests = str(_ROOT / "tests/unit" / sdk.tests)
        status, said = _run(python, "-m", "pytest", "-q", "-W", "default", tests)
    absent = _ABSENT.findall(said)
    sys.stderr.write(said if status else "".join(f"{line}\n" for line, _ in absent))
    passed = _PASSED.search(said)
    missing = sum(int(number) for _, number in absent)
    return f"{passed[1] if passed else 0} | {missing} | {', '.join(_FAILED.findall(said)) or status}"


def _run(*command: str) -> tuple[int, str]:
    """The exit status of a command, and what it says."""
    environment = {**os.environ, "SDK_OF_ANY_VERSION": "1"}
    done = subprocess.run(command, cwd=_ROOT, env=environment, capture_output=True, text=True, check=False)
    return done.returncode, done.stdout + done.stderr


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
