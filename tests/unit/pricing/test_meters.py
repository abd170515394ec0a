from __future__ import annotations

from llm_cost_ops._gen.messages import ModalityTokens, UsageRecord
from tests.metered import split_meters


def _split(modality: dict[str, int] | None = None, **fields: int) -> dict[str, int]:
    record = UsageRecord(**fields, modality=ModalityTokens(**modality) if modality else None)
    return {meter: int(quantity) for meter, quantity in split_meters(record).items()}


def test_details_are_parts_of_their_totals() -> None:
    fields = {"cached_tokens": 40, "cache_write_tokens": 30, "cache_write_extended_tokens": 10}
    assert _split(input_tokens=100, output_tokens=50, reasoning_tokens=20, **fields) == {
        "INPUT": 30,
        "CACHE_READ": 40,
        "CACHE_WRITE": 20,
        "CACHE_WRITE_EXTENDED": 10,
        "OUTPUT": 30,
        "REASONING": 20,
    }


def test_an_overlap_that_is_not_reported_is_text_first() -> None:
    modality = {"input_audio_tokens": 60}
    assert _split(modality, input_tokens=100, cached_tokens=40) == {"CACHE_READ": 40, "INPUT_AUDIO": 60}


def test_then_image_then_audio_then_video() -> None:
    modality = {"input_audio_tokens": 20, "input_image_tokens": 20, "input_video_tokens": 20}
    assert _split(modality, input_tokens=70, cached_tokens=55) == {
        "CACHE_READ": 10,
        "CACHE_READ_IMAGE": 20,
        "CACHE_READ_AUDIO": 20,
        "CACHE_READ_VIDEO": 5,
        "INPUT_VIDEO": 15,
    }


def test_a_reported_overlap_is_kept() -> None:
    modality = {"input_audio_tokens": 60, "cached_audio_tokens": 30}
    assert _split(modality, input_tokens=100, cached_tokens=40) == {
        "INPUT": 30,
        "CACHE_READ": 10,
        "CACHE_READ_AUDIO": 30,
        "INPUT_AUDIO": 30,
    }


def test_writes_are_text_and_reads_take_what_text_is_left() -> None:
    modality = {"input_audio_tokens": 50}
    split = _split(modality, input_tokens=100, cached_tokens=30, cache_write_tokens=40)
    assert split == {"CACHE_READ": 10, "CACHE_READ_AUDIO": 20, "CACHE_WRITE": 40, "INPUT_AUDIO": 30}


def test_writes_that_exceed_the_text_take_from_the_modalities() -> None:
    modality = {"input_audio_tokens": 50, "input_image_tokens": 40}
    split = _split(modality, input_tokens=100, cache_write_tokens=70)
    assert split == {"CACHE_WRITE": 70, "INPUT_AUDIO": 30}


def test_other_meters_are_named_by_their_keys() -> None:
    record = UsageRecord(meters={"audio_ms": 1500, "search_units": 2, "pages": 0, "x.y": 7})
    assert {name: str(quantity) for name, quantity in split_meters(record).items()} == {
        "AUDIO_SECONDS": "1.5",
        "SEARCH_UNITS": "2",
        "X.Y": "7",
    }
