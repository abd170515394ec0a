"""Which interceptors a configuration asks for, and in which order."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import parse_qs

from llm_cost_ops.config import EMBEDDED, BatchingConfig, ClientConfig, split_base_url
from llm_cost_ops.exceptions import ConfigurationError
from llm_cost_ops.interceptors.retry import Retry

__all__ = ["chain_of", "checked"]

_INTERCEPTING = ("intercept_unary_unary", "intercept_unary_stream", "intercept_stream_stream")


def checked(users: object) -> tuple[Any, ...]:
    """The interceptors that a user gave, if they are some: what has none of their methods sees no call."""
    if not isinstance(users, Sequence):
        raise ConfigurationError("interceptors must be a list of them", parameter="interceptors")
    for index, each in enumerate(users):
        if not any(callable(getattr(each, name, None)) for name in _INTERCEPTING) or isinstance(each, type):
            rule = f"must have the method intercept_unary_unary, and is a {type(each).__name__}"
            raise ConfigurationError(f"interceptors[{index}] {rule}", parameter="interceptors")
    return tuple(users)


def chain_of(
    config: ClientConfig,
    users: Sequence[Any],
    checking: Sequence[Any],
    *,
    embedded: bool,
    sync: bool,
    parent: Sequence[Any] = (),
    same_key: bool = False,
) -> list[Any]:
    """The interceptors of a client, outermost first: the user's see a call as its caller does.

    `checking` look at requests before they are sent; the embedded service does so itself. A derived
    client shares the limit, the breaker, the retry budget, logging and metrics of its parent, with the
    same key also the cache and the credentials, and with the same retry settings too what gathers submits.
    """
    known = {type(interceptor): interceptor for interceptor in parent}
    breaker = _breaker(config, known)
    watching = _watching(config, known, breaker)
    chain = [*users, *watching, *checking]
    if config.cache is not None:
        from llm_cost_ops.interceptors.cache import Cache

        chain.append((known.get(Cache) if same_key else None) or Cache(config.cache))
    limit = _rate_limit(config, known)
    how = _batching_of(config, embedded=embedded, sync=sync)
    if how is not None:
        kind = _batching_kind(sync=sync)
        batching = known.get(kind) if same_key else None
        if batching is None or batching.retry != config.retry:
            batching = kind(how, config.retry, limit, watching)
        chain.append(batching)
    retry = known.get(Retry)
    chain.append(Retry(config.retry, None if retry is None else retry.budget))
    if breaker is not None:
        chain.append(breaker)
    if limit is not None:
        chain.append(limit)
    if config.api_key is not None and not embedded:
        from llm_cost_ops.interceptors.auth import Auth

        chain.append((known.get(Auth) if same_key else None) or Auth(config.api_key))
    return chain


def _batching_of(config: ClientConfig, *, embedded: bool, sync: bool) -> BatchingConfig | None:
    """How submits are gathered; None where they don't wait for a network or a disk, while others come."""
    url = split_base_url(config.base_url)
    if not config.batching.enabled or (url.scheme in EMBEDDED and not embedded):  # a transport of the user's
        return None
    if url.scheme != "sqlite":
        return config.batching
    durability = parse_qs(url.query).get("durability", [config.durability])[-1]
    if durability != "disk" or url.path.strip("/") in ("", ":memory:"):
        return None
    # Threads write to a file one after the other: each that was let through alone would sync it alone.
    return config.batching.replace(max_in_flight=1) if sync else config.batching


def _batching_kind(*, sync: bool) -> Any:
    if sync:
        from llm_cost_ops.client.thread_batching import ThreadBatching

        return ThreadBatching
    from llm_cost_ops.client.task_batching import TaskBatching

    return TaskBatching


def _breaker(config: ClientConfig, known: Mapping[type, object]) -> Any:
    if config.circuit_breaker is None:
        return None
    from llm_cost_ops.interceptors.circuit_breaker import CircuitBreaker

    return known.get(CircuitBreaker) or CircuitBreaker(config.circuit_breaker)


def _rate_limit(config: ClientConfig, known: Mapping[type, Any]) -> Any:
    if config.rate_limit is None:
        return None
    from llm_cost_ops.interceptors.rate_limit import RateLimit

    return known.get(RateLimit) or RateLimit(config.rate_limit)


def _watching(config: ClientConfig, known: Mapping[type, Any], breaker: Any) -> list[Any]:
    chain: list[Any] = []
    if config.logging.enabled:
        from llm_cost_ops.interceptors.logging import CallLogging

        chain.append(known.get(CallLogging) or CallLogging(config.logging))
    if config.metrics.enabled:
        from llm_cost_ops.interceptors.metrics import CallMetrics, exporters_of

        measured = None if breaker is None else breaker.breaker
        chain.append(known.get(CallMetrics) or CallMetrics(*exporters_of(config.metrics), measured))
    return chain
