"""Splits usage into disjoint meters: no token is in two of them, and together they are the totals."""

from __future__ import annotations

from llm_cost_ops._gen.messages import ModalityTokens, UsageRecord
from llm_cost_ops.rules.meters import PLAIN_METERS

__all__ = [
    "EXACT_FALLBACKS",
    "RATE_FALLBACKS",
    "plain_counts",
    "split_tokens",
    "split_units",
]

# For a meter without a rate: the meters whose rate prices it instead, in this order.
RATE_FALLBACKS: dict[str, tuple[str, ...]] = {
    "CACHE_READ": ("INPUT",),
    "CACHE_READ_AUDIO": ("CACHE_READ", "INPUT_AUDIO", "INPUT"),
    "CACHE_READ_IMAGE": ("CACHE_READ", "INPUT_IMAGE", "INPUT"),
    "CACHE_READ_VIDEO": ("CACHE_READ", "INPUT_VIDEO", "INPUT"),
    "CACHE_WRITE": ("INPUT",),
    "CACHE_WRITE_EXTENDED": ("CACHE_WRITE", "INPUT"),
    "INPUT_AUDIO": ("INPUT",),
    "INPUT_IMAGE": ("INPUT",),
    "INPUT_VIDEO": ("INPUT",),
    "REASONING": ("OUTPUT",),
    "OUTPUT_AUDIO": ("OUTPUT",),
    "OUTPUT_IMAGE": ("OUTPUT",),
    "OUTPUT_VIDEO": ("OUTPUT",),
    "ANNOTATED_PAGES": ("PAGES",),
}

EXACT_FALLBACKS = frozenset(("REASONING",))
"""Meters that cost what their fallback costs wherever they have no rate: reasoning is billed as output."""


def plain_counts(record: UsageRecord) -> tuple[int, int, int, int, int, int]:
    """The counts of PLAIN_METERS, for a record without modalities."""
    cached = record.cached_tokens
    written = record.cache_write_tokens
    extended = record.cache_write_extended_tokens
    reasoning = record.reasoning_tokens
    text = (record.input_tokens or 0) - cached - written
    return text, cached, written - extended, extended, (record.output_tokens or 0) - reasoning, reasoning


def split_tokens(record: UsageRecord) -> tuple[tuple[str, int], ...]:
    """The token meters with their counts, zeros included where they are common.

    The input meters sum to input_tokens and the output meters to output_tokens. Where the overlap
    of cache and modality is not reported, cache writes are text, and cached tokens are text first,
    then image, audio, video. A count below 0 means that the record contradicts itself.
    """
    m = record.modality
    if m is None:
        return tuple(zip(PLAIN_METERS, plain_counts(record), strict=True))
    reasoning = record.reasoning_tokens
    others = m.output_audio_tokens + m.output_image_tokens + m.output_video_tokens
    return (
        *_split_input(record, m),
        ("OUTPUT", (record.output_tokens or 0) - reasoning - others),
        ("REASONING", reasoning),
        ("OUTPUT_AUDIO", m.output_audio_tokens),
        ("OUTPUT_IMAGE", m.output_image_tokens),
        ("OUTPUT_VIDEO", m.output_video_tokens),
    )


def _split_input(record: UsageRecord, m: ModalityTokens) -> tuple[tuple[str, int], ...]:
    written = record.cache_write_tokens
    cached_audio = m.cached_audio_tokens
    cached_image = m.cached_image_tokens
    cached_video = m.cached_video_tokens
    text = (record.input_tokens or 0) - m.input_audio_tokens - m.input_image_tokens - m.input_video_tokens
    audio = m.input_audio_tokens - cached_audio
    image = m.input_image_tokens - cached_image
    video = m.input_video_tokens - cached_video

    unassigned = record.cached_tokens - cached_audio - cached_image - cached_video
    cached_text = min(unassigned, max(text - written, 0))
    rest = unassigned - cached_text
    spill = written - text
    # Only when reads and writes do not fit into the text does a modality give what is missing; never
    # when the counts contradict each other, so that the contradiction stays visible below zero.
    if (rest > 0 or spill > 0) and min(text, audio, image, video) >= 0:
        take = min(rest, image)
        image, cached_image, rest = image - take, cached_image + take, rest - take
        take = min(rest, audio)
        audio, cached_audio, rest = audio - take, cached_audio + take, rest - take
        video, cached_video = video - rest, cached_video + rest
        spill = max(spill, 0)
        text += spill
        take = min(spill, image)
        image, spill = image - take, spill - take
        take = min(spill, audio)
        audio, video = audio - take, video - (spill - take)
    return (
        ("INPUT", text - cached_text - written),
        ("CACHE_READ", cached_text),
        ("CACHE_WRITE", written - record.cache_write_extended_tokens),
        ("CACHE_WRITE_EXTENDED", record.cache_write_extended_tokens),
        ("CACHE_READ_AUDIO", cached_audio),
        ("INPUT_AUDIO", audio),
        ("CACHE_READ_IMAGE", cached_image),
        ("INPUT_IMAGE", image),
        ("CACHE_READ_VIDEO", cached_video),
        ("INPUT_VIDEO", video),
    )


def split_units(record: UsageRecord) -> list[tuple[str, int]]:
    """The meters that are not tokens, with their counts; AUDIO_SECONDS is in thousandths.

    A meter's name is its key in upper case, except that `audio_ms` is AUDIO_SECONDS.
    """
    found: list[tuple[str, int]] = []
    for key, count in record.meters.items():
        if key == "audio_ms":
            found.append(("AUDIO_SECONDS", count))
        elif (meter := key.upper()) == "AUDIO_SECONDS":
            found.append((meter, count * 1000))
        else:
            found.append((meter, count))
    return found
