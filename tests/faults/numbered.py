"""A stream of interactions, each with a number of its own, from clients that retry; and what became of each."""

from __future__ import annotations

import asyncio
import itertools
import json
import random
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Final

from shared.types import DomainId
from tests.load.http_client import Connection
from tests.service_support import ITEMS, SHOP

START: Final = 1_600_000_000
ANSWER_S: Final = 5.0
SIZES: Final = (1, 1, 1, 7, 40, 250)
ABANDONED: Final = 0.03  # of the requests: sent, and the connection cut before the answer
REPEATED: Final = 0.05  # of the accepted requests: sent once more
Open = Callable[[], Awaitable[Connection]]


@dataclass
class Sent:
    """Numbers of the interactions by what their clients know; `accepted`: what the answers' counts add up to."""

    accepted: int = 0
    answered: set[int] = field(default_factory=set)
    abandoned: set[int] = field(default_factory=set)
    retries: int = 0
    shed: int = 0


class NumberedStream:
    """Interaction n happened at `START` + a number that is n's alone, in an order of its own: most arrive late.

    Every fifth has no event id, so that the hash of its content has to tell it from its twins.
    """

    def __init__(self, total: int, users: int, rng: random.Random, domain: DomainId = SHOP) -> None:
        self.total = total
        self.domain = domain
        self.sent = Sent()
        self._users = users
        self._rng = rng
        self._moments = rng.sample(range(total), total)
        self._number_at = {START + moment: number for number, moment in enumerate(self._moments)}
        self._next = iter(range(total))

    def number_of(self, timestamp: float) -> int:
        return self._number_at[round(timestamp)]

    def event(self, number: int) -> dict[str, object]:
        event: dict[str, object] = {
            "user_id": f"u{number % self._users}",
            "item_id": ITEMS[number % len(ITEMS)].item_id,
            "timestamp": START + self._moments[number],
        }
        return event if number % 5 == 0 else {**event, "event_id": f"event-{number}"}

    def body(self, numbers: Sequence[int]) -> bytes:
        return json.dumps({"domain": self.domain, "interactions": [self.event(number) for number in numbers]}).encode()

    async def send_all(self, connect: Open, clients: int) -> None:
        """Returns once every interaction is answered with 202, or abandoned."""
        await asyncio.gather(*(self._client(connect) for _ in range(clients)))

    async def _client(self, connect: Open) -> None:
        client = RetryingClient(connect, self.sent)
        try:
            await self._send(client)
        finally:
            client.hang_up()

    async def _send(self, client: RetryingClient) -> None:
        for numbers in self._batches():
            body = self.body(numbers)
            if self._rng.random() < ABANDONED:
                self.sent.abandoned.update(numbers)
                await client.abandon(body)
                continue
            answer = await client.post_until_accepted(body)
            assert answer["accepted"] + answer["duplicates"] == len(numbers), answer
            assert not answer["rejected"], answer
            self.sent.accepted += answer["accepted"]
            self.sent.answered.update(numbers)
            if self._rng.random() < REPEATED:
                again = await client.post_until_accepted(body)
                assert (again["accepted"], again["duplicates"]) == (0, len(numbers)), again

    def _batches(self) -> Iterator[list[int]]:
        while numbers := list(itertools.islice(self._next, self._rng.choice(SIZES))):
            yield numbers


class RetryingClient:
    def __init__(self, connect: Open, sent: Sent) -> None:
        self._connect = connect
        self._sent = sent
        self._connection: Connection | None = None

    async def post_until_accepted(self, body: bytes) -> dict[str, Any]:
        """The answer of a 202. Only a stated 503 and broken connections are answered with another try."""
        while True:
            try:
                async with asyncio.timeout(ANSWER_S):
                    status, answer = await self._post(body)
            except (OSError, EOFError, TimeoutError):
                self.hang_up()
                self._sent.retries += 1
                await asyncio.sleep(0.1)
                continue
            if status == 202:
                found: dict[str, Any] = json.loads(answer)
                return found
            assert status == 503, answer
            self._sent.shed += 1
            await asyncio.sleep(0.1)

    async def _post(self, body: bytes) -> tuple[int, bytes]:
        if self._connection is None:
            self._connection = await self._connect()
        return await self._connection.post("/interactions", body)

    async def abandon(self, body: bytes) -> None:
        """Sends it and hangs up at once: whether it counts, nobody is told."""
        with suppress(OSError, EOFError, TimeoutError):
            async with asyncio.timeout(0.003):
                await self._post(body)
        self.hang_up()

    def hang_up(self) -> None:
        if self._connection is not None:
            self._connection.close()
        self._connection = None
