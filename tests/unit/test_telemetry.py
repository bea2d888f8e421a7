from __future__ import annotations

import json
import logging
from collections.abc import Iterator

import pytest
import structlog
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import RedisError, ResponseError

from service.metrics import Metrics
from shared.config import Settings
from shared.telemetry import bound_request_id, configure_logging, described


@pytest.fixture(autouse=True)
def _logging_as_before() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = root.handlers, root.level
    yield
    root.handlers = handlers
    root.setLevel(level)
    structlog.reset_defaults()


def test_json_records_carry_process_and_request(settings: Settings, capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging(settings.model_copy(update={"log_format": "json"}), "service")
    with bound_request_id("r-1"):
        structlog.get_logger("shared.test").info("ours", item="i1")
        logging.getLogger("library").warning("theirs")
    ours, theirs = (json.loads(line) for line in capsys.readouterr().err.splitlines())
    assert (ours["event"], ours["item"], ours["logger"], ours["level"]) == ("ours", "i1", "shared.test", "info")
    assert theirs["event"] == "theirs"
    assert {record["process"] for record in (ours, theirs)} == {"service"}
    assert {record["request_id"] for record in (ours, theirs)} == {"r-1"}
    assert not structlog.contextvars.get_contextvars()


def test_an_exception_is_logged_with_its_traceback(settings: Settings, capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging(settings.model_copy(update={"log_format": "json"}), "worker")
    try:
        raise ValueError("bad")
    except ValueError:
        structlog.get_logger().exception("failed")
    assert "ValueError: bad" in json.loads(capsys.readouterr().err)["exception"]


@pytest.mark.parametrize("kind", [ResponseError, RedisConnectionError])
def test_an_error_of_redis_is_described_with_its_message(kind: type[RedisError]) -> None:
    """Its own repr leaves that out."""
    assert described(kind("OOM\n")) == f"{kind.__name__}('OOM\\n')"


def test_console_format_and_level(settings: Settings, capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging(settings.model_copy(update={"log_level": "warning"}), "service")
    structlog.get_logger().info("quiet")
    structlog.get_logger().warning("loud")
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert "loud" in lines[0]


def test_metrics_are_ours_and_independent() -> None:
    first, second = Metrics(), Metrics()
    first.interactions.labels("beauty", "accepted").inc(3)
    assert b'evorec_interactions_total{domain="beauty",outcome="accepted"} 3.0' in first.render()
    assert b"beauty" not in second.render()
    families = [line.split()[2] for line in first.render().decode().splitlines() if line.startswith("# TYPE")]
    assert families
    assert all(family.startswith("evorec_") for family in families)
