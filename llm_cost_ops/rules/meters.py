"""The names of what is counted: the meters of tokens are known, any other name is a meter too."""

from __future__ import annotations

import re

__all__ = ["INPUT_METERS", "METER_NAME", "OUTPUT_METERS", "PLAIN_METERS", "TOKEN_METERS"]

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

METER_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_.:/-]{0,63}", re.ASCII)
