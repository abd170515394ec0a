"""One file of usage as records, in its order."""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Iterator
from hashlib import blake2b
from shlex import quote
from typing import Any, BinaryIO, NamedTuple

from llm_cost_ops.exceptions import ConfigurationError
from llm_cost_ops.imports import gateways, provider_pages, session_logs, spans
from llm_cost_ops.imports.fields import FIELDS, Mapping, check_once, overlay, put
from llm_cost_ops.imports.shapes import Line, Table, read_json
from llm_cost_ops.imports.text import TextFile
from llm_cost_ops.imports.values import Format, Found, Part, State
from llm_cost_ops.normalizers import PayloadError, record_from_line, usage_from_response
from llm_cost_ops.types import UsageRecord
from llm_cost_ops.wire.errors import DecodeError

__all__ = ["FORMATS", "Item", "UsageFile"]

FORMATS: tuple[Format, ...] = (
    session_logs.CLAUDE_CODE,
    session_logs.CODEX,
    provider_pages.OPENAI_PAGE,
    provider_pages.ANTHROPIC_USAGE,
    provider_pages.ANTHROPIC_COSTS,
    provider_pages.ANTHROPIC_CSV,
    gateways.LITELLM,
    gateways.OPENROUTER_ACTIVITY,
    gateways.OPENROUTER_GENERATION,
    gateways.HELICONE,
    spans.OTLP,
    spans.SPANS,
    gateways.LANGSMITH,
    gateways.LANGFUSE,
)

# Messages of which a later line may still come: the lines of one lie near each other.
_HELD = 4096

# What JSON's types are called by those who write files.
_WORDS = {
    "int": "a whole number",
    "float": "a number with a fraction",
    "str": "text",
    "bool": "true or false",
    "array": "a list",
    "object": "an object",
}
_TYPES = re.compile(r"\b(?:an? )?(int|float|str|bool|array|object)\b")


class Item(NamedTuple):
    """A record of a file with the number of its line, or what is wrong there."""

    line: int
    record: UsageRecord | str


class UsageFile:
    """The records of a binary stream, which is read once, a piece at a time, and stays the caller's.

    `shape` is "json" or "csv", "" to tell by the first bytes and `name`. `mapping` takes fields from columns,
    `given` are fields that every record gets, whatever it says. `organization` pays for those that name none,
    "default" where it is empty. Iterating raises ConfigurationError where the
    file as a whole is not understood. Afterwards `notes` tells what was recognised, `passed_over` how many
    objects of a known file were no calls, and `unknown` the fields of an object that nothing was known of.
    """

    def __init__(
        self,
        stream: BinaryIO,
        name: str = "",
        *,
        shape: str = "",
        delimiter: str = "",
        mapping: dict[str, str] | None = None,
        given: dict[str, str] | None = None,
        organization: str = "",
    ) -> None:
        self._text = TextFile(stream)
        self._name = name.lower().removesuffix(".gz")
        self._shape = shape
        self._delimiter = delimiter
        self._mapping = Mapping(mapping or {})
        self._given = given or {}
        self._organization = organization or "default"
        self._states: dict[str, State] = {}
        self._held: OrderedDict[str, Item] = OrderedDict()
        self._formats: list[str] = []
        self._table_notes: list[str] = []
        self._columns: list[str] = []
        self._is_log = False
        self.passed_over = 0
        self.unknown: list[str] = []

    @property
    def notes(self) -> list[str]:
        """What the file was recognised as: its formats, compression, encoding and separator."""
        return [*self._formats, *self._text.notes, *self._table_notes]

    @property
    def consumed(self) -> int:
        """How many bytes of the stream were read."""
        return self._text.consumed

    def __iter__(self) -> Iterator[Item]:
        number = 0
        for number, raw, fields in self._lines():
            yield from self._items(number, raw, fields)
        yield from self._released(0)
        for why in self._mapping.unseen() if number else ():
            yield Item(number, why)
        if self._text.error:
            yield Item(number + 1, self._text.error)

    def _lines(self) -> Iterator[Line]:
        if self._is_table():
            table = Table(self._text.lines, self._delimiter)
            names = {";": "separated by semicolons", "\t": "separated by tabs", "|": "separated by |"}
            if table.delimiter in names and not self._delimiter:
                self._table_notes.append(names[table.delimiter])
            self._check(table.columns)
            self._columns = table.columns
            return self._rows(table)
        return read_json(self._text.lines)

    def _rows(self, table: Table) -> Iterator[Line]:
        """The rows of a table. A count at the end of one that was cut off is another, smaller count."""
        for line in table:
            cut_off = table.unfinished and self._text.error
            yield line._replace(fields="is cut off") if cut_off else line

    def _is_table(self) -> bool:
        if self._shape or self._delimiter:
            return self._shape != "json"
        if self._name.endswith((".csv", ".tsv")):
            return True
        if self._name.endswith((".json", ".jsonl", ".ndjson")):
            return False
        # JSON that is read here begins with one of these, and a table never does.
        head = self._text.lines.peek(1).lstrip()[:1]
        return head not in (b"{", b"[", b"")

    def _check(self, columns: list[str]) -> None:
        """Raise ConfigurationError unless the columns of a table say what they hold."""
        if not any(columns):
            raise ConfigurationError(self._text.error or "the file has no header", parameter="file")
        if self._mapping:
            self._mapping.check(columns)
            return
        row = dict.fromkeys(columns, "")
        if _format_of(row) or _is_own(row):
            check_once(filter(None, row), columns)
            return
        raise ConfigurationError(
            f"these columns are of no export that is known: {_listed(columns)}. Say which hold what, such as "
            f"{_suggested(columns)}. Known without --map: usage record, "
            f"{', '.join(each.name for each in FORMATS)}",
            parameter="map",
        )

    def _items(self, number: int, raw: bytes, fields: dict[str, object] | str) -> Iterator[Item]:
        if isinstance(fields, str):
            yield Item(number, fields)
            return
        known = None if self._mapping else _format_of(fields)
        if known is not None and known.name not in self._formats:
            self._formats.append(known.name)
            self._is_log = self._is_log or known.is_log
        any_found = False
        try:
            for part in self._parts(known, fields):
                any_found = True
                yield from self._finished(number, raw, part, known)
        except (DecodeError, PayloadError, ValueError, TypeError, ArithmeticError, RecursionError) as error:
            self._remember(error, fields)
            yield Item(number, reason_of(error))
            return
        if not any_found:
            self.passed_over += 1

    def _parts(self, known: Format | None, fields: dict[str, Any]) -> Found:
        if known is not None:
            yield from known.read(fields, self._states.setdefault(known.name, {}))
        elif self._mapping:
            yield Part("", record_from_line({"model_id": "", **self._mapping.apply(fields)}))
        elif self._is_log:
            # A log has lines of kinds that come and go with the versions of its program.
            return
        elif self._columns:
            row: dict[str, Any] = {"model_id": ""}
            for name, value in fields.items():
                if value != "":
                    put(row, name, value)
            yield Part("", record_from_line(row))
        else:
            yield Part("", self._plain(fields))

    def _plain(self, fields: dict[str, object]) -> UsageRecord:
        provider = self._given.get("provider")
        if provider and "model_id" not in fields and "input_tokens" not in fields:
            if "response" not in fields:
                return usage_from_response(fields, provider=provider)
            fields = {**fields, "provider": provider}
        return record_from_line(fields)

    def _finished(self, number: int, raw: bytes, part: Part, known: Format | None) -> Iterator[Item]:
        record = part.record
        if isinstance(record, str):
            yield Item(number, f"{part.where}: {record}" if part.where else record)
            return
        overlay(record, self._given)
        if known is not None and not (record.model_id and record.provider):
            missing = "provider" if record.model_id else "model_id"
            why = f"does not say the {missing.removesuffix('_id')}: give it with --set {missing}=…"
            if not record.model_id and known is provider_pages.OPENAI_PAGE:
                why += ", or ask the API with group_by=model"
            yield Item(number, f"{part.where} {why}".lstrip())
            return
        if not record.idempotency_key:
            digest = blake2b(b"%d:" % number + part.where.encode() + raw, digest_size=16).hexdigest()
            record.idempotency_key = f"import-{digest}"
        record.organization_id = record.organization_id or self._organization
        if record.ingested_at is None:
            # An exported record is the one that was sent, and says where it came from.
            record.source = record.source or "file"
        item = Item(number, record)
        if known is None or not known.last_counts:
            yield item
            return
        self._held.pop(record.idempotency_key, None)
        self._held[record.idempotency_key] = item
        yield from self._released(_HELD)

    def _released(self, kept: int) -> Iterator[Item]:
        while len(self._held) > kept:
            yield self._held.popitem(last=False)[1]

    def _remember(self, error: Exception, fields: dict[str, object]) -> None:
        if "no known shape" in str(error) and not self.unknown:
            self.unknown = list(fields)

    def hint(self) -> str:
        """What was looked for, where an object was of no known shape; "" where all were."""
        if not self.unknown:
            return ""
        return (
            f"looked for usage records, responses of providers, {', '.join(each.name for each in FORMATS)}; "
            f"for {_listed(self.unknown)}, say which fields hold what, such as {_suggested(self.unknown)}"
        )


def _format_of(fields: dict[str, Any]) -> Format | None:
    """The kind of file that an object is from; None for a record, a response, and what is not known."""
    if "provider" in fields and "model_id" in fields:
        return None
    return next((each for each in FORMATS if each.matches(fields)), None)


def _is_own(fields: dict[str, Any]) -> bool:
    """Whether a table has the columns of a record, as `export` writes them."""
    return fields.keys() <= FIELDS and ("model_id" in fields or "input_tokens" in fields)


def _listed(names: list[str]) -> str:
    return ", ".join(name[:40] for name in names[:12]) + (", …" if len(names) > 12 else "")


def _suggested(names: list[str]) -> str:
    """A mapping that may be right, from names that look like counts and models."""
    wanted = (
        ("provider", ("provider", "vendor")),
        ("model_id", ("model",)),
        ("input_tokens", ("input", "prompt", "context")),
        ("output_tokens", ("output", "completion", "generated")),
        ("timestamp", ("time", "date", "created")),
    )
    found = []
    for field, words in wanted:
        near = [name for name in names if any(word in name.lower() for word in words)]
        found += [f"--map {quote(f'{field}={near[0]}')}"] if near else []
    return " ".join(found) or "--map input_tokens=COLUMN --map output_tokens=COLUMN --map model_id=COLUMN"


def reason_of(error: Exception) -> str:
    """Why a line is no record, in the words of those who write files."""
    text = str(error)
    if "expected " in text:
        path, _, rest = text.partition("expected ")
        text = f"{path}expected {_TYPES.sub(lambda found: _WORDS[found[1]], rest)}"
    return text.replace(
        "pass api= or provider=",
        'give "model_id" and "input_tokens", or put the response under "response" beside its "provider"',
    )
