"""The names of what is counted: the meters of tokens are known, any other name is a meter too."""

from __future__ import annotations

import re

__all__ = [
    "INPUT_METERS",
    "METER_NAME",
    "METER_RULE",
    "OUTPUT_METERS",
    "PLAIN_METERS",
    "PRICE_FIELDS",
    "TOKEN_METERS",
]

INPUT_METERS = (
    "INPUT",
    "CACHE_READ",
    "CACHE_WRITE",
    "CACHE_WRITE_EXTENDED",
    "CACHE_READ_AUDIO",
    "INPUT_AUDIO",
    "CACHE_READ_IMAGE",
    "INPUT_IMAGE",
    "CACHE_READ_VIDEO",
    "INPUT_VIDEO",
)
OUTPUT_METERS = ("OUTPUT", "REASONING", "OUTPUT_AUDIO", "OUTPUT_IMAGE", "OUTPUT_VIDEO")
PLAIN_METERS = ("INPUT", "CACHE_READ", "CACHE_WRITE", "CACHE_WRITE_EXTENDED", "OUTPUT", "REASONING")
# TOTAL_TOKENS overlaps the others; it is a meter of per-request plans, and counts tokens.
TOKEN_METERS = frozenset((*INPUT_METERS, *OUTPUT_METERS, "TOTAL_TOKENS"))

PRICE_FIELDS = (
    ("input_price_per_1k", "INPUT", 3),
    ("output_price_per_1k", "OUTPUT", 3),
    ("input_price_per_million", "INPUT", 0),
    ("output_price_per_million", "OUTPUT", 0),
)
"""The prices that a card states beside its rates: field, meter, and the power of ten to that of a million."""

METER_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_.:/-]{0,63}", re.ASCII)
METER_RULE = "must be a letter, then letters, digits or _ . : / -, at most 64 in all"
