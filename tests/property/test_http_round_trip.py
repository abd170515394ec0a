"""Every request message survives the way through HTTP, whatever is in it."""

from __future__ import annotations

import re

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from llm_cost_ops._gen import methods
from llm_cost_ops.rpc.method import Cardinality, MethodDescriptor
from llm_cost_ops.transports.http.binding import Router, binding_of
from tests.property.message_strategies import messages

METHODS = [
    method
    for name in methods.__all__
    if isinstance(method := getattr(methods, name), MethodDescriptor)
    and method.http is not None
    and method.cardinality is Cardinality.UNARY_UNARY
]
ROUTER = Router(METHODS)
VARIABLE = re.compile(r"\{(\w+)\}")


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.name)
@settings(suppress_health_check=[HealthCheck.too_slow], max_examples=25)
@given(data=st.data())
def test_request_to_http_to_request_is_identity(method, data):
    request = data.draw(messages(method.request.type))
    # They would make the path of something else.
    assume(not {getattr(request, name) for name in VARIABLE.findall(method.http.path)} & {"", ".", ".."})
    sent = binding_of(method).encode(request)
    route = ROUTER.match(sent.path)
    assert route.bindings[sent.verb].method is method
    received = route.bindings[sent.verb].decode(route.variables, sent.query, sent.body or b"")
    if method.http.body not in {None, "*"} and getattr(request, method.http.body) is None:
        setattr(request, method.http.body, binding_of(method).rule.body_codec.type())
    assert received == request


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.name)
@settings(suppress_health_check=[HealthCheck.too_slow], max_examples=12)
@given(data=st.data())
def test_response_to_http_to_response_is_identity(method, data):
    response = data.draw(messages(method.response.type))
    binding = binding_of(method)
    assert binding.decode_response(binding.encode_response(response)) == response
