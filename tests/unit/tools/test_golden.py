"""The checked-in package is what the generator makes of the protocol, without buf."""

from __future__ import annotations

import copy
import subprocess
import sys

import pytest
from google.protobuf.compiler.plugin_pb2 import CodeGeneratorRequest, CodeGeneratorResponse
from google.protobuf.descriptor_pb2 import FileDescriptorSet

from tests.generated import ROOT, descriptors, image
from tools.codegen.__main__ import generate
from tools.codegen.model import read_package
from tools.codegen.nodes import ModelError

PROTOS = sorted(
    p.relative_to(ROOT / "proto").as_posix() for p in (ROOT / "proto").glob("llm_cost_ops/v1/*.proto")
)
OURS = {"llm_cost_ops.v1": "llm_cost_ops._gen"}


def run_plugin(request: CodeGeneratorRequest) -> CodeGeneratorResponse:
    done = subprocess.run(
        [sys.executable, "-m", "tools.codegen"],
        input=request.SerializeToString(),
        capture_output=True,
        check=True,
        cwd=ROOT,
    )
    return CodeGeneratorResponse.FromString(done.stdout)


def test_checked_in_code_is_current() -> None:
    made = generate(descriptors(*PROTOS).file, OURS)
    assert {path: (ROOT / path).read_text(encoding="utf-8") for path in made} == made
    assert {p.name for p in (ROOT / "llm_cost_ops" / "_gen").glob("[!d]*.*")} == {
        path.split("/")[-1] for path in made
    }


def test_order_of_files_does_not_matter() -> None:
    files = list(descriptors(*PROTOS).file)
    assert generate(files[::-1], OURS) == generate(files, OURS)


def test_plugin_answers_what_the_generator_makes() -> None:
    files = FileDescriptorSet.FromString(image(*PROTOS)).file
    request = CodeGeneratorRequest(
        file_to_generate=PROTOS, parameter="package=llm_cost_ops.v1=llm_cost_ops._gen", proto_file=files
    )
    response = run_plugin(request)
    assert response.error == ""
    assert {file.name: file.content for file in response.file} == generate(descriptors(*PROTOS).file, OURS)
    # proto3 optional; without the bit protoc refuses the plugin.
    assert response.supported_features == 1


def test_plugin_makes_well_known_types_messages_when_asked() -> None:
    files = FileDescriptorSet.FromString(image("everything.proto")).file
    request = CodeGeneratorRequest(
        file_to_generate=["everything.proto"],
        parameter="well_known=messages,package=everything.v1=a",
        proto_file=files,
    )
    made = {file.name: file.content for file in run_plugin(request).file}
    packages = {"everything.v1": "a"}
    assert made == generate(descriptors("everything.proto").file, packages, well_known_messages=True)
    assert "class Timestamp(MessageStruct" in made["a/messages.py"]


@pytest.mark.parametrize(
    "parameter", ["packages=a=b", "package=a", "package==b", "x", "well_known=", "well_known=times"]
)
def test_plugin_refuses_an_option_it_does_not_know(parameter: str) -> None:
    assert repr(parameter) in run_plugin(CodeGeneratorRequest(parameter=parameter)).error


def test_packages_that_are_not_asked_for_are_not_written() -> None:
    files = FileDescriptorSet.FromString(image("oddities.proto")).file
    request = CodeGeneratorRequest(
        file_to_generate=["oddities.proto"],
        parameter="package=everything.v1=a,package=other=b",
        proto_file=files,
    )
    assert len(run_plugin(request).file) == 0


def test_proto2_is_refused_by_name() -> None:
    files = descriptors("google/protobuf/descriptor.proto").file
    with pytest.raises(ModelError, match=r"descriptor\.proto: google\.protobuf\.\w+ is not proto3"):
        read_package(files, ["google.protobuf"])


def test_a_stream_that_gets_one_answer_is_refused() -> None:
    """No transport carries one, and no method needs it."""
    files = copy.deepcopy(descriptors("oddities.proto").file)
    [chat] = [
        method for file in files for each in file.service for method in each.method if method.name == "Chat"
    ]
    chat.server_streaming = False
    with pytest.raises(ModelError, match=r"Chat: a stream of requests needs a stream of answers"):
        read_package(files, ["oddities.v1"])
