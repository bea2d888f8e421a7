from __future__ import annotations

import os
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from service.auth import (
    EVERYTHING,
    FILE_CHECK_S,
    Forbidden,
    KeyRing,
    Keys,
    Principal,
    Scope,
    Unauthorized,
    check_scope,
    digest_of,
    key_entry,
)
from shared.errors import InvalidInput
from shared.network import is_loopback
from tests.conftest import make_settings

HASH = digest_of("hashed-key").hex()
ENTRIES = [
    "read-me:recommend",
    "a:b:ingest+recommend",
    "boss=root:admin",
    f"shop=sha256${HASH}:ingest",
    "cGFkZGVk==:admin",
]
RING = KeyRing.parse(ENTRIES)


def test_keys_are_kept_hashed_only() -> None:
    assert "read-me" not in repr(RING)
    assert "root" not in repr(RING)


@pytest.mark.parametrize(
    ("key", "scopes", "name"),
    [
        ("read-me", {Scope.recommend}, digest_of("read-me").hex()[:8]),
        ("a:b", {Scope.ingest, Scope.recommend}, digest_of("a:b").hex()[:8]),
        ("root", {Scope.admin}, "boss"),
        ("hashed-key", {Scope.ingest}, "shop"),
        ("cGFkZGVk==", {Scope.admin}, digest_of("cGFkZGVk==").hex()[:8]),
    ],
)
def test_a_known_key_has_its_scopes_and_name(key: str, scopes: set[Scope], name: str) -> None:
    assert RING.authenticate(key, "203.0.113.9") == Principal(frozenset(scopes), name)


@pytest.mark.parametrize(
    "key",
    [None, "", "read-m", "read-me ", "ünknown", "\udcff", HASH, f"sha256${HASH}", "boss=root", "=", "boss", "cGFkZGVk"],
)
def test_an_unknown_key_is_unauthorized_even_on_loopback(key: str | None) -> None:
    with pytest.raises(Unauthorized):
        RING.authenticate(key, "127.0.0.1")


@pytest.mark.parametrize(
    "entry",
    [
        "",
        "hush",
        ":admin",
        "hush:",
        "hush:root",
        "hush:admin+",
        "sha256$hush:admin",
        f"sha256${HASH}0:admin",
        "sha256$:admin",
        "ops=sha256:admin",  # a shell made nothing of $a3...
        f"sha256{HASH}:admin",
    ],
)
def test_a_malformed_entry_is_refused_without_showing_the_key(entry: str) -> None:
    with pytest.raises(InvalidInput, match="entry 2") as error:
        KeyRing.parse(["fine:admin", entry])
    assert "hush" not in str(error.value)
    assert HASH not in str(error.value)


def test_two_keys_of_one_name_count_during_a_rotation() -> None:
    scopes = frozenset({Scope.ingest})
    ring = KeyRing.parse([key_entry("shop", "old", scopes), key_entry("shop", "new", scopes)])
    assert ring.authenticate("old", None) == ring.authenticate("new", None) == Principal(scopes, "shop")
    assert ring.plain == ()


@pytest.mark.parametrize("name", ["", "a=b", "a:b", "a,b", "ä", "x" * 65, "-x", "a\nb"])
def test_a_key_name_is_narrow(name: str) -> None:
    with pytest.raises(InvalidInput, match="name"):
        key_entry(name, "k", frozenset(Scope))


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def rewrite(path: Path, text: str) -> None:
    """With a change time of its own: two writes within one tick of the file system are told apart by size alone."""
    changed = path.stat().st_mtime_ns + 1_000_000 if path.exists() else None
    path.write_text(text)
    if changed is not None:
        os.utime(path, ns=(changed, changed))


def test_a_key_file_rotates_without_a_restart(tmp_path: Path) -> None:
    file, clock = tmp_path / "keys", Clock()
    rewrite(file, "# the shop\n\nshop=old-secret:ingest\n")
    keys = Keys(make_settings(api_keys="fixed=env-secret:admin", api_keys_file=file), clock)
    assert keys.ring.authenticate("old-secret", None).name == "shop"
    rewrite(file, "shop=new-secret:ingest\n")
    assert keys.ring.authenticate("old-secret", None).name == "shop"  # it is not looked at for every request
    clock.now += FILE_CHECK_S
    assert keys.ring.authenticate("new-secret", None).name == "shop"
    assert keys.ring.authenticate("env-secret", None).name == "fixed"
    with pytest.raises(Unauthorized):
        keys.ring.authenticate("old-secret", None)


def test_a_key_file_that_could_not_be_read_once_is_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A change of its mode changes neither its time nor its size."""
    file, clock = tmp_path / "keys", Clock()
    rewrite(file, "shop=leaked-secret:ingest\n")
    keys = Keys(make_settings(api_keys_file=file), clock)
    rewrite(file, "shop=new-secret:ingest\n")
    with monkeypatch.context() as patched:
        patched.setattr(Path, "read_text", lambda *_: (_ for _ in ()).throw(PermissionError()))
        clock.now += FILE_CHECK_S
        assert keys.ring.authenticate("leaked-secret", None).name == "shop"
    clock.now += FILE_CHECK_S
    assert keys.ring.authenticate("new-secret", None).name == "shop"


@pytest.mark.parametrize("content", ["shop=new-secret:everything", "", "# nothing\n", None, "\udcff"])
def test_a_broken_key_file_leaves_the_keys_as_they_were(tmp_path: Path, content: str | None) -> None:
    file, clock = tmp_path / "keys", Clock()
    rewrite(file, "shop=old-secret:ingest")
    keys = Keys(make_settings(api_keys_file=file), clock)
    if content is None:
        file.unlink()
    else:
        file.write_bytes(content.encode(errors="surrogateescape"))
    clock.now += FILE_CHECK_S
    with capture_logs() as records:
        for _ in range(3):
            assert keys.ring.authenticate("old-secret", None).name == "shop"
            clock.now += FILE_CHECK_S
    assert [record["event"] for record in records] == ["api_keys_unchanged"]
    assert "new-secret" not in str(records)
    assert "old-secret" not in str(records)
    with pytest.raises(InvalidInput, match="EVOREC_API_KEYS_FILE"):
        Keys(make_settings(api_keys_file=file))


def test_plain_keys_are_named_at_the_start_never_shown() -> None:
    with capture_logs() as records:
        Keys(make_settings(api_keys=f"shop=hush:admin,other=sha256${HASH}:admin")).tell()
    assert [(record["event"], record["key"]) for record in records] == [("plain_api_key", "shop")]
    assert "hush" not in str(records)


@pytest.mark.parametrize(
    ("changes", "listens_on"),
    [
        ({}, "127.0.0.1"),
        ({"host": "0.0.0.0"}, "127.0.0.1"),  # noqa: S104
        ({"host": "::"}, "127.0.0.1"),
        ({"host": "shop.example"}, "127.0.0.1"),
        ({"host": "::1"}, "::1"),
        ({"host": "0.0.0.0", "api_keys": "k:admin"}, "0.0.0.0"),  # noqa: S104
        ({"host": "0.0.0.0", "api_keys_file": "keys"}, "0.0.0.0"),  # noqa: S104
    ],
)
def test_without_keys_the_service_listens_on_loopback_alone(changes: dict[str, object], listens_on: str) -> None:
    assert make_settings(**changes).listen_host == listens_on


@pytest.mark.parametrize(
    ("host", "url"),
    [
        ("0.0.0.0", "http://127.0.0.1:8000"),  # noqa: S104
        ("::", "http://[::1]:8000"),
        ("::1", "http://[::1]:8000"),
        ("fd00::7", "http://[fd00::7]:8000"),
        ("shop.example", "http://shop.example:8000"),
    ],
)
def test_the_service_is_asked_where_it_listens(host: str, url: str) -> None:
    assert make_settings(host=host, api_keys="k:admin").own_url == url


def test_no_keys_are_said_at_the_start() -> None:
    with capture_logs() as records:
        Keys(make_settings(host="0.0.0.0")).tell()  # noqa: S104
    assert [(record["event"], record["listens_on"]) for record in records] == [("no_api_keys", "127.0.0.1")]


@pytest.mark.parametrize(
    ("host", "loopback"),
    [
        ("127.0.0.1", True),
        ("127.8.9.1", True),
        ("::1", True),
        ("::ffff:127.0.0.1", True),
        (None, True),
        ("10.0.0.1", False),
        ("::ffff:10.0.0.1", False),
        ("0.0.0.0", False),  # noqa: S104
        ("testclient", False),
    ],
)
def test_without_keys_only_this_machine_may_call(host: str | None, loopback: bool) -> None:
    assert is_loopback(host) is loopback
    if loopback:
        assert KeyRing({}).authenticate(None, host) == EVERYTHING
    else:
        with pytest.raises(Unauthorized):
            KeyRing({}).authenticate(None, host)


def test_without_keys_a_forwarded_request_is_nobody() -> None:
    with pytest.raises(Unauthorized):
        KeyRing({}).authenticate(None, "127.0.0.1", forwarded=True)


def test_admin_includes_every_scope_and_others_nothing_else() -> None:
    check_scope(Principal(frozenset({Scope.admin})), [Scope.ingest])
    check_scope(Principal(frozenset({Scope.ingest})), [Scope.ingest, Scope.admin])
    with pytest.raises(Forbidden, match="admin"):
        check_scope(Principal(frozenset({Scope.ingest, Scope.recommend})), [Scope.admin])
