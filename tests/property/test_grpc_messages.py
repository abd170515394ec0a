"""Every message is the same in both codecs of gRPC, whatever is in it."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from llm_cost_ops._gen import methods
from llm_cost_ops.rpc.method import MethodDescriptor
from llm_cost_ops.transports.grpc.messages import decode_message, encode_message, is_json
from tests.property.message_strategies import messages

METHODS = [
    method for name in methods.__all__ if isinstance(method := getattr(methods, name), MethodDescriptor)
]
CODECS = {codec.full_name: codec for method in METHODS for codec in (method.request, method.response)}


@pytest.mark.parametrize("name", CODECS)
@settings(suppress_health_check=[HealthCheck.too_slow], max_examples=6)
@given(data=st.data())
def test_json_and_protobuf_hold_the_same_message(name, data):
    codec = CODECS[name]
    message = data.draw(messages(codec.type))
    in_json, in_protobuf = (encode_message(codec, message, json=json) for json in (True, False))
    assert not is_json(in_protobuf)
    assert is_json(in_json) or in_json == in_protobuf
    assert decode_message(codec, in_json, json=True) == message
    # A message in protobuf stays one in a call that asks for JSON.
    assert decode_message(codec, in_protobuf, json=True) == message
    assert decode_message(codec, in_protobuf, json=False) == message


@pytest.mark.parametrize("name", CODECS)
def test_a_usual_message_is_json(name):
    codec = CODECS[name]
    assert is_json(encode_message(codec, codec.type(), json=True))
