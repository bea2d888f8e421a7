from __future__ import annotations

import json
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from service.batches import parse_each
from service.schemas.interactions import InteractionEvent
from service.schemas.items import CatalogItem
from service.schemas.recommend import RecommendRequest

EVENT: dict[str, Any] = {"user_id": "u", "item_id": "i", "timestamp": 1.7e9}
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@pytest.mark.parametrize(
    ("timestamp", "seconds"),
    [
        (1_700_000_000, 1.7e9),
        (1_700_000_000.25, 1_700_000_000.25),
        ("2023-11-14T22:13:20Z", 1.7e9),
        ("2023-11-14T23:13:20+01:00", 1.7e9),
        ("2023-11-14T22:13:20.500+00:00", 1.7e9 + 0.5),
    ],
)
def test_a_timestamp_is_iso_with_zone_or_unix_seconds(timestamp: object, seconds: float) -> None:
    assert InteractionEvent.model_validate({**EVENT, "timestamp": timestamp}).timestamp == seconds


@pytest.mark.parametrize(
    "timestamp",
    [
        "2023-11-14T22:13:20",
        "2023-11-14",
        "yesterday",
        "",
        "1700000000",
        "0001-01-01T00:00:00+14:00",
        -1,
        math.nan,
        math.inf,
        1e300,
        10**400,
        True,
        None,
        [],
        {},
    ],
)
def test_other_timestamps_are_rejected(timestamp: object) -> None:
    with pytest.raises(ValidationError):
        InteractionEvent.model_validate({**EVENT, "timestamp": timestamp})


@pytest.mark.parametrize(
    "change",
    [
        {"user_id": ""},
        {"user_id": "u" * 257},
        {"user_id": 7},
        {"user_id": "a\nb"},
        {"user_id": "\ud800"},
        {"item_id": None},
        {"event_type": "Buy It"},
        {"value": "3"},
        {"value": math.nan},
        {"value": True},
        {"usr": "u"},
        {"\ud800": 1},
    ],
)
def test_a_bad_event_is_rejected_with_its_index_and_a_printable_reason(change: dict[str, Any]) -> None:
    valid, rejected = parse_each(InteractionEvent, [EVENT, {**EVENT, **change}, EVENT])
    assert sorted(valid) == [0, 2]
    assert [each.index for each in rejected] == [1]
    assert json.dumps(rejected[0].model_dump(), ensure_ascii=False).encode()


@given(st.lists(json_values, max_size=5))
def test_no_json_value_breaks_the_batch(parts: list[Any]) -> None:
    for model in (InteractionEvent, CatalogItem):
        valid, rejected = parse_each(model, parts)
        assert len(valid) + len(rejected) == len(parts)
        for each in rejected:
            each.model_dump_json().encode()


def test_a_recommendation_needs_a_user_or_a_history() -> None:
    assert RecommendRequest.model_validate({"history": []}).user_id is None
    with pytest.raises(ValidationError, match="user_id is required"):
        RecommendRequest.model_validate({})
