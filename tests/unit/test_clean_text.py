from __future__ import annotations

import doctest

from hypothesis import given
from hypothesis import strategies as st

import shared.catalog
from shared.catalog import MAX_TEXT, clean_text


def test_doctests() -> None:
    assert doctest.testmod(shared.catalog).failed == 0


@given(st.text(st.characters(categories=["L", "N", "P", "S", "Z", "C", "M"])))
def test_clean_text_is_one_storable_line(value: str) -> None:
    clean = clean_text(value)
    assert len(clean) <= MAX_TEXT
    assert clean.splitlines() in ([], [clean])
    assert clean == clean.strip()
    clean.encode()
    assert clean_text(clean) == clean


def test_unicode_forms_become_one() -> None:
    assert clean_text("Cre\u0301me \ufb01ne \uff21") == "Cr\u00e9me fine A"


def test_half_a_surrogate_pair_does_not_reach_redis() -> None:
    assert clean_text("a\ud800b") == "a b"


def test_a_very_long_title_is_cut() -> None:
    # Its NFKC form is 18 times as long.
    assert clean_text("\ufdfa" * 10_000) == clean_text("\ufdfa" * 40)[:MAX_TEXT].strip()
    assert clean_text("ab " * 10_000) == ("ab " * 171)[:MAX_TEXT].strip()
