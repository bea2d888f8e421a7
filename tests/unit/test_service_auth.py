from __future__ import annotations

import pytest
from pydantic import SecretStr

from service.auth import EVERYTHING, Forbidden, KeyRing, Principal, Scope, Unauthorized, check_scope, is_loopback

RING = KeyRing.parse([SecretStr("read-me:recommend"), SecretStr("a:b:ingest+recommend"), SecretStr("root:admin")])


def test_keys_are_kept_hashed_only() -> None:
    assert not any(b"read-me" in digest for digest in RING.principals)


@pytest.mark.parametrize(
    ("key", "scopes"),
    [
        ("read-me", {Scope.recommend}),
        ("a:b", {Scope.ingest, Scope.recommend}),
        ("root", {Scope.admin}),
    ],
)
def test_a_known_key_has_its_scopes(key: str, scopes: set[Scope]) -> None:
    assert RING.authenticate(key, "203.0.113.9").scopes == scopes


@pytest.mark.parametrize("key", [None, "", "read-m", "read-me ", "ünknown", "\udcff"])
def test_an_unknown_key_is_unauthorized_even_on_loopback(key: str | None) -> None:
    with pytest.raises(Unauthorized):
        RING.authenticate(key, "127.0.0.1")


@pytest.mark.parametrize("entry", ["", "hush", ":admin", "hush:", "hush:root", "hush:admin+"])
def test_a_malformed_entry_is_refused_without_showing_the_key(entry: str) -> None:
    with pytest.raises(ValueError, match="entry 2") as error:
        KeyRing.parse([SecretStr("fine:admin"), SecretStr(entry)])
    assert "hush" not in str(error.value)


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
