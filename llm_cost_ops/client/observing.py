"""Instrumented SDK clients: their records go to a client's recorder."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Literal
from urllib.parse import quote

from llm_cost_ops.client.attribution import Attributes, AttributionFields, attributes_of, current_attributes
from llm_cost_ops.exceptions import ConfigurationError
from llm_cost_ops.instrumentation.calls import Options, RecordingProxy
from llm_cost_ops.rules.providers import canonical_provider

if TYPE_CHECKING:
    from llm_cost_ops.client.clients import AsyncCostOpsClient, CostOpsClient
    from llm_cost_ops.client.recording import Recording

__all__ = ["check_stream_usage", "options_for", "sink_of"]


def options_for(
    sdk_client: object,
    recording: Recording,
    provider: str,
    stream_usage: bool | Literal["auto"],
    attribution: AttributionFields,
    recording_proxy: str | None = None,
) -> Options:
    """How the calls of an SDK's client are recorded; those that go to `recording_proxy` by that."""
    check_stream_usage(stream_usage)
    stated = attributes_of(attribution)
    return Options(
        sink=recording,
        attributes=lambda: current_attributes().over(stated),
        provider=canonical_provider(provider) if provider else "",
        stream_usage=stream_usage,
        sdk=type(sdk_client).__module__.partition(".")[0],
        proxy=None if recording_proxy is None else _proxy(recording_proxy, recording),
    )


def check_stream_usage(stream_usage: object) -> None:
    """Raise ConfigurationError for what is no setting of `stream_usage`."""
    if stream_usage not in (True, False, "auto"):
        raise ConfigurationError(
            f"stream_usage must be True, False or 'auto', not {stream_usage!r}", parameter="stream_usage"
        )


# Such labels can stand in the name of a header, whose letters have no case.
_LABEL = re.compile(r"[0-9a-z._-]+")
_SAFE = "!#$&'()*+,/:;<=>?@[]^`{|}"


def _proxy(url: str, recording: Recording) -> RecordingProxy:
    """A recording proxy that is told whose a call is, as far as headers can say it."""

    def headers(attributes: Attributes) -> dict[str, str]:
        whose = recording.whose(attributes)
        said = {
            "organization": whose.organization_id,
            "project": whose.project_id,
            "user": whose.user_id,
            "session": whose.session_id,
        }
        said |= {f"label-{name}": value for name, value in whose.labels.items() if _LABEL.fullmatch(name)}
        found = {f"x-lco-{name}": quote(value, safe=_SAFE) for name, value in said.items() if value}
        if whose.tags:
            found["x-lco-tags"] = ",".join(quote(tag, safe="") for tag in whose.tags)
        return found

    return RecordingProxy(url=url, headers=headers)


def sink_of(client: CostOpsClient | AsyncCostOpsClient) -> Recording:
    """Where what was seen on a client's behalf goes: its recorder."""
    return client._recording  # noqa: SLF001  # of the same room, and of no use to the client's users
