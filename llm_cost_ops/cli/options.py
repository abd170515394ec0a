"""The options of the commands that ask: filters, and those of each command."""

from __future__ import annotations

import argparse
from datetime import UTC, datetime
from typing import Any, TypeAlias

from llm_cost_ops.cli.periods import PERIOD_WORDS, period_end, period_start
from llm_cost_ops.exceptions import ConfigurationError, error_from_rpc

__all__ = [
    "Commands",
    "add_filters",
    "add_form",
    "add_questions",
    "add_target",
    "at_least_one",
    "filters_of",
    "model_of",
    "pairs",
    "some_text",
    "times_of",
]

Commands: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"  # noqa: SLF001  # it has no public name

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
    (
        "--status",
        "status",
        "STATUS",
        "priced, estimated, partial, unpriced, reported or voided",
    ),
)
_TEXTS = (
    (
        "--start",
        "start_date",
        "DATE",
        "a date, a month (2026-01) or a time, inclusive; how long ago, as 12h, 7d or 4w; or the first day of "
        + ", ".join(PERIOD_WORDS),
    ),
    (
        "--end",
        "end_date",
        "DATE",
        "a date (through that day), a month or a time; or the last day of a word, as --start",
    ),
    ("--time-zone", "time_zone", "ZONE", "an IANA name; default: UTC"),
)


def add_target(parser: argparse.ArgumentParser, default: str = "llm_cost_ops.db") -> None:
    """Take --db or --base-url; `default` says what is asked without both."""
    target = parser.add_mutually_exclusive_group()
    target.add_argument(
        "--db",
        type=some_text,
        metavar="PATH",
        help="a database file of the embedded engine, or postgresql://user@host/database; "
        f"default: {default}",
    )
    target.add_argument(
        "--base-url",
        type=some_text,
        metavar="URL",
        help="the server to ask instead, with the API key in LLM_COST_OPS_API_KEY; "
        "default: LLM_COST_OPS_BASE_URL",
    )


def _add_model(parser: argparse.ArgumentParser, more: str = "") -> None:
    parser.add_argument("model", nargs="+", help=f"such as openai/gpt-4o, or openai gpt-4o{more}")


def model_of(options: argparse.Namespace) -> tuple[str, str]:
    """The provider and the id of the model that a command names. ConfigurationError unless it names one."""
    if len(options.model) > 2:
        raise ConfigurationError(
            f"name one model, such as openai/gpt-4o or openai gpt-4o, not {' '.join(options.model)!r}",
            parameter="model",
        )
    provider, slash, model = "/".join(options.model).partition("/")
    if not slash:
        raise ConfigurationError(
            f"say whose model {provider} is, such as openai/{provider}: "
            f"`llm-cost-ops prices list {provider}` shows who has it",
            parameter="model",
        )
    return provider, model


def add_form(parser: argparse.ArgumentParser, *, plot: bool = False) -> None:
    """Take --json or --csv; with `plot` --plot instead of either."""
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="print JSON, with values as they are")
    form.add_argument("--csv", action="store_true", help="print CSV, with values as they are")
    if plot:
        form.add_argument("--plot", action="store_true", help="draw a bar for each group")


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
    found |= times_of(options, options.time_zone)
    return {**found, "label": pairs(options.label, "label", "KEY=VALUE")}


def times_of(options: argparse.Namespace, time_zone: str = "") -> dict[str, Any]:
    """--start and --end as parameters of the client's methods."""
    from llm_cost_ops.rpc.status import RpcError

    for option, text in (("--start", options.start_date), ("--end", options.end_date)):
        if text and text not in PERIOD_WORDS and not any(map(str.isdigit, text)):
            words = ", ".join(PERIOD_WORDS)
            raise ConfigurationError(
                f"{option} must be a date such as 2026-01-31, a month, a time, how long ago (12h, 7d, 4w) "
                f"or one of {words}, not {text!r}",
                parameter=option.removeprefix("--"),
            )
    now = datetime.now(UTC)
    try:
        return {
            "start_date": period_start(options.start_date, time_zone, now),
            "end_date": period_end(options.end_date, time_zone, now),
        }
    except RpcError as error:
        raise error_from_rpc(error) from error


def pairs(texts: list[str], option: str, form: str) -> dict[str, str]:
    """Texts with = in them as a dict. ConfigurationError, with the `form` that the help shows, for others."""
    found = {}
    for text in texts:
        key, equals, value = text.partition("=")
        if not equals or not key:
            raise ConfigurationError(f"--{option} must be {form}, not {text!r}", parameter=option)
        found[key] = value
    return found


def some_text(text: str) -> str:
    """Text that is not empty, as an option's type: such as that of a variable which is not set in a shell."""
    if not text:
        raise argparse.ArgumentTypeError("must not be empty")
    return text


def at_least_one(text: str) -> int:
    """A number from 1 on, as an option's type."""
    if not (text.isascii() and text.isdigit() and int(text[:9]) >= 1):
        raise argparse.ArgumentTypeError("must be a number from 1 on")
    return int(text[:9])


def add_questions(commands: Commands) -> None:
    """Add the commands that ask."""
    _add_costs(commands)
    _add_export(commands)
    _add_estimate(commands)
    _add_reprice(commands)
    _add_usage(commands)
    _add_prices(commands)
    _add_audit(commands)
    _add_privacy(commands)
    _add_retention(commands)


def _add_costs(commands: Commands) -> None:
    parser = commands.add_parser("costs", help="show what usage cost")
    add_target(parser)
    add_filters(parser)
    parser.add_argument(
        "--by",
        "--group-by",
        dest="group_by",
        action="append",
        metavar="NAMES",
        help="none, or any of provider, model, organization, project, user, tag, label:<key>, operation, "
        "service_tier, processing, region, status, meter, and one of hour, day, week, month; may be given "
        "again, or name several by comma; default: provider,model",
    )
    parser.add_argument("--currency", default="", help="ISO 4217; default: USD")
    add_form(parser, plot=True)
    parser.set_defaults(run="costs:costs")


def _add_export(commands: Commands) -> None:
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
    parser.set_defaults(run="export:export")


def _add_estimate(commands: Commands) -> None:
    parser = commands.add_parser("estimate", help="show what a call would cost, by line")
    add_target(parser, default="the catalog alone")
    _add_model(parser)
    for name in ("input", "output", "cached", "cache-write", "reasoning"):
        parser.add_argument(f"--{name}", type=int, metavar="TOKENS", help=f"{name} tokens")
    parser.add_argument("--meter", action="append", default=[], metavar="NAME=COUNT")
    for name in ("organization", "service-tier", "processing", "region", "speed"):
        parser.add_argument(f"--{name}", default="")
    parser.add_argument("--at", metavar="TIME", help="when the call is made; default: now")
    add_form(parser)
    parser.set_defaults(run="costs:estimate")


def _add_reprice(commands: Commands) -> None:
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
    parser.set_defaults(run="costs:reprice")


def _add_usage(commands: Commands) -> None:
    parser = commands.add_parser(
        "usage", help="list recorded calls, show one with its receipt, correct or void it"
    )
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    listing = actions.add_parser(
        "list",
        help="recorded calls, the newest first",
        description="Recorded calls with their costs, the newest first. `llm-cost-ops export` writes every "
        "field of all of them.",
    )
    add_filters(listing)
    listing.add_argument(
        "--limit", type=at_least_one, default=50, metavar="N", help="at most so many; default: %(default)s"
    )
    show = actions.add_parser(
        "show",
        help="a recorded call with its receipt",
        description="What a recorded call used, what each meter cost and by which price card, and whether "
        "that is what the card gives when it is calculated again. The exit status is 1 when it is not.",
    )
    for action in (listing, show):
        add_form(action)
    void = actions.add_parser(
        "void",
        help="take a record out of every sum",
        description="Take a record out of every sum and list. It stays, with its revisions, and its key "
        "stays taken.",
    )
    correct = actions.add_parser(
        "correct",
        help="change fields of a record",
        description="Change fields of a record and price it again. What was recorded stays as a revision. "
        "Its organization, key and time can't be changed: void it, and record it anew under another key.",
    )
    correct.add_argument(
        "--set",
        action="append",
        default=[],
        required=True,
        metavar="FIELD=VALUE",
        help="a field of the record and what it is to be: text, or JSON, where null takes it away; may be "
        "given again",
    )
    revisions = actions.add_parser("revisions", help="every revision of a record, from the first on")
    for action in (show, void, correct, revisions):
        action.add_argument("id", metavar="ID", help="the id of the record")
        action.add_argument(
            "--organization", default="", metavar="ID", help="whose record; may be left out with a key of one"
        )
        if action in (void, correct):
            action.add_argument("--reason", required=True, help="for who reads the revisions")
        if action is not show:
            action.add_argument("--json", action="store_true", help="print each revision as a line of JSON")
    for action in (listing, show, void, correct, revisions):
        add_target(action)
    parser.set_defaults(run="usage:usage")


def _add_audit(commands: Commands) -> None:
    parser = commands.add_parser("audit", help="who changed keys, prices and recorded usage, and when")
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    listing = actions.add_parser(
        "list",
        help="what was done, the newest first",
        description="What was done to keys, prices and recorded usage, the newest first. Events are written "
        "with what they tell, and never changed.",
    )
    for name, dest, text in (
        ("organization", "organization", "whose data; default: all that you may see"),
        ("action", "done", "what was done, such as key.created or usage.voided"),
        ("actor", "actor", "the id of the API key that did it, or local"),
        ("subject", "subject", "the id of the key, card or record that it was done to"),
    ):
        metavar = "ACTION" if dest == "done" else "ID"
        listing.add_argument(f"--{name}", dest=dest, action="append", default=[], metavar=metavar, help=text)
    for option, name, shown, text in _TEXTS[:2]:
        listing.add_argument(option, dest=name, default="", metavar=shown, help=text)
    listing.add_argument(
        "--limit", type=at_least_one, default=50, metavar="N", help="at most so many; default: %(default)s"
    )
    add_form(listing)
    add_target(listing)
    parser.set_defaults(run="governance:audit")


def _add_privacy(commands: Commands) -> None:
    parser = commands.add_parser("privacy", help="erase a user from what is recorded")
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    erase = actions.add_parser(
        "erase",
        help="erase a user from every record and its history",
        description="Erase a user from every record and its history: user_id, and tags, labels, metadata and "
        "ids of sessions that are exactly the user's id. Costs and sums stay. It can't be undone; stopped, "
        "the same command goes on. Backups, spools and the texts of metadata are yours to look into.",
    )
    erase.add_argument("--user", required=True, metavar="ID", help="as in the records' user_id")
    erase.add_argument(
        "--organization", action="append", default=[], metavar="ID", help="default: all that you may see"
    )
    erase.add_argument("--yes", action="store_true", help="do not ask")
    add_target(erase)
    parser.set_defaults(run="governance:privacy")


def _add_retention(commands: Commands) -> None:
    parser = commands.add_parser("retention", help="for how many days an organization's records are kept")
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    setting = actions.add_parser(
        "set",
        help="keep an organization's records for so many days",
        description="Keep an organization's records for so many days, by their timestamps. A server removes "
        "what is older every day, `retention apply` at once. Sums by model, project and the like stay.",
    )
    setting.add_argument("organization", metavar="ORGANIZATION")
    setting.add_argument("--days", type=int, required=True, metavar="N", help="0 for ever")
    listing = actions.add_parser("list", help="the organizations that have a retention")
    applying = actions.add_parser(
        "apply",
        help="remove what is past its days now",
        description="Remove what is past its days now, some records in each transaction. It can't be undone.",
    )
    applying.add_argument("--dry-run", action="store_true", help="count it, and remove nothing")
    for action in (listing, applying):
        action.add_argument(
            "--organization", action="append", default=[], metavar="ID", help="default: all that you may see"
        )
    for action in (setting, listing, applying):
        add_form(action)
        add_target(action)
    parser.set_defaults(run="governance:retention")


def _add_prices(commands: Commands) -> None:
    parser = commands.add_parser(
        "prices", help="look into, compare and refresh the catalog of public prices, and add your own"
    )
    parser.set_defaults(run="prices:prices")
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    found = actions.add_parser(
        "list",
        help="models and what they cost today; with --db or --base-url the cards of your own",
        description="Models of the catalog and what they cost today. With --db or --base-url the price cards "
        "that were added there instead, past and future ones too.",
    )
    found.add_argument("words", nargs="*", help="models whose names contain every word; default: all")
    found.add_argument("--provider", default="")
    add_target(found, default="the catalog")
    show = actions.add_parser("show", help="every price of a model: its dates, tiers, regions and meters")
    _add_model(show)
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
    _add_own_price(actions)
    update = actions.add_parser(
        "update",
        help="put another catalog in force",
        description="Put a catalog in force for this user: it is checked as a whole first, what it changes "
        "is shown, and it is replaced at once or not at all. Without --yes somebody at the terminal is "
        "asked; in a script nothing is changed, and the exit status is 1 where something would be. What is "
        "recorded keeps its price.",
    )
    update.add_argument(
        "source", nargs="?", help="a file, or an https URL; default: LLM_COST_OPS_PRICES_SOURCE"
    )
    update.add_argument("--yes", action="store_true", help="put it in force without asking")
    update.add_argument("--sha256", help="refuse a file that has another SHA-256")
    update.add_argument("--path", help="where to keep it; processes look for it in the default place only")
    update.add_argument("--allow-older", action="store_true", help="take one older than what is in force")


def _add_own_price(actions: Commands) -> None:
    parser = actions.add_parser(
        "add",
        help="add a price card of your own",
        description="Add a price card, which wins over the catalog from its date on. Prices are per million. "
        "What is recorded keeps its price: `llm-cost-ops reprice` prices it again.",
    )
    _add_model(parser, "; an id may be a prefix that ends in *")
    for name in ("input", "output", "cached", "cache-write"):
        parser.add_argument(f"--{name}", metavar="PRICE", help=f"a million {name} tokens")
    parser.add_argument(
        "--meter",
        action="append",
        default=[],
        metavar="NAME=PRICE",
        help="a million of another meter, or with /N after the price, N of it: WEB_SEARCHES=10/1000",
    )
    parser.add_argument("--currency", default="", help="ISO 4217; default: USD")
    parser.add_argument("--from", dest="since", default="", metavar="DATE", help="default: from now on")
    parser.add_argument("--until", default="", metavar="DATE", help="through that day; default: open")
    parser.add_argument(
        "--organization", default="", metavar="ID", help="whose contract; default: everyone's"
    )
    for name in ("service-tier", "processing", "region", "speed"):
        parser.add_argument(f"--{name}", default="")
    parser.add_argument("--source-url", default="", metavar="URL", help="where the price was published")
    add_target(parser)
