"""Generates and imports packages from .proto files, for tests: no buf, no files in the repository."""

from __future__ import annotations

import atexit
import importlib
import shutil
import sys
import tempfile
from functools import cache
from pathlib import Path
from types import ModuleType

import grpc_tools
from betterproto.lib.google.protobuf import FileDescriptorSet
from grpc_tools import protoc

from tools.codegen.__main__ import generate

__all__ = ["GOLDEN", "ROOT", "descriptors", "generated", "image"]

ROOT = Path(__file__).resolve().parent.parent
GOLDEN = ROOT / "tests" / "golden"
_FOLDER = Path(tempfile.mkdtemp(prefix="llm-cost-ops-generated-"))
atexit.register(shutil.rmtree, _FOLDER, ignore_errors=True)


def _include() -> list[str]:
    google = Path(importlib.import_module("google.api.annotations_pb2").__file__ or "").parents[2]
    wellknown = Path(grpc_tools.__file__).parent / "_proto"
    return [f"-I{folder}" for folder in (GOLDEN, ROOT / "proto", google, wellknown)]


@cache
def image(*protos: str) -> bytes:
    """The FileDescriptorSet of some files and of what they import, with comments."""
    target = _FOLDER / f"{len(list(_FOLDER.iterdir()))}.binpb"
    arguments = ["protoc", *_include(), "--include_imports", "--include_source_info"]
    assert protoc.main([*arguments, f"--descriptor_set_out={target}", *protos]) == 0
    return target.read_bytes()


@cache
def descriptors(*protos: str) -> FileDescriptorSet:
    """The same as betterproto reads it."""
    return FileDescriptorSet().parse(image(*protos))


@cache
def generated(proto: str, package: str) -> ModuleType:
    """The package that a file generates, imported, with its modules."""
    name = f"generated_{Path(proto).stem}"
    for path, text in generate(descriptors(proto).file, {package: name}).items():
        target = _FOLDER / path
        target.parent.mkdir(exist_ok=True)
        target.write_text(text, encoding="utf-8")
    if str(_FOLDER) not in sys.path:
        sys.path.insert(0, str(_FOLDER))
    importlib.invalidate_caches()
    for module in ("messages", "codecs", "validators", "methods", "resources", "servicers"):
        if (_FOLDER / name / f"{module}.py").exists():
            importlib.import_module(f"{name}.{module}")
    return sys.modules[name]
