"""The service itself: validate, price, append to the ledger. The embedded client and both servers use it."""

from __future__ import annotations

from collections.abc import Collection

from llm_cost_ops._gen.servicers import (
    bind_analytics_service,
    bind_audit_service,
    bind_cost_service,
    bind_health_service,
    bind_pricing_service,
    bind_privacy_service,
    bind_retention_service,
    bind_usage_service,
)
from llm_cost_ops.config import REPORTED_PROVIDERS, provider_names
from llm_cost_ops.ledger import Ledger, open_ledger
from llm_cost_ops.rpc.handler import ServiceHandler
from llm_cost_ops.rpc.interceptor import Interceptors
from llm_cost_ops.rules.requests import SERVICE_CHECKS, Validation
from llm_cost_ops.service.access.tenancy import Tenancy
from llm_cost_ops.service.analytics import AnalyticsService
from llm_cost_ops.service.audit import AuditService
from llm_cost_ops.service.costs import CostService
from llm_cost_ops.service.health import HealthService
from llm_cost_ops.service.prices import Prices
from llm_cost_ops.service.pricing import PricingService
from llm_cost_ops.service.privacy import PrivacyService
from llm_cost_ops.service.retention import RetentionService
from llm_cost_ops.service.usage import UsageService

__all__ = ["Service", "open_service"]


class Service:
    """Every servicer over one ledger, behind one handler. Close it when done.

    `reported_providers` are those whose stated costs are taken before those by price cards. `origin` is
    who refuses a bad request: "client" where the caller is in the same process, so that its error is what
    a client's own check raises.

    Raises ConfigurationError for `reported_providers` that are no list of names, such as one text.
    """

    def __init__(
        self,
        ledger: Ledger,
        interceptors: Interceptors = (),
        *,
        reported_providers: Collection[str] = REPORTED_PROVIDERS,
        origin: str = "server",
    ) -> None:
        # Who calls in the process has no key, and may do everything.
        tenancy = () if origin == "client" else (Tenancy(),)
        self.ledger = ledger
        self.health = HealthService(ledger)
        names = provider_names("reported_providers", reported_providers)
        self.prices = prices = Prices(ledger, names)
        self.handler = ServiceHandler(
            [
                *bind_usage_service(UsageService(ledger, prices, shares_clock=origin == "client")),
                *bind_cost_service(CostService(ledger, prices)),
                *bind_pricing_service(PricingService(ledger, prices)),
                *bind_analytics_service(AnalyticsService(ledger)),
                *bind_audit_service(AuditService(ledger)),
                *bind_privacy_service(PrivacyService(ledger)),
                *bind_retention_service(RetentionService(ledger)),
                *bind_health_service(self.health),
            ],
            [*interceptors, Validation(SERVICE_CHECKS, origin=origin), *tenancy],
        )

    def drain(self) -> None:
        """Make readiness fail from now on: the process is about to stop."""
        self.health.draining = True

    async def aclose(self) -> None:
        """Close the ledger's files and threads. May be called twice."""
        await self.ledger.aclose()


def open_service(
    url: str,
    *,
    durability: str = "disk",
    group_commit: bool = False,
    reported_providers: Collection[str] = REPORTED_PROVIDERS,
    origin: str = "server",
) -> Service:
    """The service over the ledger at a URL, as in `open_ledger`; the other options are as in Service."""
    ledger = open_ledger(url, durability=durability, group_commit=group_commit)
    return Service(ledger, reported_providers=reported_providers, origin=origin)
