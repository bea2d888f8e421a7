from __future__ import annotations

import asyncio
import os
import signal
import ssl
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import redis as sync_redis

from deploy.local import stack
from deploy.local.supervisor import Supervisor
from shared import embedded_redis
from shared.config import Settings
from shared.embedded_redis import EmbeddedRedis
from shared.errors import Unavailable
from shared.redis_client import connect
from shared.redis_urls import broker_url, redis_folder, socket_path, socket_url, task_queue
from tests.conftest import make_settings


def client_of(settings: Settings) -> sync_redis.Redis:
    return sync_redis.Redis.from_url(socket_url(settings), decode_responses=True)


def test_data_survives_a_restart(settings: Settings) -> None:
    for expected in (None, "1"):
        with EmbeddedRedis(settings), client_of(settings) as client:
            assert client.get("kept") == expected
            client.set("kept", "1")


def test_it_listens_on_its_socket_alone(settings: Settings) -> None:
    with EmbeddedRedis(settings) as server, client_of(settings) as client:
        assert client.config_get("port") == {"port": "0"}
        assert client.config_get("appendonly") == {"appendonly": "yes"}
        assert client.config_get("appendfsync") == {"appendfsync": "always"}
        assert client.config_get("maxmemory-policy") == {"maxmemory-policy": "noeviction"}
        assert psutil.Process(server.pid).net_connections("inet") == []
        assert socket_path(settings).stat().st_mode & 0o077 == 0


def test_stop_leaves_nothing_running(settings: Settings) -> None:
    server = EmbeddedRedis(settings)
    server.start()
    pid = server.pid
    assert pid is not None
    server.stop()
    server.stop()
    assert not psutil.pid_exists(pid)
    assert server.pid is None


def test_a_second_one_on_the_same_state_is_refused_and_told_why(settings: Settings) -> None:
    with EmbeddedRedis(settings) as server, pytest.raises(Unavailable, match=rf"already runs .*process {server.pid}"):
        EmbeddedRedis(settings).start()


def test_an_orphan_of_a_killed_parent_still_guards_its_files(settings: Settings) -> None:
    orphan = EmbeddedRedis(settings)
    orphan.start()
    pid = orphan.pid
    assert pid is not None
    try:
        # What a killed parent leaves: the child alone holds the lock.
        with pytest.raises(Unavailable, match=f"kill {pid}"):
            EmbeddedRedis(settings).start()
    finally:
        os.kill(pid, signal.SIGKILL)
        orphan.stop()
    with EmbeddedRedis(settings), client_of(settings) as client:
        assert client.ping()


def test_a_state_folder_deeper_than_a_socket_path_may_be(tmp_path: Path) -> None:
    settings = make_settings(state_dir=tmp_path / ("d" * 60) / ("e" * 60))
    with pytest.raises(Unavailable, match="evorec up"):
        socket_path(settings)
    with EmbeddedRedis(settings), client_of(settings) as client:
        assert client.ping()
        short = socket_path(settings)
    assert not short.parent.exists()


@pytest.mark.parametrize("recorded", ["", "redis.sock", "{mine}/redis.sock", "{mine}/evorec-mine/other.sock"])
def test_a_record_of_a_socket_that_it_did_not_make_deletes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, recorded: str
) -> None:
    mine = tmp_path / "mine"
    (mine / "evorec-mine").mkdir(parents=True)
    monkeypatch.chdir(mine)
    settings = make_settings(state_dir=tmp_path / ("d" * 60) / ("e" * 60))
    redis_folder(settings).mkdir(parents=True)
    (redis_folder(settings) / "socket-path").write_text(recorded.format(mine=mine))
    with pytest.raises(Unavailable, match="evorec up"):
        socket_path(settings)
    with EmbeddedRedis(settings), client_of(settings) as client:
        assert client.ping()
    assert (mine / "evorec-mine").is_dir()


def test_a_start_that_fails_shows_the_end_of_the_log(settings: Settings) -> None:
    folder = redis_folder(settings)
    folder.mkdir(parents=True)
    (folder / "appendonly.aof").write_text("this is no append-only file\n")
    with pytest.raises(Unavailable, match=r"(?s)exited with status 1.*Bad file format reading the append only file"):
        EmbeddedRedis(settings).start()


def test_a_state_folder_that_cannot_be_is_one_line_of_its_process() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "deploy.local.redis_process"],
        env={**os.environ, "EVOREC_STATE_DIR": __file__},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (1, "")
    (line,) = done.stdout.splitlines()
    assert __file__ in line


async def test_redis_has_as_long_as_it_takes_to_load_its_file(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    with EmbeddedRedis(settings), client_of(settings) as client, client.pipeline(transaction=False) as pipe:
        for number in range(4000):
            pipe.set(f"key-{number}", "1")
        pipe.execute()
        with_url = settings.model_copy(update={"redis_url": socket_url(settings)})
    patience_s, load_s = 2.0, 4.0
    options = EmbeddedRedis._options
    delay = ["--key-load-delay", "1000"]  # us; Redis answers after every thousand commands
    monkeypatch.setattr(EmbeddedRedis, "_options", lambda self, socket: [*options(self, socket), *delay])
    monkeypatch.setattr(embedded_redis, "START_TIMEOUT_S", patience_s)
    monkeypatch.setattr(stack, "_REDIS_START_S", patience_s)
    server, started = EmbeddedRedis(settings), time.monotonic()
    try:
        nobody = Supervisor(lambda *_: None)
        await asyncio.gather(asyncio.to_thread(server.start), stack.start_redis(nobody, with_url, {}))
        assert time.monotonic() - started > load_s
        with client_of(settings) as client:
            assert client.dbsize() == 4000
    finally:
        server.stop()


def test_a_redis_that_is_silent_is_given_up(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedded_redis, "START_TIMEOUT_S", 0.5)
    monkeypatch.setattr(embedded_redis, "_answers", lambda socket: False)
    server = EmbeddedRedis(settings)
    with pytest.raises(Unavailable, match="did not answer within"):
        server.start()
    assert server.pid is None


async def test_connect_uses_it_where_no_url_is_set(settings: Settings) -> None:
    with EmbeddedRedis(settings):
        async with connect(settings) as client:
            assert await client.ping()


def test_broker_url(settings: Settings, tmp_path: Path) -> None:
    def with_urls(**urls: str) -> str:
        return broker_url(settings.model_copy(update=urls))

    assert broker_url(settings) == f"redis+socket://{tmp_path}/redis/redis.sock?virtual_host=1"
    assert with_urls(redis_url="redis://u:p%40@host:6379/0") == "redis://u:p%40@host:6379/1"
    assert with_urls(redis_url="redis://host?username=u&password=p%40") == "redis://u:p%40@host/1"
    assert with_urls(redis_url="unix:///run/r.sock?db=0") == "redis+socket:///run/r.sock?virtual_host=1"
    assert with_urls(redis_url="unix://u:p%2B@/r.sock") == "redis+socket://u:p%2B@/r.sock?virtual_host=1"
    assert with_urls(redis_url="unix:///r.sock?password=p@/") == "redis+socket://:p%40%2F@/r.sock?virtual_host=1"
    assert with_urls(broker_url="redis://other/5", redis_url="redis://host") == "redis://other/5"


@pytest.mark.parametrize("option", ["db=2", "protocol=3", "socket_timeout=5", "health_check_interval=30", "password=p"])
def test_the_broker_can_be_had_with_the_options_of_the_data(settings: Settings, option: str) -> None:
    from kombu import Connection

    url = f"rediss://host/0?ssl_ca_certs=/ca.pem&{option}&ssl_check_hostname=false"
    broker = Connection(broker_url(settings.model_copy(update={"redis_url": url})))
    assert (broker.hostname, broker.virtual_host) == ("host", "1")
    assert broker.ssl == {
        "ssl_ca_certs": "/ca.pem",
        "ssl_check_hostname": False,
        "ssl_cert_reqs": ssl.CERT_REQUIRED,
    }


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        (None, "evorec-0"),
        ("redis://host", "evorec-0"),
        ("redis://u:p@host/2", "evorec-2"),
        ("rediss://host/2?db=3", "evorec-3"),
        ("unix:///run/r.sock?db=4", "evorec-4"),
    ],
)
def test_the_queue_is_named_after_the_database_of_the_data(settings: Settings, url: str | None, expected: str) -> None:
    assert task_queue(settings.model_copy(update={"redis_url": url, "broker_url": "redis://other/5"})) == expected


def test_the_broker_gets_the_password_of_a_socket(settings: Settings) -> None:
    from kombu import Connection

    with EmbeddedRedis(settings), client_of(settings) as client:
        client.config_set("requirepass", "p@/ %2B")
        for url in (
            f"unix://:p%40%2F%20%252B@{socket_path(settings)}",
            f"unix://{socket_path(settings)}?password=p@/ %252B",
        ):
            with Connection(broker_url(settings.model_copy(update={"redis_url": url}))) as connection:
                connection.connect()
                assert "%2B" not in connection.as_uri()  # what Celery logs


@pytest.mark.parametrize("setting", ["redis_url", "broker_url"])
@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ("", {"ssl_cert_reqs": ssl.CERT_REQUIRED}),
        ("?ssl_ca_certs=/ca", {"ssl_cert_reqs": ssl.CERT_REQUIRED, "ssl_ca_certs": "/ca"}),
        ("?ssl_cert_reqs=none", {"ssl_cert_reqs": ssl.CERT_NONE}),
    ],
)
def test_the_brokers_certificate_is_verified_unless_the_url_says_otherwise(
    settings: Settings, setting: str, query: str, expected: dict[str, object]
) -> None:
    from kombu import Connection

    url = broker_url(settings.model_copy(update={setting: f"rediss://u:p@host/1{query}"}))
    with Connection(url) as connection:
        assert (connection.hostname, connection.virtual_host, connection.ssl) == ("host", "1", expected)


def test_celery_reaches_the_broker_of_a_socket(settings: Settings) -> None:
    from kombu import Connection

    with EmbeddedRedis(settings), Connection(broker_url(settings)) as connection:
        with connection.SimpleQueue("test") as queue:
            queue.put("hello")
            assert queue.get(timeout=5).payload == "hello"
        with sync_redis.Redis(unix_socket_path=str(socket_path(settings)), db=1) as first:
            assert first.dbsize() > 0
