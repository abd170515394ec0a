"""What commands print: tables and lines. On a terminal they have colours where rich is installed.

Elsewhere, and without rich, tables are plain text that nothing is cut from, however wide; `--json` and
`--csv` print a table's rows alone, with values as they are.
"""

from __future__ import annotations

import argparse
import csv
import io
import json
import re
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from decimal import Decimal
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TextIO, TypeAlias

import msgspec

if TYPE_CHECKING:
    from rich.table import Table as RichTable

__all__ = ["Bar", "Cell", "Column", "Form", "Output", "Table", "form_of", "money", "printable"]

Cell: TypeAlias = "str | int | Decimal"
Form: TypeAlias = Literal["text", "json", "csv"]

_GAP = "  "
_BLOCKS = " ▏▎▍▌▋▊▉█"
"""From no eighth of a column to all eight."""

_MIN_BAR, _MAX_BAR = 8, 60

_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


def printable(text: str) -> str:
    """The text with its control characters spelt out: what stands in a file does not steer a terminal."""
    return _CONTROL.sub(lambda found: repr(found[0])[1:-1], text)


def money(value: Decimal) -> str:
    """An amount with every digit that it has, and at least two after the point."""
    whole, _, fraction = f"{value:f}".partition(".")
    return f"{int(whole):,}.{fraction.ljust(2, '0')}" if whole != "-0" else f"-0.{fraction.ljust(2, '0')}"


class Column(msgspec.Struct):
    """A column of a table."""

    name: str
    right: bool = False
    key: str = ""
    """Its name for programs; the same when not given."""
    style: str = ""
    fold: bool = False
    """Whether a terminal may break its values into lines."""
    optional: bool = False
    """Whether it is left out on a terminal that is too narrow for all columns, the last such column first."""


class Table(msgspec.Struct, kw_only=True):
    """Rows of cells: texts, counts, and amounts, whose points stand under each other."""

    columns: list[Column]
    rows: list[list[Cell]] = msgspec.field(default_factory=list)
    footer: list[Cell] = msgspec.field(default_factory=list)
    title: str = ""
    caption: str = ""
    styles: list[str] = msgspec.field(default_factory=list)
    """A style for each row, or none at all."""
    shares: list[float] = msgspec.field(default_factory=list)
    """For each row a number from 0 to 1, shown as a bar on terminals with room for it."""


class Bar(NamedTuple):
    """A bar of a plot: what it is of, how long it is against the others, and the texts beside it."""

    label: str
    value: Decimal
    text: str
    note: str = ""


def form_of(options: argparse.Namespace) -> Form:
    """The form that --json or --csv asks for."""
    if getattr(options, "json", False):
        return "json"
    return "csv" if getattr(options, "csv", False) else "text"


class Output:
    """Where a command prints."""

    def __init__(self, form: Form = "text", stream: TextIO | None = None) -> None:
        self.form = form
        self.stream = sys.stdout if stream is None else stream
        self.is_terminal = self.stream.isatty()
        self._console: Any = None
        if self.is_terminal and find_spec("rich") is not None:
            from rich.console import Console

            self._console = Console(file=self.stream, highlight=False)

    def line(self, *parts: str | tuple[str, str]) -> None:
        """A line for people: texts, or texts with a style of rich's."""
        if self.form != "text":
            return
        styled = [(part, "") if isinstance(part, str) else part for part in parts]
        shown = [(printable(text), style) for text, style in styled]
        if self._console is not None:
            from rich.text import Text

            self._console.print(Text.assemble(*shown), soft_wrap=True)
        else:
            self._write("".join(text for text, _ in shown) + "\n")

    def table(self, table: Table) -> None:
        """A table in the form that was asked for."""
        if self.form == "json":
            keys = [column.key or column.name for column in table.columns]
            rows = [dict(zip(keys, map(_plain, row), strict=True)) for row in table.rows]
            self._write(json.dumps(rows, ensure_ascii=False, indent=1) + "\n")
        elif self.form == "csv":
            text = io.StringIO(newline="")
            writer = csv.writer(text, lineterminator="\n")
            writer.writerow([column.key or column.name for column in table.columns])
            writer.writerows([_plain(cell) for cell in row] for row in table.rows)
            self._write(text.getvalue())
        elif self._console is not None:
            width = shutil.get_terminal_size().columns
            fitting, left_out = _fitted(table, width)
            self._console.print(_rich_table(fitting, width))
            if left_out:
                self.line(f"The terminal has no room for {', '.join(left_out)}: --json shows all.")
        else:
            self._write(_plain_table(table))

    def bars(self, bars: Sequence[Bar]) -> None:
        """A plot of bars, as wide as the terminal, or 80 columns; of `#` where blocks can't be shown."""
        columns = shutil.get_terminal_size().columns if self.is_terminal else 80
        blocks = _can_show(self.stream, _BLOCKS)
        for label, text, drawn, note in _drawn(bars, columns, cut=self.is_terminal, blocks=blocks):
            plain = f"{label}  {text}  {drawn}  {note}".rstrip()
            start = len(label) + len(text) + 4
            # Split at the bar, which alone has a colour.
            head, bar, rest = plain[:start], plain[start : start + len(drawn)], plain[start + len(drawn) :]
            self.line(head, (bar, "cyan"), rest)
        self.line()

    @contextmanager
    def progress(self, what: str, total: int | None) -> Iterator[Callable[[int, str], None]]:
        """Call the function given with how much of the total is done, and a text: a bar on terminals."""
        if self._console is None:
            yield lambda _done, _text: None
            return
        from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

        words = TextColumn("{task.fields[text]}")
        columns = (TextColumn("{task.description}"), BarColumn(), words, TimeRemainingColumn())
        with Progress(*columns, console=self._console, transient=True) as bar:
            task = bar.add_task(what, total=total, text="")
            yield lambda done, text: bar.update(task, completed=done, text=text)

    def json_text(self, text: bytes) -> None:
        """JSON that is made already."""
        self._write(text.decode() + "\n")

    def _write(self, text: str) -> None:
        # What programs read is UTF-8, whatever the locale is.
        buffer = getattr(self.stream, "buffer", None)
        if self.form != "text" and buffer is not None:
            self.stream.flush()
            buffer.write(text.encode())
            buffer.flush()
        else:
            self.stream.write(text)


def _can_show(stream: TextIO, text: str) -> bool:
    try:
        text.encode(stream.encoding or "ascii")
    except (UnicodeEncodeError, LookupError):
        return False
    return True


def _drawn(
    bars: Sequence[Bar], columns: int, *, cut: bool, blocks: bool
) -> Iterator[tuple[str, str, str, str]]:
    """Label, text, bar and note of each, the first two as wide as the widest.

    With `cut`, notes are left out where there is no room for them, and then labels are cut.
    """
    places = max((len(bar.text.partition(".")[2]) for bar in bars), default=0)
    amounts = [_at_point(bar.text, places) for bar in bars]
    texts = max(map(len, amounts), default=0)
    notes = max((len(bar.note) + 2 for bar in bars if bar.note), default=0)
    labels = max((len(bar.label) for bar in bars), default=0)
    if cut and labels + texts + notes + 4 + _MIN_BAR > columns:
        bars = [bar._replace(note="") for bar in bars]
        notes = 0
        labels = min(labels, max(8, columns - texts - notes - 4 - _MIN_BAR))
    room = max(_MIN_BAR, min(_MAX_BAR, columns - 1 - labels - texts - notes - 4))
    largest = max((bar.value for bar in bars), default=Decimal(0))
    more = "…" if blocks else "~"
    for bar, amount in zip(bars, amounts, strict=True):
        label = bar.label if len(bar.label) <= labels else bar.label[: labels - 1] + more
        share = float(max(bar.value, Decimal(0)) / largest) if largest > 0 else 0.0
        yield label.ljust(labels), amount.rjust(texts), _bar(share, room, blocks=blocks), bar.note


def _at_point(text: str, places: int) -> str:
    """An amount with room behind it, so that the points of all stand under each other."""
    fraction = text.partition(".")[2]
    return text + " " * (places - len(fraction)) if fraction else text


def _bar(share: float, room: int, *, blocks: bool) -> str:
    """A bar of a share of the room; what is more than nothing is seen."""
    if share <= 0:
        return ""
    if not blocks:
        return "#" * max(1, round(share * room))
    eighths = max(1, round(share * room * 8))
    return "█" * (eighths // 8) + _BLOCKS[eighths % 8].strip()


def _plain(cell: Cell) -> str | int:
    return f"{cell:f}" if isinstance(cell, Decimal) else cell


def _shown(cell: Cell) -> str:
    if isinstance(cell, Decimal):
        return money(cell)
    return cell if isinstance(cell, str) else f"{cell:,}"


def _texts(table: Table) -> list[list[str]]:
    """The columns' cells as they are shown, the footer's last; amounts have their points at one place."""
    columns = []
    for index in range(len(table.columns)):
        cells = [row[index] for row in (*table.rows, *([table.footer] if table.footer else []))]
        texts = [_shown(cell) for cell in cells]
        places = max((len(_fraction(cell)) for cell in cells), default=0)
        columns.append(
            [
                text + " " * (places - len(_fraction(cell))) if isinstance(cell, Decimal) else text
                for text, cell in zip(texts, cells, strict=True)
            ]
        )
    return columns


def _fraction(cell: Cell) -> str:
    return money(cell).partition(".")[2] if isinstance(cell, Decimal) else ""


def _plain_table(table: Table) -> str:
    columns = [[column.name, *texts] for column, texts in zip(table.columns, _texts(table), strict=True)]
    widths = [max(map(len, texts)) for texts in columns]
    lines = [[texts[number] for texts in columns] for number in range(len(columns[0]))]
    lines.insert(1, ["-" * width for width in widths])
    texts = [table.title] if table.title else []
    texts += [_joined(line, widths, table.columns) for line in lines]
    texts += [table.caption] if table.caption else []
    return "\n".join(texts) + "\n\n"


def _joined(cells: Sequence[str], widths: Sequence[int], columns: Sequence[Column]) -> str:
    padded = [
        cell.rjust(width) if column.right else cell.ljust(width)
        for cell, width, column in zip(cells, widths, columns, strict=True)
    ]
    return _GAP.join(padded).rstrip()


def _fitted(table: Table, width: int) -> tuple[Table, list[str]]:
    """The table with as many of its columns as a terminal has room for, and the names of those left out."""
    widths = _widths(table)
    kept = list(range(len(widths)))
    optional = [number for number in kept if table.columns[number].optional]
    while optional and 1 + sum(widths[number] for number in kept) > width:
        kept.remove(optional.pop())
    if len(kept) == len(widths):
        return table, []
    rows = [[row[number] for number in kept] for row in table.rows]
    columns = [table.columns[number] for number in kept]
    names = [column.name for number, column in enumerate(table.columns) if number not in kept]
    footer = [table.footer[number] for number in kept] if table.footer else []
    return msgspec.structs.replace(table, columns=columns, rows=rows, footer=footer), names


def _widths(table: Table) -> list[int]:
    """How wide each column is on a terminal, with the space around it."""
    return [
        max(map(len, (column.name, *texts))) + 3
        for column, texts in zip(table.columns, _texts(table), strict=True)
    ]


def _rich_table(table: Table, width: int) -> RichTable:
    from rich.box import SIMPLE_HEAD
    from rich.markup import escape
    from rich.table import Table as RichTable
    from rich.text import Text

    made = RichTable(
        title=escape(table.title) or None,
        title_justify="left",
        title_style="bold",
        caption=escape(table.caption) or None,
        caption_justify="left",
        box=SIMPLE_HEAD,
        show_footer=bool(table.footer),
    )
    columns = _texts(table)
    footer = [texts.pop() for texts in columns] if table.footer else [""] * len(columns)
    for column, foot in zip(table.columns, footer, strict=True):
        made.add_column(
            escape(column.name),
            footer=escape(foot),
            justify="right" if column.right else "left",
            style=column.style or None,
            # Of what is too wide, texts are cut before numbers.
            no_wrap=column.right and not column.fold,
            overflow="fold" if column.fold else "ellipsis",
        )
    # A bar has the room that the columns leave: nothing is cut for it.
    room = min(20, width - 1 - sum(_widths(table)) - 3)
    bars = bool(table.shares) and room >= 6
    if bars:
        made.add_column("", style="cyan", no_wrap=True)
    for number in range(len(table.rows)):
        cells = [
            escape(texts[number]) if column.fold else Text(texts[number], no_wrap=True, overflow="ellipsis")
            for column, texts in zip(table.columns, columns, strict=True)
        ]
        bar = ["█" * round(room * table.shares[number])] if bars else []
        made.add_row(*cells, *bar, style=table.styles[number] if table.styles else None)
    return made
