"""API keys with scopes. Keys are kept hashed and compared in constant time."""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import ClassVar, Self

import structlog
from pydantic import SecretStr

from shared.errors import EvorecError

log = structlog.get_logger(__name__)


class Scope(StrEnum):
    """What a key may do. `admin` includes the other two."""

    recommend = "recommend"
    ingest = "ingest"
    admin = "admin"


class Unauthorized(EvorecError):
    status: ClassVar[int] = 401
    title: ClassVar[str] = "Missing or unknown API key"


class Forbidden(EvorecError):
    status: ClassVar[int] = 403
    title: ClassVar[str] = "Not allowed"


@dataclass(frozen=True, slots=True)
class Principal:
    """Who calls, by what they may do."""

    scopes: frozenset[Scope]

    def has(self, scope: Scope) -> bool:
        return scope in self.scopes or Scope.admin in self.scopes


EVERYTHING = Principal(frozenset(Scope))


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode(errors="surrogateescape")).digest()


@dataclass(frozen=True, slots=True)
class KeyRing:
    """The configured keys: SHA-256 digest -> principal. Keys are random, so a plain hash resists guessing."""

    principals: Mapping[bytes, Principal]

    @classmethod
    def parse(cls, entries: Iterable[SecretStr]) -> Self:
        """From `key:scope+scope` entries. ValueError, without the key, where one is malformed."""
        principals: dict[bytes, Principal] = {}
        for number, entry in enumerate(entries, start=1):
            key, _, scopes = entry.get_secret_value().rpartition(":")
            try:
                principal = Principal(frozenset(Scope(scope) for scope in scopes.split("+")))
            except ValueError:
                key = ""
            if not key:
                known = ", ".join(Scope)
                raise ValueError(f"EVOREC_API_KEYS: entry {number} is not `key:scope+scope` with scopes of {known}")
            principals[_digest(key)] = principal
        return cls(principals)

    def authenticate(self, key: str | None, client_host: str | None, *, forwarded: bool = False) -> Principal:
        """The caller's principal. Without configured keys the machine itself may do everything, others nothing.

        `forwarded`: a proxy passed the request on, so `client_host` does not say who asks.
        """
        if not self.principals:
            if forwarded or not is_loopback(client_host):
                raise Unauthorized("without EVOREC_API_KEYS only this machine itself is served; configure keys")
            return EVERYTHING
        if key is None:
            raise Unauthorized("send your API key in the header X-API-Key")
        digest = _digest(key)
        found: Principal | None = None
        for known, principal in self.principals.items():  # all of them: no early exit to time
            if hmac.compare_digest(known, digest):
                found = principal
        if found is None:
            raise Unauthorized("this API key is not known")
        return found


def is_loopback(host: str | None) -> bool:
    """None: the peer of a unix socket, which is on this machine."""
    if host is None or host == "localhost":
        return True
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return False
    mapped = getattr(address, "ipv4_mapped", None)
    return bool((mapped or address).is_loopback)


def check_scope(principal: Principal, scopes: Iterable[Scope]) -> None:
    """Forbidden unless the principal has one of `scopes`."""
    wanted = list(scopes)
    if not any(principal.has(scope) for scope in wanted):
        raise Forbidden(f"this API key lacks the scope {' or '.join(wanted)}")


def log_open_access(ring: KeyRing, logger: Callable[..., object] = log.warning) -> None:
    """Said once at the start: without keys every local process may do everything."""
    if not ring.principals:
        logger("no_api_keys", effect="every scope for callers on this machine, none for others")
