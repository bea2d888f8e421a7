"""The service's HTTP interface as the commands use it. Problem documents become errors with the same words."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import asdict, dataclass
from types import TracebackType
from typing import Any, Self, TypeVar
from urllib.parse import quote

import httpx
from pydantic import BaseModel, ConfigDict

from service.schemas.common import MAX_BATCH
from shared.dead_letters import DeadLetter
from shared.errors import EvorecError, InvalidInput, Unavailable
from shared.evolutions import Evolution
from shared.manifest import Manifest
from shared.types import AdapterName, DomainId, EvolutionId, Interaction, Item, ItemId, UserId

T = TypeVar("T")

BATCH = MAX_BATCH
_ATTEMPTS = 5
# Waits double from attempt to attempt.
_FIRST_WAIT_S = 0.2
_FIRST_RESTART_WAIT_S = 4.0  # in all a minute: a service that restarts drains for half of one
_LONGEST_ASKED_WAIT_S = 60.0
_PATIENCE = (httpx.codes.SERVICE_UNAVAILABLE, httpx.codes.TOO_MANY_REQUESTS)
_POLL_S = 0.5


class ServiceRefused(EvorecError):
    """The service answered with a problem document, whose words these are."""

    title = "The service refused"

    def __init__(self, title: str, detail: str, status_code: int) -> None:
        super().__init__(f"{title}: {detail}")
        self.status_code = status_code


@dataclass(frozen=True, slots=True)
class Ingested:
    """The sum of a batch's answers. `rejected`: (index in the batch, reason)."""

    accepted: int
    duplicates: int
    rejected: tuple[tuple[int, str], ...]


@dataclass(frozen=True, slots=True)
class Recommended:
    item_id: ItemId
    score: float
    title: str


@dataclass(frozen=True, slots=True)
class Recommendation:
    """`adapter` answered; `degraded` is False or the reason for a lesser answer."""

    items: tuple[Recommended, ...]
    adapter: str | None
    degraded: str | bool


class DomainVersions(BaseModel):
    """A domain's aliases and versions, newest first; fields that no command shows are left out."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    domain: DomainId
    aliases: dict[str, AdapterName]
    paused: bool
    versions: tuple[Manifest, ...]


def batches(rows: Sequence[T], size: int = BATCH) -> Iterator[Sequence[T]]:
    """The rows, at most `size` at a time.

    >>> list(batches("abc", 2))
    ['ab', 'c']
    """
    for start in range(0, len(rows), size):
        yield rows[start : start + size]


class ServiceClient:
    """An async context manager. Calls are repeated while the service asks for patience (503, 429) or restarts."""

    def __init__(
        self,
        url: str,
        api_key: str | None = None,
        timeout_s: float = 60,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        """Raises InvalidInput, which repeats neither key nor password."""
        key = _sendable(api_key or "")
        self._url = _shown(url)
        self._was_there = False
        # trust_env: a proxy of the environment is for the internet, not for a service on this machine.
        self._http = httpx.AsyncClient(
            base_url=url,
            headers={"X-API-Key": key} if key else {},
            timeout=timeout_s,
            trust_env=False,
            transport=transport,
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._http.aclose()

    async def put_items(self, domain: DomainId, items: Sequence[Item]) -> Ingested:
        answer = await self._call("PUT", "/items", {"domain": domain, "items": [asdict(item) for item in items]})
        return Ingested(answer["upserted"], 0, _rejected(answer))

    async def post_interactions(self, domain: DomainId, interactions: Sequence[Interaction]) -> Ingested:
        body = {"domain": domain, "interactions": [event_body(event) for event in interactions]}
        answer = await self._call("POST", "/interactions", body)
        return Ingested(answer["accepted"], answer["duplicates"], _rejected(answer))

    async def recommend(
        self, domain: DomainId, user: UserId, *, count: int = 10, candidates: Sequence[ItemId] | None = None
    ) -> Recommendation:
        """With `candidates`, exactly these are ranked, seen or not."""
        body: dict[str, Any] = {"domain": domain, "user_id": user, "count": count}
        if candidates is not None:
            body |= {"candidates": list(candidates), "exclude_seen": False}
        answer = await self._call("POST", "/recommend", body)
        items = tuple(Recommended(ItemId(i["item_id"]), i["score"], i["title"]) for i in answer["items"])
        return Recommendation(items, answer["adapter"], answer["degraded"])

    async def evolve(self, domain: DomainId, *, force: bool = False, dry_run: bool = False) -> EvolutionId:
        body = {"domain": domain, "force": force, "dry_run": dry_run}
        return EvolutionId((await self._call("POST", "/admin/evolve", body))["evolution_id"])

    async def evolution(self, evolution_id: EvolutionId) -> Evolution:
        return Evolution.model_validate(await self._call("GET", f"/admin/evolutions/{evolution_id}"))

    async def follow(self, evolution_id: EvolutionId) -> AsyncIterator[Evolution]:
        """The evolution's states until the final one, polled."""
        while True:
            evolution = await self.evolution(evolution_id)
            yield evolution
            if evolution.status.final:
                return
            await asyncio.sleep(_POLL_S)

    async def active_evolution(self, domain: DomainId) -> Evolution | None:
        answer = await self._call("GET", f"/admin/evolutions?domain={domain}")
        evolutions = [Evolution.model_validate(record) for record in answer["evolutions"]]
        return next((e for e in evolutions if e.domain == domain and not e.status.final), None)

    async def pause_evolutions(self, domain: DomainId, paused: bool) -> None:
        await self._call("PUT", "/admin/routes", {"domain": domain, "paused": paused})

    async def adapters(self, domain: DomainId | None = None) -> list[DomainVersions]:
        answer = await self._call("GET", f"/admin/adapters?domain={domain}" if domain else "/admin/adapters")
        return [DomainVersions.model_validate(entry) for entry in answer["domains"]]

    async def dead_letters(self, domain: DomainId, limit: int) -> list[DeadLetter]:
        answer = await self._call("GET", f"/admin/dead-letters?domain={domain}&limit={limit}")
        return [DeadLetter.model_validate(letter) for letter in answer["dead_letters"]]

    async def forgotten_events(self, domain: DomainId, user: UserId) -> frozenset[str]:
        """Ids of the user's interactions that the champion has forgotten."""
        answer = await self._call("GET", f"/users/{quote(user, safe='')}/history?domain={domain}")
        return frozenset(event["event_id"] for event in answer["interactions"] if event["forgotten"])

    async def _call(self, method: str, path: str, body: object = None) -> Any:
        """A lost answer is simply asked for again: no call of this interface does harm when it runs twice."""
        for attempt in range(_ATTEMPTS):
            last = attempt == _ATTEMPTS - 1
            wait_s = _FIRST_WAIT_S * 2**attempt
            try:
                response = await self._http.request(method, path, json=body)
            except httpx.TransportError as error:
                refused = isinstance(error, httpx.ConnectError)
                if last or (refused and not self._was_there):
                    raise Unavailable(
                        f"no service answers at {self._url} ({_cause(error)}); start one with `evorec up`"
                    ) from error
                if refused:
                    wait_s = _FIRST_RESTART_WAIT_S * 2**attempt
            else:
                self._was_there = True
                if response.status_code not in _PATIENCE or last:
                    return _content(response, self._url)
                wait_s = max(wait_s, _asked_wait_s(response))
            await asyncio.sleep(wait_s)
        raise AssertionError("the last attempt returns or raises")


def _sendable(api_key: str) -> str:
    """The key without the line end that a file or a shell has left on it."""
    key = api_key.strip()
    if not (key.isascii() and key.isprintable()):
        raise InvalidInput("EVOREC_API_KEY (or --api-key) has control or non-ASCII characters; copy it once more")
    return key


def _shown(url: str) -> str:
    """The service's URL without user and password."""
    try:
        parsed = httpx.URL(url)
    except httpx.InvalidURL:  # it names the half of a password that was taken for a port
        parsed = httpx.URL()
    if parsed.scheme not in ("http", "https") or not parsed.host:
        raise InvalidInput(
            "EVOREC_URL (or --url) is no URL such as http://127.0.0.1:8000; "
            "write #, / and ? of a password as %23, %2F and %3F"
        )
    return str(parsed.copy_with(userinfo=b""))


def _cause(error: httpx.TransportError) -> str:
    """A protocol error's text may quote a header, and with it the key."""
    return type(error).__name__ if isinstance(error, httpx.ProtocolError) else repr(error)


def event_body(event: Interaction) -> dict[str, Any]:
    """The log derives missing ids and empty fields itself."""
    fields = asdict(event)
    fields.pop("stream_id")
    return {name: value for name, value in fields.items() if value not in (None, "")}


def _rejected(answer: dict[str, Any]) -> tuple[tuple[int, str], ...]:
    return tuple((entry["index"], entry["reason"]) for entry in answer["rejected"])


def _asked_wait_s(response: httpx.Response) -> float:
    """Retry-After in seconds, within bounds; 0 where there is none, or a date."""
    asked = response.headers.get("Retry-After", "")
    return min(float(asked), _LONGEST_ASKED_WAIT_S) if asked.isdecimal() else 0.0


def _content(response: httpx.Response, url: str) -> Any:
    try:
        content = response.json()
    except ValueError:
        content = None
    if response.is_success:
        if isinstance(content, dict):
            return content
        kind = response.headers.get("Content-Type", "of no type")
        raise ServiceRefused(
            f"HTTP {response.status_code}",
            f"what listens at {url} is not evorec, it answers {response.text[:100]!r} ({kind}); check EVOREC_URL",
            response.status_code,
        )
    problem = content if isinstance(content, dict) else {}
    title = str(problem.get("title") or f"HTTP {response.status_code}")
    raise ServiceRefused(title, str(problem.get("detail") or response.text[:500] or "no detail"), response.status_code)
