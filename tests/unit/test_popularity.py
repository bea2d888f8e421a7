from __future__ import annotations

import doctest

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

import shared.popularity
from shared.config import Settings
from shared.popularity import log2_weight, shares_of

DAY = 86400


def test_doctests() -> None:
    assert doctest.testmod(shared.popularity).failed == 0


def test_an_event_loses_half_its_weight_in_a_half_life() -> None:
    # 2^0 for today, 2^-1 for 60 days ago, 2^-2 for 120 days ago: 4/7, 2/7, 1/7 of the mass.
    now = 1_700_000_000
    masses = [(item, log2_weight(now - age * DAY, 60)) for item, age in (("old", 120), ("mid", 60), ("new", 0))]
    shares = shares_of(masses)
    assert list(shares) == ["new", "mid", "old"]
    assert list(shares.values()) == pytest.approx([4 / 7, 2 / 7, 1 / 7])


@pytest.mark.parametrize("days", [0, -1])
def test_a_half_life_is_positive(days: float) -> None:
    with pytest.raises(ValidationError):
        Settings(popularity_half_life_days=days)


@given(st.lists(st.tuples(st.sampled_from("abcdef"), st.floats(-1e6, 1e6)), min_size=1))
def test_shares_are_a_distribution_best_first(masses: list[tuple[str, float]]) -> None:
    shares = list(shares_of(masses).values())
    assert sum(shares) == pytest.approx(1.0)
    assert shares == sorted(shares, reverse=True)


def test_nothing_is_popular_in_an_empty_domain() -> None:
    assert shares_of([]) == {}
