"""The settings of `serve` and `proxy`: from flags, before the environment, before a file."""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

from llm_cost_ops.cli.options import at_least_one, some_text
from llm_cost_ops.config import REPORTED_PROVIDERS, split_names
from llm_cost_ops.exceptions import ConfigurationError

__all__ = ["PROXY", "SERVE", "Setting", "Settings", "add_settings", "read_settings"]

Value: TypeAlias = "str | int | bool | tuple[str, ...] | dict[str, str] | None"


# Of a service `llm-cost-ops-proxy` each container beside it has LLM_COST_OPS_PROXY_SERVICE_HOST and more.
_SERVICE_LINK = re.compile(
    r"\w+_(SERVICE_(HOST|PORT(_\w+)?)=.*|PORT_\d+_(TCP|UDP|SCTP)(_\w+)?=.*|PORT=(tcp|udp|sctp)://.*)"
)


class Setting(NamedTuple):
    """A setting: its kind is text, addresses (a list), names (a list whose flag has commas), pairs (a table),
    number or yes (true or false).

    `shown` is what stands for its value in the help of its flag. `choices` may bound it. Whoever gives it
    takes `instead_of` away, where a weaker source gave that.
    """

    kind: str
    default: Value
    help: str
    shown: str | None = None
    choices: tuple[str, ...] = ()
    instead_of: str = ""


class Settings(NamedTuple):
    """The settings of a command, by their names in the file; in the environment it is prefix and capitals."""

    prefix: str
    known: Mapping[str, Setting]


_TLS = {
    "tls_cert": Setting(
        "text", None, "PEM file of a certificate and its chain: all but Unix sockets then speak TLS", "FILE"
    ),
    "tls_key": Setting("text", None, "PEM file of the certificate's key", "FILE"),
    "tls_client_ca": Setting(
        "text", None, "PEM file of authorities: only clients with a certificate of theirs are let in", "FILE"
    ),
}

SERVE = Settings(
    "LLM_COST_OPS_SERVE_",
    {
        "db": Setting(
            "text",
            None,
            "a SQLite file, or postgresql://user@host/database; else that of LLM_COST_OPS_BASE_URL, or "
            "llm_cost_ops.db",
            "PATH",
        ),
        "http": Setting(
            "addresses",
            (),
            "addresses of HTTP: HOST:PORT or unix:PATH; 127.0.0.1:8080 without gRPC",
            "HOST:PORT",
        ),
        "grpc": Setting("addresses", (), "addresses of gRPC: HOST:PORT or unix:PATH", "HOST:PORT"),
        "durability": Setting(
            "text",
            "disk",
            "what an acknowledged record survives: a power cut (disk), a crash (process), or the loss of the "
            "primary (replicated, with a synchronous standby of PostgreSQL)",
            choices=("disk", "process", "replicated"),
        ),
        "reported_providers": Setting(
            "names",
            REPORTED_PROVIDERS,
            "providers whose stated costs are taken before those by price cards",
            "NAMES",
        ),
        "require_keys": Setting(
            "yes",
            False,
            "ask for API keys although there is none yet, so that other addresses than loopback may be "
            "listened on",
        ),
        "max_calls": Setting(
            "number",
            256,
            "calls in flight, from 1 on; further ones wait for up to a second, and are refused then",
            "N",
        ),
        **_TLS,
        "access_log": Setting(
            "text",
            "off",
            "a line for each call on standard error, without what callers sent",
            choices=("off", "text", "json"),
        ),
        "dashboard": Setting("yes", True, "serve the dashboard at / of HTTP"),
    },
)

PROXY = Settings(
    "LLM_COST_OPS_PROXY_",
    {
        "upstream": Setting(
            "pairs",
            {},
            "the providers, such as openai=https://api.openai.com; in the file a table `[upstream]`",
            "NAME=URL",
        ),
        "http": Setting("text", "127.0.0.1:8090", "its address: HOST:PORT or unix:PATH", "HOST:PORT"),
        "db": Setting(
            "text",
            None,
            "the database that it records into; llm_cost_ops.db without a service",
            "PATH",
            instead_of="base_url",
        ),
        "base_url": Setting(
            "text",
            None,
            "the service that it records into; else LLM_COST_OPS_BASE_URL",
            "URL",
            instead_of="db",
        ),
        "organization": Setting(
            "text",
            None,
            "whose the calls are that say nothing; else LLM_COST_OPS_ORGANIZATION_ID",
            "ID",
        ),
        "keys": Setting(
            "text", None, "the database whose API keys callers show, `db` unless it is given", "PATH"
        ),
        "require_keys": Setting("yes", False, "ask for API keys on loopback too"),
        "spool": Setting(
            "text", "llm_cost_ops.spool", "folder where records wait until they are sent", "FOLDER"
        ),
        "stream_usage": Setting(
            "text",
            "auto",
            "whether chat streams are asked for their usage; auto: where the provider is known to take it",
            choices=("auto", "always", "never"),
        ),
        "max_calls": Setting(
            "number", 1000, "calls in flight, from 1 on; further ones are refused with 503", "N"
        ),
        **_TLS,
    },
)


def add_settings(parser: argparse.ArgumentParser, settings: Settings, checked: str) -> None:
    """Take a flag for each setting, --config, and --check, which checks what `checked` says.

    A flag that is not given has no value: another source may have the setting.
    """
    parser.argument_default = argparse.SUPPRESS
    parser.add_argument(
        "--config",
        metavar="FILE",
        default=None,
        help=f"a TOML file of settings, named as the flags with _ for -; default: {settings.prefix}CONFIG",
    )
    parser.add_argument(
        "--check", action="store_true", default=False, help=f"check {checked}, and end without listening"
    )
    either: argparse._ActionsContainer = parser  # it has no public name
    if any(setting.instead_of for setting in settings.known.values()):
        either = parser.add_mutually_exclusive_group()
    for name, setting in settings.known.items():
        flag = name.replace("_", "-")
        if setting.kind == "yes" and setting.default:
            off = f"do not {setting.help}"
            parser.add_argument(f"--no-{flag}", dest=name, action="store_false", help=off)
        elif setting.kind == "yes":
            parser.add_argument(f"--{flag}", action="store_true", help=setting.help)
        else:
            target = either if setting.instead_of else parser
            target.add_argument(f"--{flag}", help=_flag_help(setting), **_flag_form(setting))


def _flag_form(setting: Setting) -> dict[str, Any]:
    if setting.choices:
        return {"choices": setting.choices}
    if setting.kind in ("addresses", "pairs"):
        return {"metavar": setting.shown, "action": "append"}
    types = {"names": split_names, "number": at_least_one, "text": some_text}
    return {"metavar": setting.shown, "type": types.get(setting.kind)}


def _flag_help(setting: Setting) -> str:
    default = ",".join(setting.default) if isinstance(setting.default, tuple) else setting.default
    more = {"addresses": "; may be given again", "pairs": "; may be given again", "names": "; with commas"}
    return setting.help + more.get(setting.kind, "") + (f"; default: {default}" if default else "")


def read_settings(
    settings: Settings,
    flags: Mapping[str, Value],
    environment: Mapping[str, str],
    config: str | None = None,
) -> dict[str, Value]:
    """The value of each setting. `flags` are those that were given, `config` the path of a TOML file.

    Without `config` the variable CONFIG with the prefix names the file. Raises ConfigurationError for a
    name that is none, with the nearest that is one, for a value of another kind, and for two settings of
    one source that stand for each other. What Kubernetes sets for a service that has the prefix as its name
    is passed over.
    """
    prefix, known = settings
    variables = {
        variable.removeprefix(prefix).lower(): text
        for variable, text in environment.items()
        if variable.startswith(prefix) and not _SERVICE_LINK.fullmatch(f"{variable}={text}")
    }
    path = variables.pop("config", None) if config is None else config
    of_file = {} if path is None else _read(path)
    layers: list[dict[str, Value]] = [
        {name: _checked(known, name, value, f"config {path}") for name, value in of_file.items()},
        {
            name: _checked(known, name, _parsed(known, name, text), f"{prefix}{name.upper()}")
            for name, text in variables.items()
        },
        dict(flags),
    ]
    found = {name: setting.default for name, setting in known.items()}
    for layer in layers:
        for name, value in layer.items():
            other = known[name].instead_of
            if other in layer:
                raise ConfigurationError(f"give {name} or {other}, not both", parameter=name)
            found[name] = value
            if other:
                found[other] = known[other].default
    return found


def _read(path: str) -> dict[str, object]:
    # The flags of all commands are made for each of them, and few read a file.
    import tomllib

    try:
        return tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigurationError(f"config {path}: {error.strerror}", parameter="config") from None
    except ValueError as error:
        raise ConfigurationError(f"config {path}: no TOML: {error}", parameter="config") from None


def _known(known: Mapping[str, Setting], name: str, source: str) -> Setting:
    if name in known:
        return known[name]
    from difflib import get_close_matches

    near = get_close_matches(name, known, 1)
    meant = f"; did you mean {near[0]}?" if near else f": settings are {', '.join(known)}"
    raise ConfigurationError(f"{source}: there is no setting {name[:50]!r}{meant}", parameter=name[:50])


def _parsed(known: Mapping[str, Setting], name: str, text: str) -> object:
    """The value in a text of the environment; the text, where it is none of the setting's kind."""
    setting = known.get(name)
    if setting is None:
        return text
    if setting.kind in ("addresses", "names"):
        return _parts(text)
    if setting.kind == "pairs":
        pairs = [part.partition("=") for part in _parts(text)]
        return {key: value for key, _, value in pairs} if all(equals for _, equals, _ in pairs) else text
    if setting.kind == "yes":
        return {"true": True, "1": True, "false": False, "0": False}.get(text.lower(), text)
    if setting.kind == "number" and text.isascii() and text.isdigit():
        return int(text[:9])
    return text


def _parts(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


def _is_name(value: object) -> bool:
    return isinstance(value, str) and bool(value)


def _is_list(value: object) -> bool:
    return isinstance(value, list) and all(map(_is_name, value))


_LIST = ("a text or a list of texts", _is_list)
_KINDS: dict[str, tuple[str, Callable[[object], bool]]] = {
    "text": ("text", _is_name),
    "addresses": _LIST,
    "names": _LIST,
    "pairs": (
        "a table of texts, or in the environment NAME=VALUE with commas between them",
        lambda value: isinstance(value, dict) and all(map(_is_name, (*value, *value.values()))),
    ),
    "yes": ("true or false", lambda value: isinstance(value, bool)),
    "number": (
        "a number from 1 on",
        lambda value: isinstance(value, int) and not isinstance(value, bool) and value >= 1,
    ),
}


def _checked(known: Mapping[str, Setting], name: str, value: object, source: str) -> Value:
    setting = _known(known, name, source)
    rule, is_right = _KINDS[setting.kind]
    if setting.kind in ("addresses", "names") and isinstance(value, str):
        value = [value]
    if not is_right(value):
        raise ConfigurationError(f"{source}: {name} must be {rule}", parameter=name)
    if setting.choices and value not in setting.choices:
        raise ConfigurationError(
            f"{source}: {name} must be one of {', '.join(setting.choices)}", parameter=name
        )
    if isinstance(value, list):
        return tuple(map(str, value))
    if isinstance(value, dict):
        return {str(key): str(text) for key, text in value.items()}
    return value if isinstance(value, str | int) else None
