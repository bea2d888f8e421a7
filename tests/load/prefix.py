"""What the engine's prefix cache saves for users who come back: `python -m tests.load.prefix`.

A returning user asks, does something, and asks again; in between others ask. The service's prompts keep their beginning
where they can (`shared.prompt.shown`), and each adapter version has a cache of its own.
"""

from __future__ import annotations

import asyncio
import json
import random
import re
import time
from dataclasses import dataclass
from typing import Annotated

import httpx
import typer
from rich.progress import Progress

from tests.load.results import Entry, compared, save
from tests.load.stack import DOMAIN, LoadStack, load_stack

COMMAND = "python -m tests.load.prefix"
USERS = 60
VISITS = 4  # of each user in a round
ACTS = 0.5  # of the visits follow something that the user has done since the last one
CLIENTS = 8


@dataclass(frozen=True)
class Tokens:
    asked: float
    cached: float

    def since(self, before: Tokens) -> float:
        """The share of the prompt tokens since then that the cache had."""
        return (self.cached - before.cached) / (self.asked - before.asked)


async def tokens(stack: LoadStack) -> Tokens:
    async with httpx.AsyncClient(base_url=f"http://{stack.settings.host}:{stack.settings.port}") as http:
        text = (await http.get("/metrics")).text
    found = dict(re.findall(r"^evorec_engine_(prompt_tokens|cached_prompt_tokens) (\S+)$", text, re.MULTILINE))
    return Tokens(float(found["prompt_tokens"]), float(found["cached_prompt_tokens"]))


async def visits(stack: LoadStack, users: list[int], rng: random.Random) -> float:
    """Every user's next visit, in any order; the seconds they took."""
    waiting = iter(rng.sample(users, len(users)))

    async def client() -> None:
        connection = await stack.connect()
        for number in waiting:
            status, answer = await connection.post("/recommend", stack.recommend_body(number))
            assert (status, json.loads(answer)["degraded"]) == (200, False), answer
        connection.close()

    began = time.perf_counter()
    await asyncio.gather(*(client() for _ in range(CLIENTS)))
    return time.perf_counter() - began


async def act(stack: LoadStack, users: list[int], rng: random.Random) -> None:
    """Some of the users do something."""
    items = [item.item_id for item in stack.store.items]
    events = [
        {"user_id": stack.user(number), "item_id": rng.choice(items), "timestamp": time.time()}
        for number in users
        if rng.random() < ACTS
    ]
    connection = await stack.connect()
    status, answer = await connection.post(
        "/interactions", json.dumps({"domain": DOMAIN, "interactions": events}).encode()
    )
    assert status == 202, answer
    connection.close()


async def measure(rounds: int) -> None:
    rng = random.Random(0)
    first, again, shares = [], [], []
    async with load_stack() as stack:
        await visits(stack, list(range(USERS)), rng)  # warm
        with Progress() as progress:
            for number in progress.track(range(1, rounds + 1), description="Prefix cache: rounds"):
                users = list(range(number * USERS, (number + 1) * USERS))
                first.append(USERS / await visits(stack, users, rng))
                before, seconds = await tokens(stack), 0.0
                for _ in range(VISITS):
                    await act(stack, users, rng)
                    seconds += await visits(stack, users, rng)
                again.append(VISITS * USERS / seconds)
                shares.append((await tokens(stack)).since(before))
    save("prefix-cache", _entries(first, again, shares))


def _entries(first: list[float], again: list[float], shares: list[float]) -> list[Entry]:
    baseline = f"first visits, {CLIENTS} clients"
    return [
        compared("prompt tokens that the cache had, returning users", "share", shares, COMMAND),
        compared(baseline, "requests/s", first, COMMAND),
        compared(
            f"visits of returning users, {ACTS:.0%} after a new interaction",
            "requests/s",
            again,
            COMMAND,
            baseline=baseline,
            against=first,
        ),
    ]


def main(rounds: Annotated[int, typer.Option(min=1)] = 5) -> None:
    """Measure and write docs/results/performance.json."""
    asyncio.run(measure(rounds))


if __name__ == "__main__":
    typer.run(main)
