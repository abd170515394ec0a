from __future__ import annotations

import builtins
import copy
import pickle
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm_cost_ops import exceptions as e
from llm_cost_ops.exceptions import error_from_rpc
from llm_cost_ops.rpc.context import Metadata
from llm_cost_ops.rpc.status import RpcError, StatusCode, Violation
from llm_cost_ops.testing import Fault
from llm_cost_ops.transports.http.errors import error_from_response
from tests.calls import put, sync_channel

TREE = """
CostOpsError
    APIError
        AuthenticationError
        AuthorizationError
        ConflictError
        NotFoundError
        RateLimitError
        ServerError
            DeadlineError
        ValidationError
    ClientClosedError
    ConfigurationError
    NetworkError
        TimeoutError
            DeadlineError
    PayloadError
    RecorderFullError
"""

STATUSES = {
    400: e.ValidationError,
    401: e.AuthenticationError,
    403: e.AuthorizationError,
    404: e.NotFoundError,
    409: e.ConflictError,
    413: e.ValidationError,
    415: e.ValidationError,
    422: e.ValidationError,
    429: e.RateLimitError,
    504: e.DeadlineError,
}


def _drawn(kind: type, depth: int = 0) -> str:
    below = [c for c in kind.__subclasses__() if c.__module__ == e.__name__]
    inner = "".join(_drawn(c, depth + 1) for c in sorted(below, key=lambda c: c.__name__))
    return f"{'    ' * depth}{kind.__name__}\n{inner}"


def test_the_tree_is_pinned() -> None:
    assert "\n" + _drawn(e.CostOpsError) == TREE
    assert issubclass(e.TimeoutError, builtins.TimeoutError)
    assert issubclass(e.ConfigurationError, ValueError)
    assert issubclass(e.ClientClosedError, RuntimeError)
    names = {line.strip() for line in TREE.split()}
    assert names | {"error_from_rpc"} == set(e.__all__)
    assert all(name in (e.__doc__ or "") for name in names)


@pytest.mark.parametrize("status", range(400, 600))
def test_every_http_status_has_its_class(status: int) -> None:
    error = error_from_rpc(error_from_response(status, Metadata(), b"", safe=False, now=0.0), 2)
    assert error.status_code == status
    assert error.attempts == 2
    if status in STATUSES:
        assert type(error) is STATUSES[status]
    elif status == 408:
        assert isinstance(error, e.TimeoutError)
    elif status >= 500:
        assert type(error) is e.ServerError
        assert error.maybe_applied is (status != 501)
    else:
        assert isinstance(error, e.APIError)
        assert not isinstance(error, e.ServerError)
    assert str(status) in str(error)


@pytest.mark.parametrize("origin", ["server", "network", "client"])
@pytest.mark.parametrize("code", list(StatusCode))
def test_every_status_code_has_a_class(code: StatusCode, origin: str) -> None:
    error = error_from_rpc(RpcError(code, "", origin=origin))
    assert error.message
    assert error.grpc_code is code
    if origin == "server":
        assert isinstance(error, e.APIError)
        assert error.status_code is not None
        assert isinstance(error, e.ServerError) == (error.status_code >= 500)
    else:
        assert error.status_code is None
    if origin == "network":
        assert isinstance(error, e.NetworkError)
    assert isinstance(error, builtins.TimeoutError) == (code is StatusCode.DEADLINE_EXCEEDED)


rpc_errors = st.builds(
    RpcError,
    st.sampled_from(StatusCode),
    st.text(max_size=50),
    violations=st.lists(st.builds(Violation, st.text(max_size=9), st.text(max_size=9)), max_size=3),
    retry_after=st.one_of(st.none(), st.floats()),
    origin=st.sampled_from(["server", "network", "client", "other"]),
    maybe_applied=st.booleans(),
    http_status=st.one_of(st.none(), st.integers(100, 999)),
    error_code=st.text(max_size=9),
    request_id=st.text(max_size=9),
    metadata=st.one_of(st.none(), st.just(Metadata({"x-ratelimit-limit": "9" * 30}))),
    body=st.binary(max_size=30),
)


@given(rpc_errors, st.integers(0, 9))
def test_any_failure_becomes_one_of_them(error: RpcError, attempts: int) -> None:
    made = error_from_rpc(error, attempts)
    assert isinstance(made, e.CostOpsError)
    assert str(made)
    assert repr(made)
    again = pickle.loads(pickle.dumps(made))
    assert type(again) is type(made)
    assert again.args == made.args
    same = {k: v for k, v in vars(made).items() if v == v}  # NaN is no hint, but may come
    assert {k: v for k, v in vars(again).items() if k in same} == same
    assert vars(copy.copy(made)).keys() == vars(made).keys()


@given(st.integers(300, 599), st.binary(max_size=200))
def test_any_body_is_survived(status: int, body: bytes) -> None:
    made = error_from_rpc(error_from_response(status, Metadata(), body, safe=True, now=0.0))
    assert isinstance(made, e.APIError)


def test_an_error_carries_what_the_server_told() -> None:
    body = (
        b'{"error": {"code": "BUSY", "message": "wait", "details": [{"field": "a", "description": "no"}]},'
        b' "request_id": "r-1", "limit": 5}'
    )
    metadata = Metadata({"retry-after": "2", "x-ratelimit-limit": "100"})
    error = error_from_rpc(error_from_response(429, metadata, body, safe=True, now=0.0), 3, 1.5)
    assert isinstance(error, e.RateLimitError)
    assert (error.retry_after, error.limit, error.code, error.request_id) == (2, 100, "BUSY", "r-1")
    assert (error.attempts, error.waited, error.retryable) == (3, 1.5, True)
    assert error.response["request_id"] == "r-1"
    assert str(error) == "wait [429, BUSY, request r-1, 3 attempts]"


def test_broken_rules_are_listed_by_field() -> None:
    rules = [Violation("a", "is wrong"), Violation("a", "is late"), Violation("b", "is missing")]
    error = error_from_rpc(RpcError(StatusCode.INVALID_ARGUMENT, "no", violations=rules))
    assert isinstance(error, e.ValidationError)
    assert error.errors == {"a": ["is wrong", "is late"], "b": ["is missing"]}
    assert "b is missing" in str(error)


def test_constructors_do_not_break_what_they_report() -> None:
    made: list[Any] = [
        e.RateLimitError("m", limit=1, retry_after=2, status_code=429),
        e.ValidationError("m", violations=(Violation("a", "b"),)),
        e.ConfigurationError("m", parameter="p"),
        e.DeadlineError("m", maybe_applied=True),
        e.CostOpsError("m"),
    ]
    for error in made:
        again = pickle.loads(pickle.dumps(error))
        assert vars(again) == vars(error)
        assert str(again) == str(error)
        assert again.message == "m"


def test_the_cause_is_chained() -> None:
    cause = OSError("cable")
    failure = RpcError(StatusCode.UNAVAILABLE, "no answer", origin="network")
    failure.__cause__ = cause
    with pytest.raises(e.NetworkError) as caught:
        put(sync_channel([failure]))
    assert caught.value.__cause__ is cause
    with pytest.raises(e.NetworkError) as caught:
        put(sync_channel([Fault("network")]))
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__
