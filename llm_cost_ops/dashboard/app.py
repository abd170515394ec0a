"""The dashboard as a part of the server's ASGI app: who asks, for which page, and what goes wrong."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from urllib.parse import quote, urlencode

from llm_cost_ops._gen.methods import GET_COST_SUMMARY
from llm_cost_ops.dashboard import api_keys, breakdowns, pricing, records
from llm_cost_ops.dashboard.caller import Caller
from llm_cost_ops.dashboard.exchange import (
    Answer,
    PageRequest,
    Receive,
    Scope,
    Send,
    path_of,
    redirect,
    send_answer,
)
from llm_cost_ops.dashboard.page import Page
from llm_cost_ops.dashboard.records import RECORD_PATH
from llm_cost_ops.dashboard.rendering import asset
from llm_cost_ops.dashboard.sessions import COOKIE, Sessions, cookie_header
from llm_cost_ops.ledger import KeyStore
from llm_cost_ops.rpc.handler import ServiceHandler
from llm_cost_ops.rpc.status import HTTP_STATUS, RpcError, StatusCode
from llm_cost_ops.service.access.authentication import Authentication
from llm_cost_ops.service.access.tenancy import Principal
from llm_cost_ops.service.failures import log_failure

__all__ = ["Dashboard"]

_log = logging.getLogger("llm_cost_ops.dashboard")

_SIGN_IN = "/dashboard/sign-in"
_SIGN_OUT = "/dashboard/sign-out"
_LOOPBACK = frozenset(("127.0.0.1", "::1", "localhost"))

_PAGES: dict[tuple[str, str], Callable[[Page], Awaitable[Answer]]] = {
    ("GET", "/"): breakdowns.costs_page,
    ("GET", "/dashboard/tokens"): breakdowns.tokens_page,
    ("GET", "/dashboard/requests"): breakdowns.requests_page,
    ("GET", "/dashboard/breakdown.csv"): breakdowns.costs_csv,
    ("GET", "/dashboard/records"): records.records_page,
    ("GET", "/dashboard/records.csv"): records.records_csv,
    ("GET", RECORD_PATH): records.record_page,
    ("GET", "/dashboard/unpriced"): pricing.unpriced_page,
    ("POST", "/dashboard/reprice"): pricing.reprice,
    ("GET", "/dashboard/prices"): pricing.prices_page,
    ("GET", "/dashboard/prices/new"): pricing.new_price_page,
    ("POST", "/dashboard/prices/new"): pricing.add_price,
    ("GET", "/dashboard/keys"): api_keys.keys_page,
    ("POST", "/dashboard/keys"): api_keys.add_key,
    ("POST", "/dashboard/keys/revoke"): api_keys.revoke,
}
"""By verb and path. What follows RECORD_PATH is a record's id."""


class Dashboard:
    """Answers `/` and what is below `/dashboard/`; the app hands it what `serves` says.

    `authentication` is what the handler's calls pass, and asks `keys`. Whoever is signed in with an API key
    calls with its role and organizations. Where the server asks for no keys, whoever connects may do
    everything; only names of this machine are then taken for it, so that no site whose name leads here
    reads what is shown.
    """

    def __init__(self, handler: ServiceHandler, authentication: Authentication, keys: KeyStore) -> None:
        self._handler = handler
        self._authentication = authentication
        self._keys = keys
        self._sessions = Sessions(keys)

    def serves(self, scope: Scope) -> bool:
        """Whether a request is for the dashboard."""
        path = path_of(scope)
        return path in ("", "/", "/dashboard", "/favicon.ico") or path.startswith("/dashboard/")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = PageRequest(scope, receive)
        try:
            answer = await self._answer(request)
        except RpcError as error:
            answer = self._failed(request, error)
        except asyncio.CancelledError:
            answer = self._failed(request, RpcError(StatusCode.UNAVAILABLE, "the server is stopping"))
        except Exception:  # noqa: BLE001  # logged, and hidden from the reader
            _log.exception("%s %s failed, request %s", request.verb, request.path, request.id)
            answer = self._failed(request, RpcError(StatusCode.INTERNAL, "internal error"))
        await send_answer(answer, request, send)

    async def _answer(self, request: PageRequest) -> Answer:
        request.check()
        if request.verb not in ("GET", "HEAD", "POST"):
            message = f"{request.verb} is not allowed here"
            raise RpcError(StatusCode.UNIMPLEMENTED, message, http_status=405)
        if request.path.startswith("/dashboard/assets/"):
            return _asset(request.path.removeprefix("/dashboard/assets/"))
        if request.path == "/favicon.ico":
            return _asset("icon.svg")
        if request.path in ("", "/dashboard", "/dashboard/"):
            return redirect(f"{request.root}/")
        anonymous = Caller(self._handler, None, request.id)
        context = anonymous.context(GET_COST_SUMMARY)
        token = request.cookie(COOKIE)
        principal = await self._sessions.principal(token, context) if token else None
        if request.path == _SIGN_IN:
            return await self._sign_in(request, anonymous)
        if principal is None and not await self._is_open(anonymous):
            if request.verb == "POST":
                raise RpcError(StatusCode.UNAUTHENTICATED, "the session has ended: sign in again")
            return redirect(_sign_in_url(request), cookie_header("", request) if token else "")
        if principal is None and request.host not in _LOOPBACK:
            message = "without API keys the dashboard answers to localhost only: make a key for others"
            raise RpcError(StatusCode.PERMISSION_DENIED, message)
        return await self._page(request, principal, token if principal else "")

    async def _page(self, request: PageRequest, principal: Principal | None, token: str) -> Answer:
        caller = Caller(self._handler, principal, request.id)
        form_token = await self._sessions.form_token(token, caller.context(GET_COST_SUMMARY))
        page = Page(request, caller, self._keys, form_token)
        if request.verb == "POST":
            page.form = await self._checked_form(request, form_token)
            if request.path == _SIGN_OUT:
                return redirect(f"{request.root}{_SIGN_IN}", cookie_header("", request))
        answer = _PAGES.get((request.verb.replace("HEAD", "GET"), request.path))
        if answer is None and request.verb != "POST" and request.path.startswith(RECORD_PATH):
            answer = _PAGES["GET", RECORD_PATH]
        if answer is None:
            raise RpcError(StatusCode.NOT_FOUND, "there is no such page")
        return await answer(page)

    async def _checked_form(self, request: PageRequest, form_token: str) -> dict[str, str]:
        """The fields of a form that came from a page of this session. Raises PERMISSION_DENIED."""
        form = await request.form()
        if request.is_from_elsewhere() or form.pop("token", "") != form_token:
            message = "this form is not from a page of this session: load the page again"
            raise RpcError(StatusCode.PERMISSION_DENIED, message)
        return form

    async def _is_open(self, anonymous: Caller) -> bool:
        """Whether the server asks for no keys."""
        try:
            await self._authentication.admit(anonymous.context(GET_COST_SUMMARY))
        except RpcError as error:
            if error.code is StatusCode.UNAUTHENTICATED:
                return False
            raise
        return True

    async def _sign_in(self, request: PageRequest, anonymous: Caller) -> Answer:
        page = Page(request, anonymous, self._keys, "")
        if request.verb != "POST":
            return page.sign_in()
        if request.is_from_elsewhere():
            raise RpcError(StatusCode.PERMISSION_DENIED, "sign in on the page of this server")
        form = await request.form()
        token = await self._sessions.start(form.get("key", ""), anonymous.context(GET_COST_SUMMARY))
        if not token:
            return page.sign_in("That is not an API key in force. It may have been revoked, or have expired.")
        return redirect(_local(request.param("next"), request), cookie_header(token, request))

    def _failed(self, request: PageRequest, error: RpcError) -> Answer:
        """The page of an error. One that has none of our making says no more than that."""
        log_failure(error, request.id)
        status = error.http_status or HTTP_STATUS[error.code]
        page = Page(request, Caller(self._handler, None, request.id), self._keys, "")
        answer = page.failed(error, status)
        if error.retry_after is not None:
            answer.headers.append(("retry-after", str(max(1, round(error.retry_after)))))
        return answer


def _asset(name: str) -> Answer:
    found = asset(name)
    if found is None:
        raise RpcError(StatusCode.NOT_FOUND, "there is no such file")
    # Addresses carry a digest of what they lead to.
    return Answer(body=found[0], content_type=found[1], cache="public, max-age=31536000, immutable")


def _sign_in_url(request: PageRequest) -> str:
    query = urlencode(request.query)
    target = request.path + (f"?{query}" if query else "")
    return f"{request.root}{_SIGN_IN}" + ("" if target == "/" else f"?next={quote(target, safe='')}")


def _local(target: str, request: PageRequest) -> str:
    """Where to go after signing in: a page of ours, whatever the address says."""
    ours = target == "/" or target.startswith(("/dashboard/", "/?"))
    if not ours or not target.isprintable() or "\\" in target or not target.isascii():
        target = "/"
    return f"{request.root}{target}"
