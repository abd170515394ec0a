"""Lists that come in pages: the first page is there at once, the others when they are reached.

A paged method's request has `page` and `cursor`, its response `data` and `pagination` with
`next_cursor`, `has_next` and `page`: this is all that is known of them here.
"""

from __future__ import annotations

import copy
from collections.abc import AsyncIterator, Callable, Generator, Iterator
from typing import TYPE_CHECKING, Any, Generic, Self, TypeVar

from llm_cost_ops.rpc.rows import rows_of, to_pandas, to_polars
from llm_cost_ops.rpc.status import RpcError, StatusCode

if TYPE_CHECKING:
    import pandas as pd
    import polars as pl

__all__ = ["AsyncPager", "Pager"]

Res = TypeVar("Res")
Item = TypeVar("Item")


class _Pages(Generic[Res, Item]):
    """A list, or the part of it from a cursor on.

    `data` and `pagination` are those of the first page, `page` is that page.
    """

    __slots__ = ("_ask", "_first", "_public_error", "_request")

    def __init__(
        self, ask: Callable[[Any], Any], request: object, public_error: Callable[[RpcError], Exception]
    ) -> None:
        self._ask = ask
        self._request = request
        self._public_error = public_error
        self._first: Res | None = None

    @property
    def page(self) -> Res:
        """The first page, as the server sent it."""
        if self._first is None:
            raise AttributeError("the first page is there once the call has been awaited")
        return self._first

    @property
    def data(self) -> list[Item]:
        """The items of the first page."""
        page: Any = self.page
        items: list[Item] = page.data
        return items

    @property
    def pagination(self) -> Any:
        """Where the first page stands in the whole list."""
        return getattr(self.page, "pagination", None)

    def _following(self, request: Any, page: Any) -> Any:
        """The request for the page after one, or None after the last."""
        pagination = page.pagination
        if pagination is None or not (pagination.next_cursor or (pagination.has_next and pagination.page)):
            return None
        following = copy.copy(request)
        if pagination.next_cursor:
            if pagination.next_cursor == request.cursor:
                error = RpcError(StatusCode.INTERNAL, "the server repeats a cursor: the list has no end")
                raise self._public_error(error)
            following.cursor, following.page = pagination.next_cursor, 0
        else:
            following.page = pagination.page + 1
        return following

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._request!r})"


class Pager(_Pages[Res, Item]):
    """Iterates over the items of a list through all its pages; each page is one call.

        for record in client.usage.list(organization_id="acme"): ...

    Each iteration starts at the first page. `pages()` gives the pages; to go on another day, keep
    the `pagination.next_cursor` of a page and pass it as `cursor`. `timeout` bounds each page.
    """

    __slots__ = ()

    def __init__(
        self, ask: Callable[[Any], Res], request: object, public_error: Callable[[RpcError], Exception]
    ) -> None:
        super().__init__(ask, request, public_error)
        self._first = ask(request)

    def pages(self) -> Iterator[Res]:
        """The pages, each asked for when it is reached."""
        request, page = self._request, self.page
        while True:
            yield page
            request = self._following(request, page)
            if request is None:
                return
            page = self._ask(request)

    def __iter__(self) -> Iterator[Item]:
        page: Any
        for page in self.pages():
            yield from page.data

    def to_dicts(self) -> list[dict[str, Any]]:
        """The items of every page as dicts: amounts are Decimal, times datetime in UTC."""
        items: Any = self
        return rows_of(items)

    def to_pandas(self, *, floats: bool = False) -> pd.DataFrame:
        """The items of every page as a DataFrame of pandas; see `Table.to_pandas`."""
        return to_pandas(self.to_dicts(), floats=floats)

    def to_polars(self, *, floats: bool = False) -> pl.DataFrame:
        """The items of every page as a DataFrame of polars; see `Table.to_polars`."""
        return to_polars(self.to_dicts(), floats=floats)


class AsyncPager(_Pages[Res, Item]):
    """Iterates over the items of a list through all its pages; each page is one call.

        async for record in client.usage.list(organization_id="acme"): ...

    Awaiting it asks for the first page and gives the pager itself, with `data` and `pagination`.
    Each iteration starts at the first page. `pages()` gives the pages; to go on another day, keep
    the `pagination.next_cursor` of a page and pass it as `cursor`. `timeout` bounds each page.
    """

    __slots__ = ()

    def __await__(self) -> Generator[Any, Any, Self]:
        return self._begun().__await__()

    async def _begun(self) -> Self:
        if self._first is None:
            self._first = await self._ask(self._request)
        return self

    async def pages(self) -> AsyncIterator[Res]:
        """The pages, each asked for when it is reached."""
        request, page = self._request, (await self).page
        while True:
            yield page
            request = self._following(request, page)
            if request is None:
                return
            page = await self._ask(request)

    async def __aiter__(self) -> AsyncIterator[Item]:
        page: Any
        async for page in self.pages():
            for item in page.data:
                yield item

    async def to_dicts(self) -> list[dict[str, Any]]:
        """The items of every page as dicts: amounts are Decimal, times datetime in UTC."""
        items: Any = [item async for item in self]
        return rows_of(items)

    async def to_pandas(self, *, floats: bool = False) -> pd.DataFrame:
        """The items of every page as a DataFrame of pandas; see `Table.to_pandas`."""
        return to_pandas(await self.to_dicts(), floats=floats)

    async def to_polars(self, *, floats: bool = False) -> pl.DataFrame:
        """The items of every page as a DataFrame of polars; see `Table.to_polars`."""
        return to_polars(await self.to_dicts(), floats=floats)
