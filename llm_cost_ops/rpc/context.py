"""A call: what it carries beside its message, and how a sync client runs it.

The context goes through every layer, with the metadata (gRPC's word for headers) that travels to the peer;
the idempotency key is put into the message. Ids are UUIDs of version 7 (RFC 9562), which sort by the time
they were made.
"""

from __future__ import annotations

import random
import re
import threading
from collections.abc import Callable, Coroutine
from datetime import UTC, datetime
from functools import partial
from itertools import count
from operator import is_not
from time import time_ns
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec

from llm_cost_ops.rpc.forks import forget_in_children
from llm_cost_ops.rpc.method import MethodDescriptor
from llm_cost_ops.rpc.runtime import Runtime
from llm_cost_ops.rpc.status import RpcError, StatusCode

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

__all__ = [
    "TRACING",
    "CallContext",
    "ForeignAwaitError",
    "Metadata",
    "Pair",
    "Route",
    "drive",
    "fill_idempotency_key",
    "fits_header",
    "foreign_await",
    "utc_now",
    "uuid7",
    "uuid7_series",
]

T = TypeVar("T")

TRACING = frozenset({"b3", "baggage", "traceparent", "tracestate", "uber-trace-id"})
"""Keys that say which trace a call belongs to: they differ from call to call, and change no answer."""

MAX_PAIRS = 64
MAX_BYTES = 16 * 1024

Pair = tuple[str, str | bytes]

_new = object.__new__
_KEY = re.compile(r"[0-9a-z_.-]+")
_VALUE = re.compile(r"[\x20-\x7e]*")
_SECRET = re.compile(r"authorization|api[-_]?key|cookie|token|secret|password")


class Metadata:
    """An ordered multi-map with case-insensitive keys.

    A key that ends in "-bin" has bytes for a value, any other printable ASCII text; spaces around it are no
    part of it, as in a header. What is not allowed in a header (control characters, CR and LF above all)
    raises ValueError with the key. `pairs` are those that are in it, for who reads many.
    """

    __slots__ = ("pairs",)

    def __init__(self, pairs: Mapping[str, str | bytes] | Iterable[tuple[str, str | bytes]] = ()) -> None:
        # Never changed in place: copies, of which each call has one, share it.
        self.pairs: tuple[Pair, ...] = ()
        if isinstance(pairs, Metadata):
            self.pairs = pairs.pairs
            return
        if pairs:
            items = pairs.items() if hasattr(pairs, "items") else pairs
            for key, value in items:
                self.add(key, value)

    def add(self, key: str, value: str | bytes) -> None:
        """Add a pair after those that are there."""
        name = key.lower()
        if not _KEY.fullmatch(name):
            raise ValueError(f"metadata key {key!r} may hold only letters, digits, '_', '-' and '.'")
        if name.endswith("-bin"):
            if not isinstance(value, bytes):
                raise ValueError(f"metadata {name!r} needs bytes, because its key ends in '-bin'")
        elif not isinstance(value, str) or not _VALUE.fullmatch(value):
            raise ValueError(f"metadata {name!r} needs printable ASCII text")
        else:
            value = value.strip()
        self.pairs += ((name, value),)
        if len(self.pairs) > MAX_PAIRS:
            raise ValueError(f"metadata may have at most {MAX_PAIRS} pairs")
        if sum(len(k) + len(v) for k, v in self.pairs) > MAX_BYTES:
            raise ValueError(f"metadata may have at most {MAX_BYTES} bytes")

    def set(self, key: str, value: str | bytes) -> None:
        """Put one pair in the place of all that have the key."""
        name = key.lower()
        self.pairs = tuple([pair for pair in self.pairs if pair[0] != name])
        self.add(name, value)

    def put(self, pair: tuple[str, str | bytes]) -> None:
        """As `set`, for a pair that came out of another Metadata: it is not checked again."""
        pairs = self.pairs
        if pairs:
            name = pair[0]
            pairs = tuple([known for known in pairs if known[0] != name])
        self.pairs = (*pairs, pair)

    def get(self, key: str, default: str = "") -> str:
        """The first text value of a key."""
        name = key.lower()
        for k, v in self.pairs:
            if k == name and isinstance(v, str):
                return v
        return default

    def get_all(self, key: str) -> list[str | bytes]:
        """Every value of a key, in order."""
        name = key.lower()
        return [v for k, v in self.pairs if k == name]

    def __contains__(self, key: object) -> bool:
        name = key.lower() if isinstance(key, str) else key
        return any(k == name for k, _ in self.pairs)

    def __iter__(self) -> Iterator[tuple[str, str | bytes]]:
        return iter(self.pairs)

    def __len__(self) -> int:
        return len(self.pairs)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Metadata) and self.pairs == other.pairs

    __hash__ = None  # type: ignore[assignment]  # mutable

    def copy(self) -> Metadata:
        """The same pairs, apart from this object."""
        made = _new(Metadata)
        made.pairs = self.pairs
        return made

    def __repr__(self) -> str:
        shown = [(k, "***" if _SECRET.search(k) else v) for k, v in self.pairs]
        return f"Metadata({shown!r})"


def _generator() -> tuple[Callable[[], str], Callable[[], None]]:
    """What makes the ids of a process, and what makes it start anew. A closure: ids are made per call.

    48 bits of milliseconds, and 73 random bits of each new millisecond, from a generator of its own, so
    that seeding Python's changes nothing. Within the millisecond the last 48 bits count on (RFC 9562,
    method 2); they start below 2^47, so that they never run out.
    """
    lock = threading.RLock()  # which a signal handler may come into
    bits = random.Random().getrandbits  # seeded by the operating system
    # A millisecond, what its ids begin with, and what counts their ends; replaced as a whole.
    current = (-1, "", count().__next__)

    def begin_anew() -> None:
        nonlocal lock, bits, current
        lock = threading.RLock()
        bits = random.Random().getrandbits
        current = (-1, "", count().__next__)

    def next_millisecond(millis: int) -> tuple[int, str, Callable[[], int]]:
        nonlocal current
        with lock:
            if millis > current[0]:
                drawn = bits(26)
                time = f"{millis >> 16:08x}-{millis & 0xFFFF:04x}"
                head = f"{time}-7{drawn >> 14:03x}-{0x8000 | drawn & 0x3FFF:04x}-"
                current = (millis, head, count(bits(47)).__next__)
            return current

    def uuid7() -> str:
        """A new id in its canonical text form; within a thread each is greater than the one before."""
        millis = time_ns() // 1_000_000
        stamp, head, following = current
        if millis > stamp:
            _, head, following = next_millisecond(millis)
        # An f-string takes longer.
        return "%s%012x" % (head, following())  # noqa: UP031

    return uuid7, begin_anew


uuid7, _begin_anew = _generator()


class _InChildren:
    """A child must not repeat its parent's random bits, nor wait for a lock that a thread of it held."""

    def forget(self) -> None:
        _begin_anew()


_in_children = _InChildren()
forget_in_children(_in_children)


def uuid7_series() -> Callable[[int, int], str]:
    """What makes ids of nanoseconds since 1970 and a number that counts up: equal ones of equal arguments.

    For who takes the time now and has the id made later. 73 random bits are the series' own; it must not
    be used on both sides of a fork.
    """
    bits = random.Random().getrandbits
    drawn, start = bits(26), bits(47)
    middle = f"-7{drawn >> 14:03x}-{0x8000 | drawn & 0x3FFF:04x}-"
    # A millisecond, and what its ids begin with; replaced as a whole.
    current = (-1, "")

    def uuid7_at(nanoseconds: int, number: int) -> str:
        nonlocal current
        millis = nanoseconds // 1_000_000
        stamp, head = current
        if millis != stamp:
            head = f"{millis >> 16:08x}-{millis & 0xFFFF:04x}{middle}"
            current = (millis, head)
        return "%s%012x" % (head, start + number)  # noqa: UP031  # faster

    return uuid7_at


def utc_now(runtime: Runtime) -> datetime:
    """The runtime's wall clock in UTC. Within a call ask `context.now()`, but for a stream that goes on."""
    return datetime.fromtimestamp(runtime.now(), UTC)


class Route(msgspec.Struct, gc=False):
    """Where a transport with several servers took a call.

    `server` is the URL of the last one, `tried` the numbers of those that were asked. `elsewhere` says that
    the server failed while others work: another attempt need not wait. `connect_timeout` is for a connect, in
    seconds; None is until the call's deadline.
    """

    server: str = ""
    tried: set[int] = msgspec.field(default_factory=set)
    elsewhere: bool = False
    connect_timeout: float | None = None


class CallContext(msgspec.Struct, gc=False):
    """One logical call, from the resource to the transport, or from the server's listener to the servicer.

    `deadline` is a point on `runtime.monotonic()` that queueing, waits, back-off and every attempt
    share; None means none. `attempt` counts from 1, `refusals` those of the attempts before it that the
    server refused since it had too many calls. The transport leaves what the peer sent beside its
    answer in `response_metadata` and `response_status`. `principal` is who calls, on a server.
    `waited` adds up the seconds spent in the rate limit and before retries; `retry` is a RetryConfig
    for this call alone, False for no retries, None for what the client does; `authorized` says that
    the credentials in `metadata` are the client's own. `moment` is what `now` answers.
    `admitted` says that the rate limit has let the next attempt through already, and on a server that
    authentication let the call through. `batch` is the request id of the batch that a submit rode in, ""
    where it was sent alone. `route` is None where there is one server.
    """

    method: MethodDescriptor[Any, Any]
    runtime: Runtime
    metadata: Metadata
    deadline: float | None = None
    idempotency_key: str = ""
    attempt: int = 1
    request_id: str = ""
    response_metadata: Metadata | None = None
    response_status: int = 0
    principal: Any = None
    waited: float = 0.0
    retry: Any = None
    authorized: bool = False
    moment: datetime | None = None
    refusals: int = 0
    admitted: bool = False
    batch: str = ""
    route: Route | None = None

    def now(self) -> datetime:
        """The moment at which the call is dealt with, in UTC: that of the first question."""
        if self.moment is None:
            self.moment = utc_now(self.runtime)
        return self.moment

    def identify(self) -> str:
        """Make an id for the call, keep it as its request id, and return it to be its key as well."""
        self.request_id = made = uuid7()
        return made

    def remaining(self) -> float | None:
        """Seconds until the deadline, negative once it has passed; None without one."""
        return None if self.deadline is None else self.deadline - self.runtime.monotonic()

    def check_deadline(self, *, maybe_applied: bool = False) -> None:
        """Raise DEADLINE_EXCEEDED once the deadline has passed."""
        remaining = self.remaining()
        if remaining is not None and remaining <= 0:
            raise RpcError(
                StatusCode.DEADLINE_EXCEEDED,
                f"the deadline of {self.method.name} passed",
                origin="client",
                maybe_applied=maybe_applied,
            )


def fits_header(key: str) -> bool:
    """Whether a header carries a key as it is: of one that begins or ends with a space it would lose that."""
    return key.isascii() and key.isprintable() and key == key.strip()


def fill_idempotency_key(*path: str) -> Callable[..., tuple[Any, str]]:
    """The `fill_key` function of a MethodDescriptor, for the attributes that lead to the key.

    A key that is given wins over the request's own; without either one is made. Where the path crosses a
    list, element i gets "<key>:i", unless it has a key of its own. What has to be changed is copied.
    """
    if len(path) == 1:
        return partial(_fill, path[0])
    outer, name = path

    def fill(request: Any, key: str, make: Callable[[], str]) -> tuple[object, str]:
        message = getattr(request, outer, None)
        if isinstance(message, list):
            key = key or make()
            filled: Any = _numbered(message, name, key)
            if not any(map(is_not, filled, message)):
                return request, key
        else:
            filled, key = _fill(name, message, key, make)
            if filled is message:
                return request, key
        request = request.__copy__()
        setattr(request, outer, filled)
        return request, key

    return fill


def _numbered(messages: list[object], name: str, key: str) -> list[object]:
    """The elements of a list, those without a key copied and given "<key>:i"."""
    filled = messages.copy()
    for i, each in enumerate(messages):
        # Written out: batches have thousands. The validator says what should have been a struct.
        if isinstance(each, msgspec.Struct) and not getattr(each, name, None):
            copied: Any = msgspec.structs.replace(each)
            setattr(copied, name, f"{key}:{i}")
            filled[i] = copied
    return filled


def _fill(name: str, message: object, key: str, make: Callable[[], str]) -> tuple[object, str]:
    if not isinstance(message, msgspec.Struct):
        # The validator says what it should have been.
        return message, key or make()
    own = getattr(message, name)
    if not key:
        key = own if own and isinstance(own, str) else make()
    if own != key:
        changed: Any = message
        message = changed.__copy__()
        setattr(message, name, key)
    return message, key


class ForeignAwaitError(RuntimeError):
    """Something in a sync call awaited what only an event loop can give."""


_RULE = (
    "the sync client can't wait for {}: an interceptor may await only its continuation and "
    "context.runtime (sleep, wait, within, offload)"
)


def drive(coroutine: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine that never suspends, and return its result.

    Raises ForeignAwaitError when it does suspend: an interceptor may await only its continuation
    and `context.runtime`.
    """
    try:
        awaited = coroutine.send(None)
    except StopIteration as stop:
        result: T = stop.value
        return result
    except RuntimeError as error:
        raise foreign_await(error) from error.__cause__
    coroutine.close()
    raise foreign_await(awaited)


def foreign_await(awaited: object) -> RuntimeError:
    """The error for what a call awaited, or for asyncio's that it has no loop; any other is given back."""
    if not isinstance(awaited, RuntimeError):
        return ForeignAwaitError(_RULE.format(repr(awaited)))
    if str(awaited) == "no running event loop":
        error = ForeignAwaitError(_RULE.format("asyncio"))
        error.__cause__ = awaited
        return error
    return awaited
