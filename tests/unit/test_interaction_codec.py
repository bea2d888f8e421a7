from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.interaction_codec import decode, encode, event_id_of
from shared.types import Interaction, ItemId, UserId, order_of

TEXT = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=20)
INTERACTIONS = st.builds(
    Interaction,
    event_id=TEXT,
    user_id=TEXT.map(UserId),
    item_id=TEXT.map(ItemId),
    timestamp=st.floats(0, 1e11),
    event_type=TEXT,
    value=st.none() | st.floats(allow_nan=False, allow_infinity=False),
    recommendation_id=st.none() | TEXT,
)


@given(INTERACTIONS)
def test_decode_undoes_encode(event: Interaction) -> None:
    assert decode(encode(event), "5-0") == replace(event, stream_id="5-0")


@pytest.mark.parametrize("payload", ["", "{", "[]", '"text"', '{"id": "e"}', "null"])
def test_a_foreign_payload_is_an_expected_error(payload: str) -> None:
    with pytest.raises((ValueError, KeyError, TypeError)):
        decode(payload, "1-0")


def test_event_id_is_the_same_for_the_same_event_alone() -> None:
    user, item = UserId("a"), ItemId("bc")
    first = event_id_of(user, item, "purchase", 5)
    assert first == event_id_of(user, item, "purchase", 5.0)
    assert first != event_id_of(UserId("ab"), ItemId("c"), "purchase", 5)
    assert first != event_id_of(user, item, "click", 5)
    assert first != event_id_of(user, item, "purchase", 6)


def test_stream_ids_compare_as_numbers() -> None:
    assert order_of("9-0") < order_of("10-0") < order_of("10-2") < order_of("10-11")
