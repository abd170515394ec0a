"""A provider is one file with a descriptor and one line in the list; their descriptors do not collide."""

from __future__ import annotations

import importlib
import pkgutil
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
