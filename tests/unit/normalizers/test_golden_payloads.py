"""Every payload of the golden cost cases gives the usage that those cases price."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from llm_cost_ops._gen.messages import ModalityTokens
from llm_cost_ops.normalizers import PayloadError, usage_from_response
from tests.unit.normalizers.test_what_we_read import COUNTS

CASES = json.loads((Path(__file__).parents[2] / "golden/provider_payloads.json").read_text())


def usage_of(record):
    found = {name: getattr(record, name) for name in COUNTS if getattr(record, name)}
    if record.modality:
        names = ModalityTokens.__struct_fields__
        found["modality"] = {
            name: value for name in names if type(value := getattr(record.modality, name)) is int and value
        }
    if record.meters:
        found["meters"] = record.meters
    return found


def dimensions_of(case):
    """What the caller adds: the payload of a batch result does not say that it is one."""
    stated = case.get("dimensions", {})
    return {"processing": "batch"} if stated.get("processing") == "batch" else {}


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["name"])
@pytest.mark.parametrize("detect", [False, True], ids=["api given", "api from the shape"])
def test_golden(case, detect):
    api = None if detect else case["api"]

    def read():
        return usage_from_response(
            case["payload"],
            provider=case["provider"],
            api=api,
            organization_id="org",
            **dimensions_of(case),
        )

    if "error" in case:
        with pytest.raises(PayloadError) as caught:
            read()
        assert caught.value.path == case["error"]
        return
    record = read()
    assert usage_of(record) == case["usage"]
    assert record.provider == case["provider"]
    assert record.organization_id == "org"
    assert record.model_id == (case["payload"].get("model") or case["payload"]["modelVersion"])
    assert record.quality == "unspecified"
    for name, value in case.get("dimensions", {}).items():
        assert getattr(record, name) == value
