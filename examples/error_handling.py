"""What can go wrong, and what to catch. The server here is scripted, so this runs as it is."""

from __future__ import annotations

from llm_cost_ops import (
    APIError,
    AuthenticationError,
    ConfigurationError,
    CostOpsClient,
    NetworkError,
    RateLimitError,
    ValidationError,
)
from llm_cost_ops.testing import Fault, ScriptedTransport, VirtualRuntime
from llm_cost_ops.types import UsageReceipt

CALL = {"organization_id": "acme", "provider": "openai", "model_id": "gpt-4o", "input_tokens": 10}


def submit(what: str, client: CostOpsClient) -> None:
    try:
        receipt = client.usage.submit(**CALL, timeout=60)
    except AuthenticationError as error:
        print(f"{what}: {error.message}")
    except RateLimitError as error:
        print(f"{what}: again after {error.retry_after} s")
    except NetworkError as error:  # TimeoutError is one of them
        # Submitting again with the same idempotency_key is safe: it counts once.
        print(f"{what}: {error.message} (attempts: {error.attempts}, may count: {error.maybe_applied})")
    except APIError as error:
        print(f"{what}: {error.code}, request {error.request_id or 'unknown'}")
    else:
        print(f"{what}: recorded as {receipt.usage_id}")


def client_of(*script: object) -> CostOpsClient:
    """A client of a server that answers by a script, and whose back-off takes no time."""
    return CostOpsClient(
        "a-key", "https://costs.example.com", transport=ScriptedTransport(script), runtime=VirtualRuntime()
    )


def main() -> None:
    # Passing trouble is retried.
    submit("twice 503, then an answer", client_of(Fault(503, times=2), UsageReceipt(usage_id="u-1")))
    submit("no answer four times", client_of(Fault("network", "connection reset", times=4)))
    submit("a key that is not known", client_of(Fault(401, "unknown key")))
    submit("500 four times", client_of(Fault(500, times=4)))

    # A call that should not wait brings its own policy.
    submit("429, without a retry", client_of(Fault(429, retry_after=30.0)).with_options(retry=None))

    # What breaks a rule is not even sent; every rule is named.
    try:
        client_of().usage.submit(organization_id="", provider="openai", model_id="x" * 300)
    except ValidationError as error:
        print(f"two rules broken, nothing sent: {', '.join(sorted(error.errors))}")
    try:
        CostOpsClient(base_url="costs.example.com")
    except ConfigurationError as error:
        print(f"a wrong setting: {error.parameter}")


if __name__ == "__main__":
    main()
