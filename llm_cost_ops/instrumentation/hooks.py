"""Finds the parts of an SDK's client that are to be wrapped."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any

from llm_cost_ops.instrumentation import bedrock, genai
from llm_cost_ops.instrumentation.answers import report
from llm_cost_ops.instrumentation.calls import Options
from llm_cost_ops.instrumentation.http import options_of, unwrap_client, wrap_client

__all__ = ["http_clients_of", "instrument", "uninstrument"]

# The attributes on the way from a client to the HTTP client that it sends with.
_PATHS = (
    ("_client",),  # openai, anthropic
    ("sdk_configuration", "client"),  # mistralai
    ("sdk_configuration", "async_client"),
    ("_client_wrapper", "httpx_client", "httpx_client"),  # cohere
    ("root_client", "_client"),  # LangChain's models
    ("root_async_client", "_client"),
    ("_api_client", "_httpx_client"),  # google-genai, beside what genai.py wraps
    ("_api_client", "_async_httpx_client"),
    (),  # an HTTP client itself
)
# By the package of a client that can't be instrumented: the oldest version tried (tools.sdk_versions).
_OLDEST = {
    "anthropic": "anthropic 0.20",
    "cohere": "cohere 5.9",
    "google": "google-genai 0.8",
    "openai": "openai 1.0",
}
# What gives another client in openai and anthropic.
_COPIES = ("copy", "with_options")
_FOLLOWED = "llm_cost_ops_followed"


def instrument(sdk_client: Any, options: Options) -> None:
    """Record the calls of an SDK's client. TypeError for one that has no part to wrap."""
    found = list(http_clients_of(sdk_client))
    if (api_client := _genai_client(sdk_client)) is not None:
        genai.wrap_api_client(api_client, options)
        for http_client in found:
            wrap_client(http_client, options, sdk_client, genai.PAST_METHODS)
        return
    if (events := _bedrock_events(sdk_client)) is not None:
        bedrock.subscribe(events, options)
    elif not found:
        raise TypeError(_refusal(sdk_client))
    for http_client in found:
        wrap_client(http_client, options, sdk_client)
    _follow_copies(sdk_client)


def _refusal(sdk_client: Any) -> str:
    kind = type(sdk_client)
    name = sdk_client.__name__ if kind is ModuleType else f"{kind.__module__}.{kind.__qualname__}"
    oldest = _OLDEST.get(name.partition(".")[0])
    return (
        f"sdk_client: {name} has no HTTP client that can be instrumented: give the client of an SDK, such as "
        "openai.OpenAI()" + (f", of {oldest} or newer" if oldest else "")
    )


def _follow_copies(sdk_client: Any) -> None:
    """Record what copies of a client send too, while it is recorded: one may have an HTTP client of its own.

    It has where the caller gives it one, and those of AnthropicBedrock have by themselves.
    """
    _leave_copies(sdk_client)
    http_client = getattr(sdk_client, "_client", None)
    if http_client is not None and all(callable(getattr(sdk_client, name, None)) for name in _COPIES):
        for name in _COPIES:
            setattr(sdk_client, name, _following(getattr(sdk_client, name), http_client))


def _leave_copies(sdk_client: Any) -> None:
    """Undo `_follow_copies`."""
    for name in _COPIES:
        if hasattr(getattr(sdk_client, name, None), _FOLLOWED):
            delattr(sdk_client, name)


def _following(copy: Callable[..., Any], copied: Any) -> Callable[..., Any]:
    """`copy` of a client that sends by the HTTP client `copied`."""

    @functools.wraps(copy)
    def followed(*args: Any, **kwargs: Any) -> Any:
        made = copy(*args, **kwargs)
        try:
            options = options_of(copied)
            if options is not None:
                for http_client in http_clients_of(made):
                    if options_of(http_client) is None:
                        wrap_client(http_client, options, made)
                _follow_copies(made)
        except Exception:  # noqa: BLE001  # the caller has its client, whatever is wrong with ours
            report("what a copy of a client sends can't be recorded")
        return made

    setattr(followed, _FOLLOWED, True)
    return followed


def uninstrument(sdk_client: Any) -> None:
    """Undo `instrument`. Does nothing for a client that was not instrumented."""
    if (api_client := _genai_client(sdk_client)) is not None:
        genai.unwrap_api_client(api_client)
    if (events := _bedrock_events(sdk_client)) is not None:
        bedrock.unsubscribe(events)
    for http_client in http_clients_of(sdk_client):
        unwrap_client(http_client)
    _leave_copies(sdk_client)


def _genai_client(sdk_client: Any) -> Any:
    """What sends for a client of google-genai (and its `aio`); None for others."""
    found = getattr(sdk_client, "_api_client", None)
    return found if all(callable(getattr(found, name, None)) for name in genai.METHODS) else None


def _bedrock_events(sdk_client: Any) -> Any:
    """The events of a boto3 client of bedrock-runtime; None for others."""
    meta = getattr(sdk_client, "meta", None)
    service = getattr(getattr(meta, "service_model", None), "service_name", "")
    return getattr(meta, "events", None) if service == "bedrock-runtime" else None


def http_clients_of(sdk_client: Any) -> Iterator[Any]:
    """The HTTP clients that an SDK's client sends with."""
    for path in _PATHS:
        found = sdk_client
        for name in path:
            found = getattr(found, name, None)
        if callable(getattr(found, "send", None)) and callable(getattr(found, "build_request", None)):
            yield found
