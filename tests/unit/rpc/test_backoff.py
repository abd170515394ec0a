from __future__ import annotations

from fractions import Fraction

from hypothesis import given
from hypothesis import strategies as st

from llm_cost_ops.rpc.backoff import Backoff

firsts, ceilings = st.floats(1e-6, 1e6), st.floats(0, 1e9)


@given(firsts, ceilings, st.integers(1, 10), st.integers(1, 200))
def test_waits_are_the_powers_up_to_the_ceiling(
    first: float, ceiling: float, factor: int, retry: int
) -> None:
    exact = min(Fraction(first) * factor ** (retry - 1), Fraction(ceiling))
    found = Fraction(Backoff(first, ceiling, factor).seconds(retry))
    assert abs(found - exact) <= exact * Fraction(1, 10**12)


@given(firsts, ceilings, st.floats(1, 1e300), st.integers(1, 10**9), st.floats(0, 1, exclude_max=True))
def test_no_wait_is_negative_or_past_the_ceiling(
    first: float, ceiling: float, factor: float, retry: int, draw: float
) -> None:
    backoff = Backoff(first, ceiling, factor)
    assert 0 <= backoff.jittered(retry, draw) <= backoff.seconds(retry) <= ceiling
    assert backoff.jittered(retry, 0.0) == 0
    assert backoff.seconds(retry) <= backoff.seconds(retry + 1)


def test_without_a_first_wait_there_is_none() -> None:
    assert Backoff(0, 60, 1e300).seconds(9999) == 0


@given(ceilings, st.floats(allow_nan=False))
def test_a_hint_is_waited_up_to_the_ceiling(ceiling: float, hint: float) -> None:
    assert Backoff(1, ceiling).hinted(hint) == max(0.0, min(hint, ceiling))
