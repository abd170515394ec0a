"""The settings of `serve`: from flags, before the environment, before a file."""

from __future__ import annotations

import tomllib
from collections.abc import Callable, Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import NamedTuple, TypeAlias

from llm_cost_ops.config import REPORTED_PROVIDERS
from llm_cost_ops.exceptions import ConfigurationError

__all__ = ["PREFIX", "SETTINGS", "Setting", "serve_settings"]

PREFIX = "LLM_COST_OPS_SERVE_"

Value: TypeAlias = "str | int | bool | tuple[str, ...] | None"


class Setting(NamedTuple):
    """A setting: its kind is text, names (a list), number or yes (true or false); `choices` may bound it."""

    kind: str
    default: Value
    help: str
    choices: tuple[str, ...] = ()


SETTINGS: dict[str, Setting] = {
    "db": Setting("text", "llm_cost_ops.db", "a SQLite file, or postgresql://user@host/database"),
    "http": Setting("names", (), "addresses of HTTP: HOST:PORT or unix:PATH; 127.0.0.1:8080 without gRPC"),
    "grpc": Setting("names", (), "addresses of gRPC: HOST:PORT or unix:PATH"),
    "durability": Setting(
        "text", "disk", "what an acknowledged record survives", ("disk", "process", "replicated")
    ),
    "reported_providers": Setting("names", REPORTED_PROVIDERS, "providers whose stated costs are taken"),
    "require_keys": Setting("yes", False, "ask for API keys although there is none yet"),
    "max_calls": Setting("number", 256, "calls in flight, from 1 on"),
    "tls_cert": Setting("text", None, "PEM file of a certificate and its chain"),
    "tls_key": Setting("text", None, "PEM file of the certificate's key"),
    "tls_client_ca": Setting("text", None, "PEM file of the authorities of clients"),
    "access_log": Setting("text", "off", "a line for each call", ("off", "text", "json")),
    "dashboard": Setting("yes", True, "serve the dashboard at / of HTTP"),
}
"""Every setting by its name in the file; in the environment it is PREFIX and the name in capitals."""


def serve_settings(
    flags: Mapping[str, Value], environment: Mapping[str, str], config: str | None = None
) -> dict[str, Value]:
    """The value of each setting. `flags` are those that were given, `config` the path of a TOML file.

    Without `config` the environment's LLM_COST_OPS_SERVE_CONFIG names it. Raises ConfigurationError for a
    name that is none, with the nearest that is one, and for a value of another kind.
    """
    found = {name: setting.default for name, setting in SETTINGS.items()}
    variables = {
        variable.removeprefix(PREFIX).lower(): text
        for variable, text in environment.items()
        if variable.startswith(PREFIX)
    }
    path = variables.pop("config", None) if config is None else config
    if path is not None:
        for name, value in _read(path).items():
            found[_known(name, path)] = _checked(name, value, path)
    for name, text in variables.items():
        source = f"{PREFIX}{name.upper()}"
        found[_known(name, source)] = _checked(name, _parsed(name, text), source)
    return {**found, **flags}


def _read(path: str) -> dict[str, object]:
    try:
        return tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigurationError(f"config {path}: {error.strerror}", parameter="config") from None
    except ValueError as error:
        raise ConfigurationError(f"config {path}: no TOML: {error}", parameter="config") from None


def _known(name: str, source: str) -> str:
    if name in SETTINGS:
        return name
    near = get_close_matches(name, SETTINGS, 1)
    meant = f"; did you mean {near[0]}?" if near else f": settings are {', '.join(SETTINGS)}"
    raise ConfigurationError(f"{source}: there is no setting {name[:50]!r}{meant}", parameter=name[:50])


def _parsed(name: str, text: str) -> object:
    """The value in a text of the environment; the text, where it is none of the setting's kind."""
    setting = SETTINGS.get(name)
    if setting is None:
        return text
    if setting.kind == "names":
        return [part.strip() for part in text.split(",") if part.strip()]
    if setting.kind == "yes":
        return {"true": True, "1": True, "false": False, "0": False}.get(text.lower(), text)
    if setting.kind == "number" and text.isascii() and text.isdigit():
        return int(text[:9])
    return text


def _is_name(value: object) -> bool:
    return isinstance(value, str) and bool(value)


_KINDS: dict[str, tuple[str, Callable[[object], bool]]] = {
    "text": ("text", _is_name),
    "names": (
        "a text or a list of texts",
        lambda value: isinstance(value, list) and all(map(_is_name, value)),
    ),
    "yes": ("true or false", lambda value: isinstance(value, bool)),
    "number": (
        "a number from 1 on",
        lambda value: isinstance(value, int) and not isinstance(value, bool) and value >= 1,
    ),
}


def _checked(name: str, value: object, source: str) -> Value:
    setting = SETTINGS[_known(name, source)]
    rule, is_right = _KINDS[setting.kind]
    if setting.kind == "names" and isinstance(value, str):
        value = [value]
    if not is_right(value):
        raise ConfigurationError(f"{source}: {name} must be {rule}", parameter=name)
    if setting.choices and value not in setting.choices:
        raise ConfigurationError(
            f"{source}: {name} must be one of {', '.join(setting.choices)}", parameter=name
        )
    if isinstance(value, list):
        return tuple(map(str, value))
    return value if isinstance(value, str | int) else None
