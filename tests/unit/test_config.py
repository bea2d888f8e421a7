"""Settings that no process could work with are refused, by the name of their variable."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from tests.conftest import make_settings


@pytest.mark.parametrize("name", ["registry_poll_s", "trigger_tick_s"])
@pytest.mark.parametrize("value", ["0", "-1", "1e-9", "inf", "nan"])
def test_a_period_is_long_enough_to_rest_and_ends(name: str, value: str) -> None:
    with pytest.raises(ValidationError, match=name):
        make_settings(**{name: value})
    assert getattr(make_settings(**{name: "0.5"}), name) == 0.5


@pytest.mark.parametrize("value", ["", ",", "Purchase", "buy,2click", "a b", "x" * 65])
def test_positive_events_are_types_that_an_event_can_have(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EVOREC_POSITIVE_EVENTS", value)
    with pytest.raises(ValidationError, match="positive_events"):
        make_settings()


def test_positive_events_come_comma_separated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EVOREC_POSITIVE_EVENTS", "purchase, add-to-cart")
    assert make_settings().positive_events == {"purchase", "add-to-cart"}
