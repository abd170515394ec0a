"""A library that is not installed is named, with the pip install that brings it."""

from __future__ import annotations

import json
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from llm_cost_ops import lazy

ROOT = Path(__file__).resolve().parents[2]

# What a user writes, the libraries that are missing, and what is said.
NEEDED = {
    "from llm_cost_ops.server import asgi_app": (
        ["uvicorn"],
        "llm_cost_ops.server.asgi_app needs uvicorn: pip install 'llm-cost-ops[server]'",
    ),
    "from llm_cost_ops.server import serve": (
        ["h11"],
        "llm_cost_ops.server.serve needs h11: pip install 'llm-cost-ops[server]'",
    ),
    "from llm_cost_ops.server import asgi_app; asgi_app('sqlite://', dashboard=True)": (
        ["jinja2"],
        "the dashboard needs jinja2: pip install 'llm-cost-ops[server]'",
    ),
    "from llm_cost_ops.server import serve; serve('x.db', grpc='127.0.0.1:0')": (
        ["grpc"],
        "gRPC needs grpc: pip install 'llm-cost-ops[server]'",
    ),
    "from llm_cost_ops.proxy import asgi_app": (
        ["uvicorn"],
        "llm_cost_ops.proxy.asgi_app needs uvicorn: pip install 'llm-cost-ops[server]'",
    ),
    "from llm_cost_ops import CostOpsClient; CostOpsClient(base_url='grpc://h')": (
        ["grpclib", "h2"],
        "gRPC needs h2: pip install 'llm-cost-ops[grpc]'",
    ),
    "from llm_cost_ops.ledger import open_ledger; open_ledger('postgresql://u@h/d')": (
        ["psycopg"],
        "postgresql:// needs psycopg: pip install 'llm-cost-ops[postgres]'",
    ),
    "from llm_cost_ops import ClientConfig as C, CostOpsClient\n"
    "CostOpsClient(config=C(base_url='http://h', proxy='socks5://p'))": (
        ["socksio"],
        "a SOCKS proxy needs socksio: pip install 'httpx[socks]'",
    ),
    "from llm_cost_ops import ClientConfig as C, CostOpsClient, MetricsConfig as M\n"
    "CostOpsClient(config=C(base_url='http://h', metrics=M(enabled=True, prometheus_enabled=True)))": (
        ["prometheus_client"],
        "MetricsConfig needs prometheus_client: pip install 'llm-cost-ops[metrics]'",
    ),
    "from llm_cost_ops.telemetry import CostOpsSpanProcessor": (
        ["opentelemetry", "opentelemetry.sdk"],
        "llm_cost_ops.telemetry.CostOpsSpanProcessor needs opentelemetry: pip install opentelemetry-sdk",
    ),
    "from llm_cost_ops import CostOpsClient\n"
    "with CostOpsClient(base_url='sqlite://') as c: c.costs.get().to_pandas()": (
        ["pandas"],
        "to_pandas needs pandas: pip install pandas",
    ),
    "from llm_cost_ops.cli import main; raise SystemExit(main(['serve', '--db', 'x.db']))": (
        ["uvicorn"],
        "llm-cost-ops: llm-cost-ops serve needs uvicorn: pip install 'llm-cost-ops[server]'",
    ),
    "from llm_cost_ops.cli import main; raise SystemExit(main(['dashboard', '--db', __file__]))": (
        ["jinja2"],
        "llm-cost-ops: the dashboard needs jinja2: pip install 'llm-cost-ops[server]'",
    ),
}


def modules_of_extras() -> set[str]:
    modules = {
        "prometheus-client": "prometheus_client",
        "opentelemetry-api": "opentelemetry",
        "grpcio": "grpc",
    }
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    named = {
        name: [requirement.split(">")[0].split("[")[0] for requirement in requirements]
        for name, requirements in project["optional-dependencies"].items()
        if name in ("cli", "grpc", "metrics", "postgres", "server")
    }
    return {
        f"{modules.get(library, library)}: {extra}" for extra, found in named.items() for library in found
    }


def test_every_library_of_an_extra_is_known_with_its_extra() -> None:
    known = {
        f"{module}: {package.removeprefix('llm-cost-ops[').removesuffix(']')}"
        for module, package in lazy._BROUGHT_BY.items()
        if package.startswith("llm-cost-ops[")
    }
    assert known == modules_of_extras()


@pytest.fixture(scope="module")
def said(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What each of them says. A child forks for each: the modules that it loads are its own."""
    script = """
import json, os, sys
found = {}
for code, (missing, _) in json.load(sys.stdin).items():
    reading, writing = os.pipe()
    if os.fork() == 0:
        os.dup2(writing, 2)
        sys.modules.update(dict.fromkeys(missing))
        try:
            exec(code, {"__file__": sys.argv[1]})
        except Exception as error:
            print(type(error).__name__, error, sep=": ", file=sys.stderr)
        finally:
            sys.stderr.flush()
            os._exit(0)
    os.close(writing)
    with open(reading) as text:
        found[code] = text.read()
    os.wait()
print("\\n" + json.dumps(found))
"""
    folder = tmp_path_factory.mktemp("extras")
    (folder / "costs.db").touch()
    done = subprocess.run(
        [sys.executable, "-c", script, str(folder / "costs.db")],
        input=json.dumps(NEEDED),
        capture_output=True,
        text=True,
        cwd=folder,
        check=True,
        timeout=120,
    )
    found: dict[str, str] = json.loads(done.stdout.splitlines()[-1])
    return found


@pytest.mark.parametrize("code", NEEDED)
def test_what_is_missing_is_said_with_what_brings_it(said: dict[str, str], code: str) -> None:
    assert (
        said[code].strip().removeprefix("ImportError: ").removeprefix("ConfigurationError: ")
        == NEEDED[code][1]
    )


def test_another_missing_module_is_an_error_as_ever() -> None:
    broken = ImportError("no module", name="llm_cost_ops.gone")
    assert lazy.missing_library(broken, "x") is broken
