"""Answers protobuf's conformance runner with generated codecs: `testee.py FOLDER_OF_THE_GENERATED_PACKAGE`.

Requests come on stdin and answers go to stdout, each a little-endian length and a message of
conformance.proto. What we do not do (protobuf's own JSON mapping, text format, proto2, editions) is skipped.
"""

from __future__ import annotations

import struct
import sys
from typing import Any, BinaryIO

from llm_cost_ops.wire import DecodeError, EncodeError

_MESSAGE_TYPE = "protobuf_test_messages.proto3.TestAllTypesProto3"


def answer(generated: Any, request: Any) -> dict[str, Any]:
    """The result field of a ConformanceResponse, and its value."""
    if request.message_type != _MESSAGE_TYPE:
        return {"skipped": f"{request.message_type} is not generated"}
    if request.protobuf_payload is None or request.requested_output_format != "protobuf":
        return {"skipped": "only protobuf's binary format is there"}
    try:
        message = generated.decode_test_all_types_proto3(request.protobuf_payload)
    except DecodeError as error:
        return {"parse_error": str(error)}
    try:
        return {"protobuf_payload": generated.encode_test_all_types_proto3(message)}
    except EncodeError as error:
        return {"serialize_error": str(error)}


def serve(generated: Any, requests: BinaryIO, answers: BinaryIO) -> None:
    """Answer until the runner closes its end."""
    while head := requests.read(4):
        request = generated.decode_conformance_request(requests.read(*struct.unpack("<I", head)))
        response = generated.encode_conformance_response(
            generated.ConformanceResponse(**answer(generated, request))
        )
        answers.write(struct.pack("<I", len(response)) + response)
        answers.flush()


def main() -> None:
    sys.path.insert(0, sys.argv[1])
    import conformance_generated.protobuf

    serve(conformance_generated.protobuf, sys.stdin.buffer, sys.stdout.buffer)


if __name__ == "__main__":
    main()
