"""Provider payloads become usage records: one file per provider.

`usage_from_response` takes responses of SDKs and plain dicts; `record_from_line` takes lines of
JSONL files. No SDK is imported.
"""

from __future__ import annotations

from llm_cost_ops.exceptions import PayloadError
from llm_cost_ops.normalizers.usage import (
    APIS,
    record_from_line,
    usage_from_response,
    usages_from_response,
)

__all__ = ["APIS", "PayloadError", "record_from_line", "usage_from_response", "usages_from_response"]
