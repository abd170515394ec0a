"""`llm-cost-ops`: the command line."""

from __future__ import annotations

import argparse
import io
import os
import sys
from collections.abc import Callable, Sequence
from importlib import import_module

from llm_cost_ops import __version__
from llm_cost_ops.cli.failures import in_words
from llm_cost_ops.cli.options import (
    Commands,
    add_form,
    add_questions,
    add_target,
    some_text,
)
from llm_cost_ops.cli.parser import Parser
from llm_cost_ops.cli.settings import PROXY, SERVE, add_settings
from llm_cost_ops.config import REPORTED_PROVIDERS, split_names
from llm_cost_ops.exceptions import AuthenticationError, CostOpsError, ValidationError
from llm_cost_ops.lazy import missing_library

__all__ = ["main"]

# As docs/command-line.md lists them. The last two are what shells give for SIGINT and SIGPIPE.
EXIT_REJECTED, EXIT_FAILED, EXIT_INTERRUPTED, EXIT_PIPE = 1, 2, 130, 141


def _parser() -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = Parser(
        prog="llm-cost-ops", description="Record what LLM calls use, and show exactly what they cost."
    )
    parser.add_argument("--version", action="version", version=f"llm-cost-ops {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    # The help has them in this order: what is recorded and asked first, then what serves and keeps it.
    _add_quickstart(commands)
    _add_import(commands)
    add_questions(commands)
    _add_dashboard(commands)
    _add_serve(commands)
    _add_proxy(commands)
    _add_keys(commands)
    _add_database(commands)
    _add_spool(commands)
    _add_completion(commands, parser)
    _describe(commands)
    return parser


def _describe(commands: Commands) -> None:
    """Have the help of each command begin with what the list of commands says of it, if with nothing else."""
    for listed in commands._choices_actions:  # noqa: SLF001  # it has no public name
        parser = commands.choices[listed.dest]
        if parser.description is None and listed.help is not None:
            parser.description = f"{listed.help[0].upper()}{listed.help[1:]}."
        for action in parser._actions:  # noqa: SLF001
            if isinstance(action, argparse._SubParsersAction):  # noqa: SLF001
                _describe(action)


def _add_completion(commands: Commands, root: argparse.ArgumentParser) -> None:
    parser = commands.add_parser(
        "completion",
        help="print a script that completes commands and options in a shell",
        description="Print a script for a shell. "
        'For bash: eval "$(llm-cost-ops completion bash)" in ~/.bashrc; '
        "for zsh: keep it as _llm-cost-ops in a folder of $fpath; "
        "for fish: keep it as ~/.config/fish/completions/llm-cost-ops.fish.",
    )
    parser.add_argument("shell", choices=("bash", "zsh", "fish"))
    parser.set_defaults(run="completion:completion", root=root)


def _add_db(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--db",
        type=some_text,
        metavar="PATH",
        help="a database file, or postgresql://user@host/database; default: what LLM_COST_OPS_BASE_URL "
        "names, else llm_cost_ops.db",
    )


def _add_quickstart(commands: Commands) -> None:
    parser = commands.add_parser(
        "quickstart", help="record example responses with the embedded engine and show what they cost"
    )
    parser.add_argument(
        "file", nargs="?", help="JSONL of provider responses; default: the examples of a checkout"
    )
    parser.add_argument(
        "--db", type=some_text, default="quickstart.db", metavar="PATH", help="default: %(default)s"
    )
    parser.set_defaults(run="importing:quickstart")


def _add_serve(commands: Commands) -> None:
    parser = commands.add_parser(
        "serve",
        help="run the service",
        description="Run the service. A database that holds API keys (see `llm-cost-ops keys`) is served to "
        "who has one; health needs none. Without any key the service listens on loopback only, and whoever "
        "can connect may read and write everything. A setting that no flag gives is taken from the "
        "environment (LLM_COST_OPS_SERVE_HTTP and so on), then from the file that --config names.",
    )
    add_settings(parser, SERVE, "the settings, the certificate and that the database can be written")
    parser.set_defaults(run="serving:serve")


def _add_proxy(commands: Commands) -> None:
    parser = commands.add_parser(
        "proxy",
        help="pass calls on to providers, and record what each one used",
        description="Run the recording proxy: http://HOST:PORT/NAME/... goes to the upstream of that name. "
        "Provider keys are passed through and kept nowhere. On loopback and Unix sockets callers need no API "
        "key of ours; elsewhere they show one of the database's as x-lco-api-key. A setting that no flag "
        "gives is taken from the environment (LLM_COST_OPS_PROXY_UPSTREAM and so on), then from the file "
        "that --config names.",
    )
    add_settings(parser, PROXY, "the settings, the certificate, the spool and the database")
    parser.set_defaults(run="proxying:proxy")


def _add_dashboard(commands: Commands) -> None:
    parser = commands.add_parser(
        "dashboard",
        help="look at a database in the browser",
        description="Serve the dashboard of a database on loopback, and open it in the browser, until it is "
        "interrupted. A database that holds API keys asks for one.",
    )
    _add_db(parser)
    parser.add_argument("--port", type=int, default=0, metavar="N", help="default: any that is free")
    parser.add_argument("--no-browser", action="store_true", help="only print the address")
    parser.set_defaults(run="serving:dashboard")


def _add_keys(commands: Commands) -> None:
    parser = commands.add_parser("keys", help="make, list and revoke the API keys of a database's server")
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    create = actions.add_parser(
        "create",
        help="make a key, and print it: it is shown this once",
        description="Make an API key and print it, alone, on standard output. It is shown this once: the "
        "database keeps a hash. A key sees and writes the data of its organizations only.",
    )
    create.add_argument(
        "--organization",
        action="append",
        default=[],
        metavar="ID",
        help="whose data the key may use; may be given again; '*' for every organization, which is what the "
        "role metrics is for",
    )
    create.add_argument(
        "--role",
        choices=("metrics", "reader", "writer", "admin"),
        default="writer",
        help="metrics: the server's figures at /metrics and nothing else; reader: queries; "
        "writer: also records usage; admin: also prices, repricing, corrections, erasing users, retention, "
        "the audit log, and keys in the dashboard; default: %(default)s",
    )
    create.add_argument("--name", default="", help="what the key is for")
    create.add_argument("--expires", default="", metavar="DATE", help="a date (through that day) or a time")
    listing = actions.add_parser("list", help="show the keys, without their secrets")
    revoke = actions.add_parser("revoke", help="refuse a key from now on, in running servers too")
    revoke.add_argument("id", metavar="ID", help="as `list` shows it")
    for action in (create, listing, revoke):
        _add_db(action)
    add_form(listing)
    parser.set_defaults(run="keys:keys")


def _add_database(commands: Commands) -> None:
    parser = commands.add_parser("db", help="make, migrate, back up, check or copy a database")
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    backup = actions.add_parser(
        "backup",
        help="copy a database, also while processes write to it",
        description="Copy the state of one moment to a new file, which only you can read, and check the "
        "copy. Nobody has to stop. (`cp` of a database in use makes copies that open and are wrong.)",
    )
    backup.add_argument("source", type=some_text, metavar="SRC")
    backup.add_argument("target", type=some_text, metavar="DEST", help="a file that is not there yet")
    check = actions.add_parser(
        "check",
        help="check a database: its structure, its sums against its rows, and its ids",
        description="Read the whole database and check its structure, its sums against its rows, and its ids "
        "against its keys. The exit status is 1 when something is wrong.",
    )
    init = actions.add_parser(
        "init",
        help="make the tables of a ledger, where there are none",
        description="Make the tables of a ledger. In PostgreSQL it takes a user who may make a schema; who "
        "serves needs less. A database that is there is left as it is.",
    )
    status = actions.add_parser("status", help="show what version a database has, and how large it is")
    migrate = actions.add_parser(
        "migrate", help="bring the tables of a ledger to this version, where they are of an earlier one"
    )
    for action in (check, init, status, migrate):
        action.add_argument(
            "path", type=some_text, metavar="DB", help="a SQLite file, or postgresql://user@host/database"
        )
    copy = actions.add_parser(
        "copy",
        help="copy a ledger into another database, from SQLite to PostgreSQL or back",
        description="Copy records under their ids, their revisions, price cards and API keys. Begun again "
        "after it was stopped, it copies what is missing. At the end the sums of both are compared; the exit "
        "status is 1 when they differ. Stop who writes to the source before the last run.",
    )
    copy.add_argument("source", type=some_text, metavar="FROM")
    copy.add_argument("target", type=some_text, metavar="TO")
    parser.set_defaults(run="database:database")


def _add_spool(commands: Commands) -> None:
    parser = commands.add_parser("spool", help="look into a recorder's spool, or send what lies in it")
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    status = actions.add_parser(
        "status",
        help="count what lies in a spool",
        description="Count what dead processes left in a spool. The exit status is 1 when there is anything.",
    )
    status.add_argument("folder", metavar="FOLDER")
    drain = actions.add_parser(
        "drain",
        help="send what lies in a spool",
        description="Send what dead processes left in a spool. Records carry their keys: what a server has "
        "already counts once. The exit status is 1 when records are left or were refused.",
    )
    drain.add_argument("folder", metavar="FOLDER")
    add_target(drain)
    drain.add_argument("--timeout", type=float, default=60.0, metavar="SECONDS", help="default: %(default)s")
    parser.set_defaults(run="spool:spool")


def _add_import(commands: Commands) -> None:
    parser = commands.add_parser(
        "import",
        help="record the usage in a file",
        description="Record the usage in a file: usage records, responses of providers, session logs of "
        "Claude Code and Codex, usage and cost pages of OpenAI and Anthropic, exports of LiteLLM, "
        "OpenRouter, Vercel, Helicone, Langfuse and LangSmith, spans of OpenTelemetry, or other JSON and CSV "
        "with --map. "
        "Running it twice counts nothing twice. Rejected lines are reported and passed over; "
        "the exit status is then 1.",
    )
    parser.add_argument("file", help="JSON, JSON lines or CSV, also gzipped; - for standard input")
    add_target(parser)
    parser.add_argument(
        "--format", choices=("json", "jsonl", "csv"), help="default: as it is named or begins"
    )
    parser.add_argument(
        "--delimiter", metavar="CHARACTER", help="what separates columns, such as ; or tab; default: sniffed"
    )
    parser.add_argument(
        "--map",
        action="append",
        default=[],
        metavar="FIELD=COLUMN",
        help="take a field from a column or a sum of columns, or from a path in JSON, such as "
        "input_tokens=ContextTokens, input_tokens=Fresh+Cached or model_id=request.model",
    )
    parser.add_argument(
        "--set", action="append", default=[], metavar="FIELD=VALUE", help="give a field of every record"
    )
    parser.add_argument(
        "--reported-providers",
        type=split_names,
        metavar="NAMES",
        help="with commas: providers whose stated costs are taken before those by price cards, with --db; "
        f"default: {','.join(REPORTED_PROVIDERS)}",
    )
    parser.add_argument(
        "--batch-size", type=int, metavar="N", help="default: 5000 into a database, 1000 to a server"
    )
    parser.set_defaults(run="importing:import_file")


def _dispatch(options: argparse.Namespace) -> int:
    # Loaded when it is run: no command pays for the libraries of another.
    module, _, name = options.run.partition(":")
    command: Callable[[argparse.Namespace], int] = getattr(import_module(f"llm_cost_ops.cli.{module}"), name)
    return command(options)


def _say(problem: str) -> None:
    from llm_cost_ops.cli.output import printable

    print(f"llm-cost-ops: {printable(problem)}", file=sys.stderr)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command and give its exit status.

    0 when it did what was asked; 1 when the answer is no, or not whole: lines were rejected, a price is not
    known, a check found something; 2 when it failed or was called wrongly; 130 when it was interrupted; 141
    when whoever read its output had enough.
    """
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        # A stream that was closed, as by `>&-`: no file that is opened later may take its place.
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: PTH123, SIM115
    for stream in (sys.stdout, sys.stderr):
        # A sign that a terminal can't show does not end a command.
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
    options, unknown = _parser().parse_known_args(arguments)
    if unknown:
        options.parser.error(f"unrecognized arguments: {' '.join(unknown)}")
    try:
        return _dispatch(options)
    except CostOpsError as error:
        _say(in_words(error, options))
        if isinstance(error, AuthenticationError):
            print("Set LLM_COST_OPS_API_KEY to a key of that server.", file=sys.stderr)
        if isinstance(error, ValidationError) and "organization_id" in error.errors:
            print("Name it by --organization, or by LLM_COST_OPS_ORGANIZATION_ID.", file=sys.stderr)
    except BrokenPipeError:
        # Whoever read this has enough, as `head` does. Nothing is left to be flushed at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_PIPE
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        _say(f"{where}{error.strerror or error}")
    except ImportError as error:
        missing = missing_library(error, f"llm-cost-ops {options.command}")
        if missing is error:
            raise
        print(f"llm-cost-ops: {missing}", file=sys.stderr)
    except KeyboardInterrupt:
        print("llm-cost-ops: interrupted", file=sys.stderr)
        return EXIT_INTERRUPTED
    return EXIT_FAILED
