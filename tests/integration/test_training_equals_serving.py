"""A training example is the prompt that the service would have built at that moment, token by token."""

from __future__ import annotations

import time

from redis.asyncio import Redis

from evolver.batches import build_prompt, make_example
from evolver.splits import filtered
from shared.forgotten import ForgottenSet
from shared.history import HistoryStore
from shared.prompt import PromptBuilder
from shared.retriever import Retriever, RetrieverIndex
from shared.types import ItemId, UserId
from tests.service_support import ITEMS, SHOP, Running

pytest_plugins = ["tests.service_fixtures"]

USER = UserId("user-1")
BOUGHT = [f"i{number}" for number in range(14)]
LATE, FORGOTTEN, VIEWED, NEXT = "i20", "i4", "i21", ItemId("i25")


async def test_a_training_example_is_the_prompt_that_was_served(running: Running, redis: Redis) -> None:
    """With a late event, a forgotten one, one that is no purchase, and more history than fits the prompt."""
    now = time.time() - 10_000
    events = [{"item_id": item, "timestamp": now + n, "event_id": item} for n, item in enumerate(BOUGHT)]
    events.append({"item_id": LATE, "timestamp": now + 8.5, "event_id": "late"})
    events.append({"item_id": VIEWED, "timestamp": now + 50, "event_id": "view", "event_type": "view"})
    body = {"interactions": [{"user_id": USER, **event} for event in events]}
    assert (await running.http.post("/interactions", json=body)).json()["rejected"] == []
    forgotten = {USER: frozenset({FORGOTTEN})}
    name = await running.publisher.publish(forgotten=forgotten)
    await running.served_by(name)

    # The evolver's side, as it sees this user once NEXT has been bought.
    builder = PromptBuilder.load(running.settings)
    index = RetrieverIndex(Retriever([item.item_id for item in ITEMS]), ITEMS)
    stored = await HistoryStore(redis, running.settings).get(SHOP, USER)
    events_before = [event for event in stored if event.event_type in running.settings.positive_events]
    history = filtered(ForgottenSet(forgotten), USER, events_before)
    example = make_example(
        USER,
        history,
        NEXT,
        index,
        [item.item_id for item in ITEMS],
        near_share=0.5,
        n_candidates=10,
        own=frozenset(event.item_id for event in events_before),
        seed=0,
    )
    trained = build_prompt(builder, index, history, example.candidates)

    running.engines.last.calls.clear()
    answer = await running.recommend(user_id=USER, history=None, candidates=sorted(example.candidates), count=10)
    assert answer.json()["adapter"] == name
    (_, served), *others = running.engines.last.calls
    assert not others
    assert served == trained.token_ids
    assert LATE in history
    assert FORGOTTEN not in history
    assert VIEWED not in history
