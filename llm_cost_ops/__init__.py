"""Record what LLM calls use, and know exactly what they cost.

    from llm_cost_ops import CostOpsClient

    client = CostOpsClient(base_url="sqlite:///costs.db")
    client.usage.submit(organization_id="acme", provider="openai", model_id="gpt-4o",
                        input_tokens=1000, output_tokens=500)

Names are loaded when they are first used, so that importing the package costs next to nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from llm_cost_ops.lazy import load_by_name

if TYPE_CHECKING:
    from llm_cost_ops.client.clients import AsyncCostOpsClient, CostOpsClient
    from llm_cost_ops.client.observer import instrument
    from llm_cost_ops.config import (
        BatchingConfig,
        CacheConfig,
        CircuitBreakerConfig,
        ClientConfig,
        ConnectionPoolConfig,
        LoggingConfig,
        MetricsConfig,
        RateLimitConfig,
        RecorderConfig,
        RetryConfig,
        TLSConfig,
    )
    from llm_cost_ops.exceptions import (
        APIError,
        AuthenticationError,
        AuthorizationError,
        ClientClosedError,
        ConfigurationError,
        ConflictError,
        CostOpsError,
        NetworkError,
        NotFoundError,
        PayloadError,
        RateLimitError,
        RecorderFullError,
        ServerError,
        TimeoutError,
        ValidationError,
    )
    from llm_cost_ops.instrumentation.hooks import uninstrument
    from llm_cost_ops.normalizers import usage_from_response, usages_from_response
    from llm_cost_ops.pricing.calculator import calculate_cost
    from llm_cost_ops.pricing.selection import PriceQuery, select_card
    from llm_cost_ops.types import RateCard, UsageRecord

__version__ = "0.1.0"

_NAMES = {
    "client": "AsyncCostOpsClient CostOpsClient",
    "client.observer": "instrument",
    "config": "BatchingConfig CacheConfig CircuitBreakerConfig ClientConfig ConnectionPoolConfig "
    "LoggingConfig MetricsConfig RateLimitConfig RecorderConfig RetryConfig TLSConfig",
    "exceptions": "APIError AuthenticationError AuthorizationError ClientClosedError ConfigurationError "
    "ConflictError CostOpsError NetworkError NotFoundError PayloadError RateLimitError RecorderFullError "
    "ServerError TimeoutError ValidationError",
    "instrumentation.hooks": "uninstrument",
    "normalizers": "usage_from_response usages_from_response",
    "pricing.calculator": "calculate_cost",
    "pricing.selection": "PriceQuery select_card",
    "types": "RateCard UsageRecord",
}

__all__ = [
    "APIError",
    "AsyncCostOpsClient",
    "AuthenticationError",
    "AuthorizationError",
    "BatchingConfig",
    "CacheConfig",
    "CircuitBreakerConfig",
    "ClientClosedError",
    "ClientConfig",
    "ConfigurationError",
    "ConflictError",
    "ConnectionPoolConfig",
    "CostOpsClient",
    "CostOpsError",
    "LoggingConfig",
    "MetricsConfig",
    "NetworkError",
    "NotFoundError",
    "PayloadError",
    "PriceQuery",
    "RateCard",
    "RateLimitConfig",
    "RateLimitError",
    "RecorderConfig",
    "RecorderFullError",
    "RetryConfig",
    "ServerError",
    "TLSConfig",
    "TimeoutError",
    "UsageRecord",
    "ValidationError",
    "__version__",
    "calculate_cost",
    "instrument",
    "select_card",
    "uninstrument",
    "usage_from_response",
    "usages_from_response",
]

if not TYPE_CHECKING:
    __getattr__, __dir__ = load_by_name(__name__, _NAMES)
