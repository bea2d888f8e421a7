"""Where Redis and Celery's broker are: of the settings, or the embedded Redis of a state directory."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit, urlunsplit

from redis.connection import parse_url

from shared.config import Settings
from shared.errors import Unavailable

# sun_path holds 108 bytes on Linux and 104 on macOS.
MAX_SOCKET_PATH = 100
SOCKET, SHORT_FOLDER = "redis.sock", "evorec-"


def redis_folder(settings: Settings) -> Path:
    return settings.state_dir.absolute() / "redis"


def redis_log(settings: Settings) -> Path:
    return redis_folder(settings) / "redis.log"


def socket_record(settings: Settings) -> Path:
    """The file that says where the socket is, where the state directory's own path is too long for one."""
    return redis_folder(settings) / "socket-path"


def socket_path(settings: Settings) -> Path:
    """Where the embedded Redis of this state directory listens. Unavailable where nobody has started it yet."""
    path = redis_folder(settings) / SOCKET
    if fits(path):
        return path
    short = short_socket(socket_record(settings))
    if short is None:
        raise Unavailable(f"no embedded Redis runs under {settings.state_dir}; start it with `evorec up`")
    return short


def socket_url(settings: Settings) -> str:
    return f"unix://{quote(str(socket_path(settings)))}?db=0"


def broker_url(settings: Settings) -> str:
    """Celery's broker: EVOREC_BROKER_URL, or database 1 of the Redis that everything else uses."""
    if settings.broker_url:
        return _verifying(settings.broker_url)
    if settings.redis_url is None:
        return f"redis+socket://{quote(str(socket_path(settings)))}?virtual_host=1"
    parts = urlsplit(settings.redis_url)
    if parts.scheme == "unix":
        return _of_socket(settings.redis_url)
    netloc = _login(_parts(settings.redis_url)) + parts.netloc.rpartition("@")[2]
    # kombu takes no other of redis-py's parameters: `db`, `protocol` and the like would be TypeErrors there.
    query = "&".join(part for part in parts.query.split("&") if part.startswith("ssl_"))
    return _verifying(urlunsplit(parts._replace(netloc=netloc, path="/1", query=query)))


def task_queue(settings: Settings) -> str:
    """The name of Celery's queue. It has the data's database in it: environments whose data are in several databases of
    one Redis share the broker's, and a worker of one would take the others' messages."""
    database = _parts(settings.redis_url).get("db", 0) if settings.redis_url else 0
    return f"evorec-{database}"


def _of_socket(url: str) -> str:
    """The broker's URL for a `unix://` one."""
    given = _parts(url)
    return f"redis+socket://{_login(given)}{quote(given.get('path', ''))}?virtual_host=1"


def _login(given: dict[str, Any]) -> str:
    """What a URL begins with. redis-py takes user and password as parameters too, kombu only there."""
    user, password = (quote(given.get(name, ""), safe="") for name in ("username", "password"))
    return f"{user}:{password}@" if user or password else ""


def _parts(url: str) -> dict[str, Any]:
    """As the client of Redis reads it: db, username, password, path, ..."""
    parts: dict[str, Any] = parse_url(url)  # type: ignore[no-untyped-call]
    return parts


def _verifying(url: str) -> str:
    """Behind `rediss://` kombu verifies no certificate unless the URL asks for it; redis-py does by itself."""
    parts = urlsplit(url)
    if parts.scheme != "rediss" or "ssl_cert_reqs=" in parts.query:
        return url
    return urlunsplit(parts._replace(query="&".join(filter(None, (parts.query, "ssl_cert_reqs=required")))))


def short_socket(record: Path) -> Path | None:
    """The socket that `record` names. None without a record, or where it names no path that is made here: its folder is
    deleted, and an empty record would name the current one."""
    if not record.exists():
        return None
    path = Path(record.read_text(errors="replace").strip())
    made_here = path.is_absolute() and path.name == SOCKET and path.parent.name.startswith(SHORT_FOLDER)
    return path if made_here else None


def fits(path: Path) -> bool:
    """Whether a socket may have this path."""
    return len(os.fsencode(path)) <= MAX_SOCKET_PATH
