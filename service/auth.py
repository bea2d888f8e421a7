"""API keys with scopes and names. Keys are kept hashed and compared in constant time."""

from __future__ import annotations

import hashlib
import hmac
import re
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import ClassVar, Self

import structlog

from shared.config import Settings
from shared.errors import EvorecError, InvalidInput
from shared.network import is_loopback

log = structlog.get_logger(__name__)

HASHED = "sha256$"
NAME_PATTERN = r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}"
# A key's own padding (`abc==`) is no name: what follows a name starts with another sign.
_NAMED = re.compile(rf"({NAME_PATTERN})=([^=].*)", re.DOTALL)
_HASHED = re.compile(r"sha256\$([0-9a-fA-F]{64})")
FILE_CHECK_S = 2.0


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
    """Who calls, by the key's name, and what they may do. `name` is None for callers without a key."""

    scopes: frozenset[Scope]
    name: str | None = None

    def has(self, scope: Scope) -> bool:
        return scope in self.scopes or Scope.admin in self.scopes


EVERYTHING = Principal(frozenset(Scope))


def digest_of(key: str) -> bytes:
    """SHA-256. Keys are random, so a plain hash resists guessing."""
    return hashlib.sha256(key.encode(errors="surrogateescape")).digest()


def parse_scopes(text: str) -> frozenset[Scope]:
    """`recommend+ingest` as scopes; InvalidInput for anything else."""
    try:
        return frozenset(Scope(scope) for scope in text.split("+"))
    except ValueError:
        raise InvalidInput(f"scopes are {', '.join(Scope)}, joined by '+'") from None


def key_entry(name: str, key: str, scopes: frozenset[Scope]) -> str:
    """The entry of EVOREC_API_KEYS for a key: it holds the key's hash alone."""
    if not re.fullmatch(NAME_PATTERN, name):
        raise InvalidInput("a key's name is 1 to 64 letters, digits, '-', '_' and '.', starting with a letter or digit")
    return f"{name}={HASHED}{digest_of(key).hex()}:{'+'.join(sorted(scopes))}"


@dataclass(frozen=True, slots=True)
class KeyRing:
    """SHA-256 digest -> principal. `plain`: names of the keys that were configured unhashed."""

    principals: Mapping[bytes, Principal]
    plain: tuple[str, ...] = ()

    @classmethod
    def parse(cls, entries: Iterable[str], source: str = "EVOREC_API_KEYS") -> Self:
        """From `[name=]secret:scope+scope` entries, `secret` being `sha256$<64 hex digits>` or the plain key.

        Several entries may share a name: the old and the new key during a rotation. InvalidInput, without the entry,
        where one is malformed.
        """
        principals: dict[bytes, Principal] = {}
        plain: list[str] = []
        for number, entry in enumerate(entries, start=1):
            parsed = _parse_entry(entry)
            if parsed is None:
                known = ", ".join(Scope)
                raise InvalidInput(
                    f"{source}: entry {number} is not `[name=]secret:scope+scope` with scopes of {known}, "
                    f"`secret` being {HASHED} and 64 hex digits (in single quotes: a shell expands $) or a plain key"
                )
            digest, principal, hashed = parsed
            principals[digest] = principal
            if not hashed:
                plain.append(str(principal.name))
        return cls(principals, tuple(plain))

    def __or__(self, other: KeyRing) -> KeyRing:
        return KeyRing({**self.principals, **other.principals}, (*self.plain, *other.plain))

    def authenticate(
        self, key: str | None, client_host: str | None, *, forwarded: bool = False, foreign_page: bool = False
    ) -> Principal:
        """The caller's principal. Without configured keys the machine itself may do everything, others nothing.

        `forwarded`: a proxy passed the request on, so `client_host` does not say who asks. `foreign_page`: nor does it
        where a web page from elsewhere asks, in a browser on this machine.
        """
        if not self.principals:
            if forwarded or not is_loopback(client_host):
                raise Unauthorized("without EVOREC_API_KEYS only this machine itself is served; configure keys")
            if foreign_page:
                raise Forbidden(
                    "without EVOREC_API_KEYS the service answers at localhost, 127.0.0.1 or [::1] alone, and no web "
                    "page from elsewhere; ask there, or configure keys"
                )
            return EVERYTHING
        if key is None:
            raise Unauthorized("send your API key in the header X-API-Key")
        digest = digest_of(key)
        found: Principal | None = None
        for known, principal in self.principals.items():  # all of them: no early exit to time
            if hmac.compare_digest(known, digest):
                found = principal
        if found is None:
            raise Unauthorized("this API key is not known")
        return found


def _parse_entry(entry: str) -> tuple[bytes, Principal, bool] | None:
    """(digest, principal, whether it was hashed), or None where the entry is malformed."""
    left, _, scopes = entry.rpartition(":")
    named = _NAMED.fullmatch(left)
    name, secret = (named[1], named[2]) if named else (None, left)
    # A shell that expands the `$` leaves "sha256", with some digits: no key that anybody can guess may become of it.
    hashed = _HASHED.fullmatch(secret)
    if not secret or (hashed is None and secret.startswith("sha256")):
        return None
    digest = bytes.fromhex(hashed[1]) if hashed else digest_of(secret)
    try:
        return digest, Principal(parse_scopes(scopes), name or digest.hex()[:8]), hashed is not None
    except InvalidInput:
        return None


@dataclass(slots=True)
class Keys:
    """The ring of EVOREC_API_KEYS and of the lines of EVOREC_API_KEYS_FILE, which is read again when it changes."""

    settings: Settings
    clock: Callable[[], float] = time.monotonic
    _fixed: KeyRing = field(init=False)
    _ring: KeyRing = field(init=False)
    _seen: tuple[int, int] | None = field(init=False, default=None)
    _refused: tuple[int, int] | None = field(init=False, default=(0, 0))
    _next_check: float = field(init=False, default=0.0)

    def __post_init__(self) -> None:
        """InvalidInput where an entry or the file cannot be read: a service that guesses at its keys does not start."""
        self._fixed = KeyRing.parse(entry.get_secret_value() for entry in self.settings.api_keys)
        self._ring = self._fixed
        if self.settings.api_keys_file is not None:
            self._seen = _version_of(self.settings.api_keys_file)
            self._ring = self._fixed | _read(self.settings.api_keys_file)
        self._next_check = self.clock() + FILE_CHECK_S

    @property
    def ring(self) -> KeyRing:
        """The keys that count now. A file that cannot be read leaves the keys as they were."""
        if self.settings.api_keys_file is not None and self.clock() >= self._next_check:
            self._next_check = self.clock() + FILE_CHECK_S
            self._look_again(self.settings.api_keys_file)
        return self._ring

    def _look_again(self, path: Path) -> None:
        version = _version_of(path)
        if version == self._seen:
            return
        try:
            self._ring = self._fixed | _read(path)
        except InvalidInput as error:
            if version != self._refused:  # once; a file that could not be read may be readable the next time
                log.error("api_keys_unchanged", error=str(error))
            self._refused = version
            return
        self._seen = version
        log.info("api_keys_changed", names=sorted({str(each.name) for each in self._ring.principals.values()}))

    def tell(self) -> None:
        """Said once at the start: which keys are not hashed, or that there are none."""
        for name in self._ring.plain:
            log.warning("plain_api_key", key=name, advice="configure its hash: `evorec key --hash`")
        if not self._ring.principals:
            log.warning(
                "no_api_keys",
                effect="every scope for callers on this machine, none for others",
                listens_on=self.settings.listen_host,
            )


def _version_of(path: Path) -> tuple[int, int] | None:
    """Time of the last change and size; None where there is no such file."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_mtime_ns, status.st_size


def _read(path: Path) -> KeyRing:
    """InvalidInput, without any line's text, where the file has no keys or a line is malformed."""
    try:
        lines = path.read_text().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidInput(f"EVOREC_API_KEYS_FILE: {path} cannot be read ({type(error).__name__})") from None
    entries = [text for line in lines if (text := line.strip()) and not text.startswith("#")]
    if not entries:
        raise InvalidInput(f"EVOREC_API_KEYS_FILE: {path} holds no key")
    return KeyRing.parse(entries, "EVOREC_API_KEYS_FILE")


def check_scope(principal: Principal, scopes: Iterable[Scope]) -> None:
    """Forbidden unless the principal has one of `scopes`."""
    wanted = list(scopes)
    if not any(principal.has(scope) for scope in wanted):
        raise Forbidden(f"this API key lacks the scope {' or '.join(wanted)}")
