"""What make does with the .proto files: lint, format, breaking changes, code. Runs offline.

buf sees one module: build/proto, a copy of proto/ beside the google/api files that it imports.
(Over a workspace of two modules `buf breaking` found nothing to compare, and passed.)
"""

from __future__ import annotations

import argparse
import filecmp
import os
import shutil
import subprocess
import sys
from importlib.metadata import files
from pathlib import Path

__all__ = ["breaking", "differences", "generate", "lint", "main", "stage"]

ROOT = Path(__file__).resolve().parents[1]
PROTO = ROOT / "proto"
STAGE = ROOT / "build" / "proto"
GENERATED = ROOT / "llm_cost_ops" / "_gen"
RELEASED = PROTO / "released.binpb"
OURS = ("--path", "proto/llm_cost_ops")
IMAGE = "descriptors.binpb"


def _buf(*arguments: str | Path, cwd: Path) -> int:
    """Run buf, with this interpreter's folder first on the path, so that it finds our plugin's Python."""
    scripts = Path(sys.executable).parent
    environment = {
        **os.environ,
        "PATH": f"{scripts}{os.pathsep}{os.environ.get('PATH', '')}",
        "PYTHONPATH": str(ROOT),
        "BUF_CACHE_DIR": str(ROOT / "build" / "buf"),
    }
    command = [str(scripts / "buf"), *map(str, arguments)]
    return subprocess.run(command, check=False, cwd=cwd, env=environment).returncode


def stage(target: Path = STAGE) -> Path:
    """Copy the protocol and the google/api files that it imports to `target`, and return that."""
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(PROTO / "llm_cost_ops", target / "proto" / "llm_cost_ops")
    shutil.copy(ROOT / "buf.yaml", target)
    imported = {"annotations.proto", "http.proto"}
    for file in files("googleapis-common-protos") or ():
        if file.parent.as_posix() == "google/api" and file.name in imported:
            copy = target / "proto" / "google" / "api" / file.name
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(str(file.locate()), copy)
    return target


def lint(module: Path) -> int:
    """Check style, comments and format of the staged `module`; 0 when all is well."""
    return max(_buf("lint", cwd=module), _buf("format", "--diff", "--exit-code", *OURS, cwd=module))


def breaking(module: Path) -> int:
    """Check the staged `module` for changes that break wire or JSON since the last release."""
    return _buf("breaking", "--against", RELEASED, cwd=module)


def generate(target: Path, module: Path) -> tuple[int, Path]:
    """Write what the staged `module` generates under `target`; give the status and the Python folder."""
    shutil.rmtree(target, ignore_errors=True)
    template = ROOT / "buf.gen.yaml"
    status = _buf("generate", "--template", template, "--output", target, *OURS, cwd=module)
    fresh = target / GENERATED.relative_to(ROOT)
    if status == 0:
        # What the gRPC server's reflection tells: our files and all that they import.
        plain = ("--as-file-descriptor-set", "--exclude-source-info")
        status = _buf("build", *plain, *OURS, "--output", fresh / IMAGE, cwd=module)
    if status == 0 and not any(fresh.glob("*.py")):
        print("The generator wrote nothing: is the package in buf.gen.yaml right?")
        status = 1
    return status, fresh


def differences(fresh: Path, checked_in: Path = GENERATED) -> list[str]:
    """Name the generated files that are in one folder only, or differ."""
    names = {path.name for folder in (fresh, checked_in) for path in folder.glob("*.*")}
    _, changed, missing = filecmp.cmpfiles(fresh, checked_in, names, shallow=False)
    return sorted(changed + missing)


def _task_lint() -> int:
    module = stage()
    return max(lint(module), breaking(module))


def _task_format() -> int:
    return _buf("format", "--write", *OURS, cwd=stage()) or _copy(
        STAGE / "proto" / "llm_cost_ops", PROTO / "llm_cost_ops"
    )


def _task_generate() -> int:
    status, fresh = generate(ROOT / "build" / "gen", stage())
    if status == 0:
        for stale in GENERATED.glob("*.*"):
            stale.unlink()
        _copy(fresh, GENERATED)
    return status


def _task_checkgenerate() -> int:
    status, fresh = generate(ROOT / "build" / "gen", stage())
    if status == 0 and (names := differences(fresh)):
        print(f"llm_cost_ops/_gen is not what proto/ generates: {', '.join(names)}. Run make generate.")
        return 1
    return status


def _task_release_image() -> int:
    return _buf("build", "--exclude-source-info", *OURS, "--output", RELEASED, cwd=stage())


def _copy(source: Path, target: Path) -> int:
    shutil.copytree(source, target, dirs_exist_ok=True)
    return 0


TASKS = {
    "checkgenerate": _task_checkgenerate,
    "format": _task_format,
    "generate": _task_generate,
    "lint": _task_lint,
    "release-image": _task_release_image,
}


def main() -> int:
    """Run the task that the command line names."""
    parser = argparse.ArgumentParser(description="What make does with the .proto files.")
    parser.add_argument("task", choices=sorted(TASKS))
    return TASKS[parser.parse_args().task]()


if __name__ == "__main__":
    sys.exit(main())
