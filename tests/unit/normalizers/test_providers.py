"""A provider is one file with a descriptor and one line in the list; their descriptors do not collide."""

from __future__ import annotations

import importlib
import pkgutil
import tracemalloc
from collections import Counter

import pytest

import llm_cost_ops.normalizers as normalizers
from llm_cost_ops import usage_from_response
from llm_cost_ops.normalizers.provider import Provider
from llm_cost_ops.normalizers.providers import APIS, PROVIDERS, SHARED_APIS
from llm_cost_ops.rules.providers import canonical_provider


def test_every_descriptor_is_in_the_list():
    found = [
        value
        for module in pkgutil.iter_modules(normalizers.__path__)
        for value in vars(importlib.import_module(f"{normalizers.__name__}.{module.name}")).values()
        if isinstance(value, Provider)
    ]
    assert Counter(map(id, found)) == Counter(map(id, PROVIDERS))


def test_names_are_canonical_and_apis_have_one_owner():
    names = [provider.name for provider in PROVIDERS if provider.name]
    assert len(set(names)) == len(names)
    assert [canonical_provider(name) for name in names] == names
    assert len(APIS) == sum(len(provider.apis) for provider in PROVIDERS)
    values = [value for provider in PROVIDERS for value in provider.objects]
    assert len(set(values)) == len(values)
    for provider in PROVIDERS:
        assert set(provider.objects.values()) <= set(provider.apis)
        assert set(provider.serves) <= SHARED_APIS


def test_long_names_are_not_kept():
    """A span of 16 MB may hold one, and a thousand of them were."""
    tracemalloc.start()
    for number in range(30):
        long = f"{number:0100000}"
        record = usage_from_response({"gen_ai.provider.name": long, "gen_ai.request.model": long})
        assert record.provider == long
        usage = {"prompt_tokens": 1, "completion_tokens": 1}
        usage_from_response({"object": "chat.completion", "model": long, "usage": usage}, provider=long)
    del long, record
    kept, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert kept < 1_000_000


def test_no_prefix_of_a_models_name_hides_anothers():
    prefixes = [(prefix, provider.name) for provider in PROVIDERS for prefix in provider.models]
    hidden = [
        (short, long)
        for short, one in prefixes
        for long, other in prefixes
        if one != other and long.startswith(short)
    ]
    assert not hidden


@pytest.mark.parametrize(
    ("model", "name"), [(prefix, provider.name) for provider in PROVIDERS for prefix in provider.models]
)
def test_a_models_name_names_the_provider(model, name):
    usage = {"prompt_tokens": 1, "completion_tokens": 1}
    record = usage_from_response({"object": "chat.completion", "model": f"{model}x", "usage": usage})
    assert record.provider == name


def test_open_weights_name_nobody():
    usage = {"prompt_tokens": 1, "completion_tokens": 1}
    record = usage_from_response({"object": "chat.completion", "model": "gpt-oss-120b", "usage": usage})
    assert record.provider == ""
