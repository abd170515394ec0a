"""The headers that begin calls, encoded with hpack: a connection's calls begin alike."""

from __future__ import annotations

from typing import Any

from hpack import Encoder, NeverIndexedHeaderTuple

__all__ = ["HeadEncoder"]

_MOST_BLOCKS = 64


class HeadEncoder(Encoder):
    """hpack's encoder. Headers that its table holds all are encoded once, until the table changes.

    Headers that are never indexed differ with each call, and come last. None is packed by Huffman's code,
    which takes longer than the bytes that it saves.
    """

    def __init__(self) -> None:
        super().__init__()
        self._blocks: dict[tuple[Any, ...], bytes] = {}

    def encode(self, headers: Any, huffman: bool = False) -> bytes:
        """A block of headers, which are tuples of bytes."""
        passing = [header for header in headers if header.__class__ is NeverIndexedHeaderTuple]
        lasting = tuple(headers[: len(headers) - len(passing)])
        block = None if self.header_table.resized else self._blocks.get(lasting)
        if block is None:
            block = super().encode(lasting, huffman=False)
            if len(block) != len(lasting) or len(self._blocks) >= _MOST_BLOCKS:
                self._blocks.clear()
            if len(block) == len(lasting):  # a byte for each: the table held them, and is as it was
                self._blocks[lasting] = block
        return block + b"".join([self.add(header, sensitive=True) for header in passing])
