"""Makes, lists and revokes the API keys of a database."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Coroutine
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from llm_cost_ops._gen.methods import GET_HEALTH
from llm_cost_ops.cli.output import Column, Output, Table, form_of
from llm_cost_ops.config import without_password
from llm_cost_ops.exceptions import ConfigurationError, error_from_rpc
from llm_cost_ops.ledger import ApiKey, KeyStore, open_ledger
from llm_cost_ops.rpc.context import CallContext, Metadata
from llm_cost_ops.rpc.runtime import SyncRuntime, drive
from llm_cost_ops.rpc.status import RpcError
from llm_cost_ops.rules.times import parse_end
from llm_cost_ops.service.access.keys import create_key, revoke_key

__all__ = ["keys"]

T = TypeVar("T")

_TIMEOUT = 30.0


def keys(options: argparse.Namespace) -> int:
    """The `keys` command."""
    if options.action != "create" and "://" not in options.db and not Path(options.db).is_file():
        raise ConfigurationError(f"there is no database {without_password(options.db)}", parameter="db")
    {"create": _create, "list": _list, "revoke": _revoke}[options.action](options)
    return 0


def _create(options: argparse.Namespace) -> None:
    if not options.organization and options.role != "metrics":
        raise ConfigurationError(
            "--organization must be given: whose data the key may use, '*' for everybody's",
            parameter="organization",
        )
    made = partial(_made, options=options)
    key, text = _with_keys(options.db, made)
    # Alone on standard output, so that a script can take it from there.
    print(text, flush=True)
    whose = "every organization" if key.organizations is None else ", ".join(key.organizations)
    print(
        f"The key {key.id}, {key.role} of {whose}. It is shown this once: keep it where secrets are kept.\n"
        f"To revoke it: llm-cost-ops keys revoke {key.id} --db {without_password(options.db)}",
        file=sys.stderr,
    )


async def _made(store: KeyStore, context: CallContext, options: argparse.Namespace) -> tuple[ApiKey, str]:
    return await create_key(
        store,
        context,
        organizations=options.organization or (["*"] if options.role == "metrics" else []),
        role=options.role,
        name=options.name,
        expires_at=parse_end(options.expires, field="expires") if options.expires else None,
    )


def _list(options: argparse.Namespace) -> None:
    async def found(store: KeyStore, context: CallContext) -> list[ApiKey]:
        return await store.all(context)

    listed = _with_keys(options.db, found)
    output = Output(form_of(options))
    if not listed and output.form == "text":
        output.line(f"{without_password(options.db)} holds no API key: a server over it asks for none")
        return
    names = ("id", "name", "role", "organizations", "created", "state")
    table = Table(columns=[Column(name, fold=name in ("name", "organizations")) for name in names])
    for key in listed:
        whose = "*" if key.organizations is None else ", ".join(key.organizations)
        state, style = _state(key)
        table.rows.append([key.id, key.name, key.role, whose, f"{key.created_at:%Y-%m-%d %H:%M}", state])
        table.styles.append(style)
    output.table(table)


def _revoke(options: argparse.Namespace) -> None:
    async def revoked(store: KeyStore, context: CallContext) -> ApiKey:
        return await revoke_key(store, options.id, context)

    key = _with_keys(options.db, revoked)
    print(f"{key.id} is revoked; running servers refuse it from now on")


def _state(key: ApiKey) -> tuple[str, str]:
    if key.revoked_at is not None:
        return f"revoked {key.revoked_at:%Y-%m-%d}", "dim"
    if key.expires_at is None:
        return "in force", ""
    if key.expires_at <= datetime.now(UTC):
        return f"expired {key.expires_at:%Y-%m-%d}", "dim"
    return f"until {key.expires_at:%Y-%m-%d %H:%M}", ""


def _with_keys(path: str, ask: Callable[[KeyStore, CallContext], Coroutine[Any, Any, T]]) -> T:
    runtime = SyncRuntime()
    context = CallContext(GET_HEALTH, runtime, Metadata(), runtime.monotonic() + _TIMEOUT)
    ledger = open_ledger(path)
    try:
        return drive(ask(ledger.keys, context))
    except RpcError as error:
        raise error_from_rpc(error) from error
    finally:
        drive(ledger.aclose())
