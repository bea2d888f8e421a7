"""Settings that no process could work with are refused, by the name of their variable."""

from __future__ import annotations

import traceback
from pathlib import Path

import pytest
from pydantic import ValidationError

from shared.config import Settings
from shared.errors import InvalidInput
from tests.conftest import make_settings


@pytest.mark.parametrize("name", ["registry_poll_s", "trigger_tick_s"])
@pytest.mark.parametrize("value", ["0", "-1", "1e-9", "inf", "nan"])
def test_a_period_is_long_enough_to_rest_and_ends(name: str, value: str) -> None:
    with pytest.raises(ValidationError, match=name):
        make_settings(**{name: value})
    assert getattr(make_settings(**{name: "0.5"}), name) == 0.5


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("seed", "-1"),
        ("seed", str(2**32)),
        *(("consistency_weights", value) for value in ("-1", "nan", "1,inf", "")),
        *(("learning_rate", value) for value in ("0", "-1", "nan", "inf")),
        ("panel_share", "nan"),
        ("retriever_dropout", "nan"),
        ("gpu_memory_share", "nan"),
        ("receive_timeout_s", "nan"),
        ("popularity_half_life_days", "nan"),
        ("port", "0"),
        ("port", "99999"),
        ("worker_metrics_port", "0"),
        ("worker_metrics_port", "65536"),
        ("log_level", "verbose"),
        ("broker_url", ""),
        ("broker_url", "foo://x"),
        ("broker_url", "unix:///run/redis.sock"),
        ("broker_url", "redis://:hush#hush@host:1"),
        ("api_keys_file", ""),
    ],
)
def test_what_nothing_could_be_done_with_is_refused(name: str, value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(f"EVOREC_{name.upper()}", value)
    with pytest.raises(ValidationError, match=name) as refused:
        make_settings()
    assert "hush" not in str(refused.value.errors(include_input=False, include_context=False))


@pytest.mark.parametrize(
    ("name", "value", "read"),
    [
        ("log_level", "warning", "WARNING"),
        ("broker_url", "redis+socket:///run/r.sock", "redis+socket:///run/r.sock"),
        ("seed", str(2**32 - 1), 2**32 - 1),
        ("consistency_weights", "0, 0.5", (0.0, 0.5)),
    ],
)
def test_what_is_accepted(name: str, value: str, read: object, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(f"EVOREC_{name.upper()}", value)
    assert getattr(make_settings(), name) == read


def test_a_file_of_settings_in_another_encoding_is_named_and_not_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / ".env").write_bytes("EVOREC_API_KEYS=hüsh:admin\n".encode("latin-1"))
    with pytest.raises(InvalidInput, match=r"\.env is not UTF-8 \(byte 17\)") as refused:
        Settings()
    assert "sh:admin" not in "".join(traceback.format_exception(refused.value))


@pytest.mark.parametrize("value", ["", ",", "Purchase", "buy,2click", "a b", "x" * 65])
def test_positive_events_are_types_that_an_event_can_have(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EVOREC_POSITIVE_EVENTS", value)
    with pytest.raises(ValidationError, match="positive_events"):
        make_settings()


def test_positive_events_come_comma_separated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EVOREC_POSITIVE_EVENTS", "purchase, add-to-cart")
    assert make_settings().positive_events == {"purchase", "add-to-cart"}
