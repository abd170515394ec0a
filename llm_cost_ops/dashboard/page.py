"""What every page has: who looks, at what, and the frame around it."""

from __future__ import annotations

import csv
import io
from collections.abc import AsyncGenerator, Sequence
from datetime import UTC, datetime
from urllib.parse import urlencode

from llm_cost_ops._gen.methods import LIST_USAGE
from llm_cost_ops.dashboard.caller import Caller
from llm_cost_ops.dashboard.exchange import Answer, PageRequest
from llm_cost_ops.dashboard.rendering import has_charts, render
from llm_cost_ops.dashboard.view import DIMENSIONS, INTERVALS, PERIODS, View
from llm_cost_ops.ledger import KeyStore
from llm_cost_ops.rpc.context import CallContext
from llm_cost_ops.rpc.status import RpcError
from llm_cost_ops.service.access.tenancy import Principal

__all__ = ["Page", "csv_answer", "csv_line"]

_NAVIGATION = (
    ("/", "Cost"),
    ("/dashboard/tokens", "Tokens"),
    ("/dashboard/requests", "Requests"),
    ("/dashboard/records", "Records"),
    ("/dashboard/unpriced", "Unpriced"),
    ("/dashboard/prices", "Prices"),
)
_KEYS = ("/dashboard/keys", "API keys")

# For who has no script that knows the reader's; any other may stand in the address.
_ZONES = (
    "America/Los_Angeles America/Denver America/Chicago America/New_York America/Sao_Paulo Europe/London "
    "Europe/Berlin Europe/Helsinki Europe/Istanbul Africa/Cairo Africa/Johannesburg Asia/Dubai Asia/Karachi "
    "Asia/Kolkata Asia/Dhaka Asia/Bangkok Asia/Singapore Asia/Shanghai Asia/Tokyo Asia/Seoul "
    "Australia/Sydney Pacific/Auckland"
).split()


class Page:
    """A page on its way: its request, its view, and who asks. `form` has what was posted."""

    def __init__(self, request: PageRequest, caller: Caller, keys: KeyStore, form_token: str) -> None:
        self.request = request
        self.caller = caller
        self.keys = keys
        self.form_token = form_token
        self.form: dict[str, str] = {}
        self.now = datetime.now(UTC)
        self._view: View | None = None

    @property
    def view(self) -> View:
        """What the address asks for. Raises INVALID_ARGUMENT."""
        if self._view is None:
            self._view = View.of(self.request.query)
        return self._view

    @property
    def principal(self) -> Principal | None:
        """Who is signed in; None where the server asks for no keys."""
        return self.caller.principal

    @property
    def organizations(self) -> frozenset[str] | None:
        """The reader's organizations, None for all."""
        return None if self.principal is None else self.principal.organizations

    def key_context(self) -> CallContext:
        """The context in which the reader's keys are managed."""
        return self.caller.context(LIST_USAGE)

    def url(self, path: str, **changes: object) -> str:
        """The address of one of our pages with the view of this one."""
        return self.request.root + self.view.url(path, **changes)

    def render(self, template: str, title: str, *, status: int = 200, **values: object) -> Answer:
        """The answer that shows a template in the frame of all pages."""
        view = self.view
        frame: dict[str, object] = {
            "title": title,
            "root": self.request.root,
            "path": self.request.path,
            "navigation": [*_NAVIGATION, *([_KEYS] if self.caller.is_admin else [])],
            "view": view,
            "url": self.url,
            "link": self.link,
            "zone": view.zone,
            "zones": sorted({"UTC", *_ZONES, view.time_zone} - {""}),
            "periods": PERIODS,
            "dimensions": self._dimensions(),
            "intervals": INTERVALS,
            "principal": self.principal,
            "is_admin": self.caller.is_admin,
            "organizations": self.organizations,
            "form_token": self.form_token,
            "has_charts": has_charts(),
            "signed_in": True,
        }
        return Answer(status=status, body=render(template, {**frame, **values}))

    def link(self, path: str, **parameters: str) -> str:
        """The address of a page with parameters of its own, in the reader's zone."""
        pairs = {**parameters, **({"tz": self.view.time_zone} if self.view.time_zone else {})}
        return f"{self.request.root}{path}" + (f"?{urlencode(pairs)}" if pairs else "")

    def sign_in(self, problem: str = "") -> Answer:
        """The page that asks for an API key."""
        self._view = View()
        target = self.request.param("next")
        action = f"{self.request.root}/dashboard/sign-in" + (
            f"?{urlencode({'next': target})}" if target else ""
        )
        status = 401 if problem else 200
        return self.render(
            "sign_in.html", "Sign in", status=status, problem=problem, action=action, signed_in=False
        )

    def failed(self, error: RpcError, status: int) -> Answer:
        """The page of an error."""
        self._view = View()
        return self.render(
            "error.html",
            "Something is wrong" if status >= 500 else "That can't be shown",
            status=status,
            error=error,
            problem_status=status,
            request_id=self.request.id,
            signed_in=False,
        )

    def _dimensions(self) -> dict[str, str]:
        own = self.organizations
        if own is not None and len(own) == 1:
            return {name: title for name, title in DIMENSIONS.items() if name != "organization"}
        return DIMENSIONS


def csv_answer(name: str, lines: AsyncGenerator[bytes, None] | bytes) -> Answer:
    """A file to be kept."""
    headers = [("content-disposition", f'attachment; filename="{name}"')]
    return Answer(body=lines, content_type="text/csv; charset=utf-8", headers=headers)


def csv_line(cells: Sequence[object]) -> bytes:
    """A line of CSV. A text that a spreadsheet would take for a formula gets a quote before it."""
    buffer = io.StringIO(newline="")
    csv.writer(buffer, lineterminator="\r\n").writerow([_cell(cell) for cell in cells])
    return buffer.getvalue().encode()


def _cell(cell: object) -> str:
    text = "" if cell is None else str(cell)
    if isinstance(cell, str) and text[:1] in ("=", "+", "-", "@", "\t", "\r"):
        return f"'{text}"
    return text
