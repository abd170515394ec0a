"""Makes, lists and revokes the API keys of a database."""

from __future__ import annotations

import argparse
import sys
from datetime import UTC, datetime
from shlex import quote

from llm_cost_ops.cli.ledgers import check_file, database_of, opened_ledger
from llm_cost_ops.cli.output import Column, Output, Table, form_of
from llm_cost_ops.config import without_password
from llm_cost_ops.exceptions import ConfigurationError
from llm_cost_ops.ledger import ApiKey
from llm_cost_ops.rpc.context import drive
from llm_cost_ops.rules.times import parse_end
from llm_cost_ops.service.access.keys import create_key, revoke_key

__all__ = ["keys"]

_TIMEOUT = 30.0


def keys(options: argparse.Namespace) -> int:
    """The `keys` command."""
    options.db = database_of(options.db)
    if options.db.partition("?")[0] in (":memory:", "sqlite://"):
        raise ConfigurationError("a database in memory keeps no key: name another by --db", parameter="db")
    if options.action != "create":
        check_file(options.db)
    {"create": _create, "list": _list, "revoke": _revoke}[options.action](options)
    return 0


def _create(options: argparse.Namespace) -> None:
    if not options.organization and options.role != "metrics":
        raise ConfigurationError(
            "--organization must be given: whose data the key may use, '*' for everybody's",
            parameter="organization",
        )
    with opened_ledger(options.db, _TIMEOUT) as (ledger, context):
        key, text = drive(
            create_key(
                ledger.keys,
                context,
                organizations=options.organization or ["*"],
                role=options.role,
                name=options.name,
                expires_at=parse_end(options.expires, field="expires") if options.expires else None,
            )
        )
    # Alone on standard output, so that a script can take it from there.
    print(text, flush=True)
    whose = "every organization" if key.organizations is None else ", ".join(key.organizations)
    print(
        f"The key {key.id}, {key.role} of {whose}. It is shown this once: keep it where secrets are kept.\n"
        f"To revoke it: llm-cost-ops keys revoke {key.id} --db {quote(without_password(options.db))}",
        file=sys.stderr,
    )


def _list(options: argparse.Namespace) -> None:
    with opened_ledger(options.db, _TIMEOUT) as (ledger, context):
        listed = drive(ledger.keys.all(context))
    output = Output(form_of(options))
    if not listed and output.form == "text":
        output.line(f"{without_password(options.db)} holds no API key: a server over it asks for none")
        return
    names = ("id", "name", "role", "organizations", "created", "state")
    columns = [
        Column(name, fold=name in ("name", "organizations"), optional=name == "created") for name in names
    ]
    table = Table(columns=columns)
    for key in listed:
        whose = "*" if key.organizations is None else ", ".join(key.organizations)
        state, style = _state(key)
        table.rows.append([key.id, key.name, key.role, whose, f"{key.created_at:%Y-%m-%d %H:%M}", state])
        table.styles.append(style)
    output.table(table)


def _revoke(options: argparse.Namespace) -> None:
    with opened_ledger(options.db, _TIMEOUT) as (ledger, context):
        key = drive(revoke_key(ledger.keys, options.id, context))
    print(f"{key.id} is revoked; running servers refuse it from now on")


def _state(key: ApiKey) -> tuple[str, str]:
    if key.revoked_at is not None:
        return f"revoked {key.revoked_at:%Y-%m-%d}", "dim"
    if key.expires_at is None:
        return "in force", ""
    if key.expires_at <= datetime.now(UTC):
        return f"expired {key.expires_at:%Y-%m-%d}", "dim"
    return f"until {key.expires_at:%Y-%m-%d %H:%M}", ""
