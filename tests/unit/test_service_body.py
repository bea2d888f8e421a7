"""The depth of a body's JSON, judged without parsing it, against what a parser says."""

from __future__ import annotations

import json
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.body import MAX_DEPTH, TooDeep, check_json

json_values = st.recursive(
    st.none() | st.booleans() | st.floats(allow_nan=False) | st.text(st.sampled_from('[]{}"\\,:a\u5b22')),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text('[]{}"\\', max_size=3), inner, max_size=3),
    max_leaves=20,
)


def depth_of(value: Any) -> int:
    if isinstance(value, dict):
        return 1 + max(map(depth_of, value.values()), default=0)
    if isinstance(value, list):
        return 1 + max(map(depth_of, value), default=0)
    return 0


def is_refused(body: bytes) -> bool:
    try:
        check_json(body)
    except TooDeep:
        return True
    return False


@given(value=json_values, wrapped=st.lists(st.sampled_from("[{"), max_size=40), escaped=st.booleans())
def test_the_depth_is_what_a_parser_finds(value: Any, wrapped: list[str], escaped: bool) -> None:
    for bracket in wrapped:
        value = [value, 1] if bracket == "[" else {"]": value}
    body = json.dumps(value, ensure_ascii=escaped).encode()
    assert is_refused(body) == (depth_of(value) > MAX_DEPTH)


@given(st.lists(st.sampled_from([b"[", b"]", b"{", b"}", b'"', b"\\", b"a", b"\xff", b"\n"]), max_size=200))
def test_whatever_passes_can_be_parsed_without_a_deep_stack(parts: list[bytes]) -> None:
    body = b"".join(parts)
    if is_refused(body):
        return
    with suppress(ValueError):  # malformed, and said so: a RecursionError would be another matter
        assert depth_of(json.loads(body)) <= MAX_DEPTH


@pytest.mark.parametrize(
    "body",
    [
        b'"' + b'\\"' * 2_000_000,
        b'\\"' * 2_000_000,
        b'"\\' * 2_000_000,
        b'""' * 2_000_000,
        b"[" * 4_000_000,
        b"[]" * 2_000_000,
        b"[" * 2_000_000 + b"]" * 2_000_000,
    ],
    ids=lambda body: repr(body[:6]),
)
@pytest.mark.timeout(20)
def test_hostile_bodies_take_no_longer_than_their_size(body: bytes) -> None:
    """A regular expression that backtracks would take hours."""
    assert is_refused(body) == (body[:2] == b"[[")


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-32"])
def test_only_utf_8_is_looked_at(encoding: str) -> None:
    """In other encodings a letter may hold the byte of a quotation mark, and hide brackets."""
    with pytest.raises(TooDeep, match="UTF-8"):
        check_json('{"\u2200": [[]]}'.encode(encoding))
