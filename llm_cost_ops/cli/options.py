"""The options of the commands that ask: filters, and those of each command."""

from __future__ import annotations

import argparse
from typing import Any, TypeAlias

from llm_cost_ops.exceptions import ConfigurationError

__all__ = ["add_filters", "add_form", "add_questions", "add_target", "filters_of", "pairs"]

_Commands: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"  # noqa: SLF001  # it has no public name

# Each option, the parameter of the client's methods, and what it is.
_LISTS = (
    ("--organization", "organization_id", "ID", None),
    ("--provider", "provider", "NAME", None),
    ("--model", "model_id", "ID", None),
    ("--project", "project_id", "ID", None),
    ("--user", "user_id", "ID", None),
    ("--tag", "tag", "TAG", "any of those given"),
    ("--service-tier", "service_tier", "TIER", None),
    ("--processing", "processing", "HOW", "such as batch"),
    ("--region", "region", "REGION", None),
    ("--operation", "operation", "KIND", "such as chat or embeddings"),
    ("--status", "status", "STATUS", "priced, estimated, partial, unpriced or reported"),
)
_TEXTS = (
    ("--start", "start_date", "DATE", "a date or a time, inclusive"),
    ("--end", "end_date", "DATE", "a date (through that day) or a time"),
    ("--time-zone", "time_zone", "ZONE", "an IANA name; default: UTC"),
)


def add_target(parser: argparse.ArgumentParser) -> None:
    """Take --db or --base-url."""
    target = parser.add_mutually_exclusive_group()
    target.add_argument("--db", metavar="PATH", help="a database file of the embedded engine")
    target.add_argument(
        "--base-url", metavar="URL", help="where to send it; default: LLM_COST_OPS_BASE_URL, else --db"
    )


def add_form(parser: argparse.ArgumentParser) -> None:
    """Take --json or --csv."""
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="print JSON, with values as they are")
    form.add_argument("--csv", action="store_true", help="print CSV, with values as they are")


def add_filters(parser: argparse.ArgumentParser) -> None:
    """Take what usage is filtered by; an option may be given several times, which widens it."""
    for option, name, shown, text in _LISTS:
        parser.add_argument(option, dest=name, action="append", default=[], metavar=shown, help=text)
    parser.add_argument(
        "--label", action="append", default=[], metavar="KEY=VALUE", help="all of those given"
    )
    for option, name, shown, text in _TEXTS:
        parser.add_argument(option, dest=name, default="", metavar=shown, help=text)


def filters_of(options: argparse.Namespace) -> dict[str, Any]:
    """The filters as parameters of the client's methods."""
    found = {name: getattr(options, name) for _, name, _, _ in (*_LISTS, *_TEXTS)}
    return {**found, "label": pairs(options.label, "label")}


def pairs(texts: list[str], option: str) -> dict[str, str]:
    """KEY=VALUE texts as a dict; ConfigurationError for what is none."""
    found = {}
    for text in texts:
        key, equals, value = text.partition("=")
        if not equals or not key:
            raise ConfigurationError(f"--{option} must be KEY=VALUE, not {text!r}", parameter=option)
        found[key] = value
    return found


def add_questions(commands: _Commands) -> None:
    """Add the commands that ask."""
    _add_costs(commands)
    _add_export(commands)
    _add_estimate(commands)
    _add_reprice(commands)
    _add_prices(commands)


def _add_costs(commands: _Commands) -> None:
    parser = commands.add_parser("costs", help="show what usage cost")
    add_target(parser)
    add_filters(parser)
    parser.add_argument(
        "--group-by",
        default="provider,model",
        metavar="NAMES",
        help="none, or any of provider, model, organization, project, user, tag, label:<key>, operation, "
        "service_tier, processing, region, status, meter, and one of hour, day, week, month, by comma; "
        "default: %(default)s",
    )
    parser.add_argument("--currency", default="", help="ISO 4217; default: USD")
    add_form(parser)
    parser.set_defaults(run="costs")


def _add_export(commands: _Commands) -> None:
    parser = commands.add_parser(
        "export",
        help="write recorded usage with its cost to a file",
        description="Write recorded usage with its cost, the oldest first, however much there is. "
        "`llm-cost-ops import` reads JSONL back.",
    )
    add_target(parser)
    add_filters(parser)
    parser.add_argument(
        "--format", choices=("jsonl", "csv"), help="default: by the name of --output, else jsonl"
    )
    parser.add_argument(
        "--output", metavar="FILE", help="written whole or not at all; default: standard output"
    )
    parser.set_defaults(run="export")


def _add_estimate(commands: _Commands) -> None:
    parser = commands.add_parser("estimate", help="show what a call would cost, by line")
    add_target(parser)
    parser.add_argument("provider")
    parser.add_argument("model")
    for name in ("input", "output", "cached", "cache-write", "reasoning"):
        parser.add_argument(f"--{name}", type=int, default=0, metavar="TOKENS", help=f"{name} tokens")
    parser.add_argument("--meter", action="append", default=[], metavar="NAME=COUNT")
    for name in ("organization", "service-tier", "processing", "region", "speed"):
        parser.add_argument(f"--{name}", default="")
    parser.add_argument("--at", metavar="TIME", help="when the call is made; default: now")
    add_form(parser)
    parser.set_defaults(run="estimate")


def _add_reprice(commands: _Commands) -> None:
    parser = commands.add_parser(
        "reprice",
        help="price recorded usage again",
        description="Price recorded usage again by the cards of today, and show the difference by model. "
        "Earlier costs are kept as revisions.",
    )
    add_target(parser)
    add_filters(parser)
    parser.add_argument("--as-of", default="", metavar="DATE", help="leave out cards created after it")
    parser.add_argument("--dry-run", action="store_true", help="show what would change, and write nothing")
    add_form(parser)
    parser.set_defaults(run="reprice")


def _add_prices(commands: _Commands) -> None:
    parser = commands.add_parser("prices", help="look into, compare and refresh the catalog of public prices")
    parser.set_defaults(run="prices")
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    found = actions.add_parser("list", help="models and what they cost today")
    found.add_argument("words", nargs="*", help="models whose names contain every word; default: all")
    found.add_argument("--provider", default="")
    show = actions.add_parser("show", help="every price of a model: its dates, tiers, regions and meters")
    show.add_argument("model", nargs="+", help="such as openai/gpt-4o, or openai gpt-4o")
    diff = actions.add_parser("diff", help="what changes from one catalog file to another")
    diff.add_argument("files", nargs="+", metavar="FILE", help="the catalog, or the old one and the new one")
    check = actions.add_parser(
        "check",
        help="how costs that providers stated differ from the catalog's",
        description="Price the calls of a file by the catalog, and show by model where the costs that they "
        "state are others. Nothing is recorded.",
    )
    check.add_argument("file", help="any file that `import` reads; - for standard input")
    for action in (found, show, diff, check):
        add_form(action)
    update = actions.add_parser(
        "update",
        help="put another catalog in force",
        description="Put a catalog in force for this user: it is checked as a whole first, and replaced at "
        "once or not at all. What is recorded keeps its price.",
    )
    update.add_argument("source", help="a file, or an https URL")
    update.add_argument("--sha256", help="refuse a file that has another SHA-256")
    update.add_argument("--path", help="where to keep it; processes look for it in the default place only")
    update.add_argument("--allow-older", action="store_true", help="take one older than what is in force")
