"""The use case: route -> history -> what is not forgotten -> candidates -> prompt -> engine -> blend -> ranking.

Whatever fails on the way to the LLM's ranking costs the LLM's ranking alone: the answer comes in the retriever's
order and says why (`degraded`).
"""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from typing import ParamSpec, TypeVar

import structlog

from service.admission import Admission
from service.catalogs import Catalogs
from service.metrics import Metrics
from service.ports import (
    AdapterNotLoaded,
    CatalogSnapshot,
    EngineUnavailable,
    Histories,
    Popularity,
    RankingEngine,
    ServingVersion,
    Versions,
)
from service.schemas.recommend import Influence, Reason, Recommendation, RecommendedItem, RecommendRequest
from service.scoring import Ranked, by_llm, by_popularity, by_retriever
from shared.catalog import clean_text
from shared.categories import in_categories, joined
from shared.config import Settings
from shared.errors import InvalidInput
from shared.prompt import PromptBuilder, candidate_order, shown
from shared.types import DomainId, Item, ItemId, UserId

log = structlog.get_logger(__name__)

P = ParamSpec("P")
T = TypeVar("T")

INFLUENCES = 3
NAMED_UNKNOWN = 10


@dataclass(frozen=True, slots=True)
class Ask:
    """A request with everything looked up. `history`: oldest first, as prompt and retriever see it."""

    domain: DomainId
    user_id: UserId | None
    count: int
    history: tuple[ItemId, ...]
    candidates: tuple[ItemId, ...] | None
    exclude: frozenset[ItemId]
    categories: frozenset[str] | None
    current: bool = True  # False: the history is what this process remembers, the store is away

    def allows(self, item: Item) -> bool:
        fits = self.categories is None or in_categories(item.category, self.categories)
        return item.available and fits and item.item_id not in self.exclude


@dataclass(frozen=True, slots=True)
class Answer:
    """`degraded`: empty, or why the LLM did not rank."""

    ranked: list[Ranked]
    degraded: str = ""
    adapter: ServingVersion | None = None


class Recommender:
    """`engine` and `prompts` give what is there at the moment, None while it is not."""

    def __init__(
        self,
        settings: Settings,
        catalogs: Catalogs,
        versions: Versions,
        histories: Histories,
        popularity: Popularity,
        engine: Callable[[], RankingEngine | None],
        prompts: Callable[[], PromptBuilder | None],
        metrics: Metrics,
    ) -> None:
        self._settings = settings
        self._catalogs = catalogs
        self._versions = versions
        self._histories = histories
        self._popularity = popularity
        self._engine = engine
        self._prompts = prompts
        self._metrics = metrics
        # Not asyncio's own threads: those may all be waiting for an artifact store that has stalled.
        self._threads = ThreadPoolExecutor(thread_name_prefix="recommend")
        self._admission = Admission(settings.max_concurrent_requests, "recommendations are being made")
        self._running = 0

    def close(self) -> None:
        """Once no request is left."""
        self._threads.shutdown(wait=False)

    async def recommend(self, request: RecommendRequest) -> Recommendation:
        """UnknownDomain, InvalidInput that names the unknown items, or Overloaded: nothing queues without bound."""
        with self._admission.place():
            return await self._recommend(request)

    async def _recommend(self, request: RecommendRequest) -> Recommendation:
        started = time.perf_counter()
        domain = DomainId(request.domain or self._settings.default_domain)
        user_id = None if request.user_id is None else UserId(request.user_id)
        named = {field: tuple(map(ItemId, getattr(request, field) or ())) for field in ("candidates", "history")}
        catalog = await self._catalogs.get(domain, {item for items in named.values() for item in items})
        for field, items in named.items():
            _check_known(field, items, catalog)
        with self._versions.lease(domain, user_id) as version:
            catalog = version.catalog if version is not None else catalog
            with self._timed("history"):
                ask = await self._look_up(request, domain, user_id, catalog, version)
            answer = await self._answer(ask, catalog, version)
            if not ask.current:
                answer = replace(answer, degraded="store_unavailable")
            reasons = await self._reasons(ask, answer, catalog) if request.explain else {}
        name = None if answer.adapter is None else answer.adapter.name
        self._metrics.recommendations.labels(domain, name or "", answer.degraded).inc()
        return Recommendation(
            recommendation_id=uuid.uuid4().hex,
            user_id=user_id,
            domain=domain,
            items=[
                RecommendedItem(
                    item_id=each.item_id,
                    rank=rank,
                    score=each.score,
                    title=catalog.items[each.item_id].title,
                    reason=reasons.get(each.item_id),
                )
                for rank, each in enumerate(answer.ranked, start=1)
            ],
            adapter=name,
            degraded=answer.degraded or False,
            took_ms=round(1000 * (time.perf_counter() - started), 2),
        )

    async def _look_up(
        self,
        request: RecommendRequest,
        domain: DomainId,
        user_id: UserId | None,
        catalog: CatalogSnapshot,
        version: ServingVersion | None,
    ) -> Ask:
        current = True
        if request.history is not None:
            seen = history = [ItemId(item) for item in request.history]
        else:
            assert user_id is not None  # noqa: S101 - the schema demands one of the two
            known = await self._histories.get(domain, user_id)
            current = known.current
            seen = [event.item_id for event in known.events]
            positive = tuple(event for event in known.events if event.event_type in self._settings.positive_events)
            kept = positive if version is None else version.forgotten.filter(user_id, positive)
            history = [event.item_id for event in kept if event.item_id in catalog.items]
        # A caller who names candidates wants them ranked; leaving seen ones out has to be asked for.
        leave_seen = request.exclude_seen and (request.candidates is None or "exclude_seen" in request.model_fields_set)
        return Ask(
            domain=domain,
            user_id=user_id,
            count=request.count,
            history=tuple(history),
            candidates=None if request.candidates is None else tuple(dict.fromkeys(map(ItemId, request.candidates))),
            exclude=frozenset(map(ItemId, request.exclude_item_ids)) | frozenset(seen if leave_seen else ()),
            categories=_wanted(request.categories),
            current=current,
        )

    async def _answer(self, ask: Ask, catalog: CatalogSnapshot, version: ServingVersion | None) -> Answer:
        if version is None:
            missing = "adapter_unavailable" if self._versions.wanted(ask.domain) else "no_adapter"
            return Answer(await self._popular(ask, catalog), missing)
        if not ask.history:
            return Answer(await self._popular(ask, catalog), "no_history")
        with self._timed("retrieve"):
            pairs = await self._in_thread(self._retrieve, ask, version)
        if not pairs:
            return Answer([], adapter=version)
        outcome = await self._llm(ask, version, [item for item, _ in pairs])
        if isinstance(outcome, str):
            return Answer(by_retriever(pairs)[: ask.count], outcome, version)
        shares = await self._popularity.shares(ask.domain, list(outcome))
        weights = version.blend.retrieved if ask.candidates is None else version.blend.given
        return Answer(by_llm(pairs, outcome, shares, weights)[: ask.count], "", version)

    # -- candidates -------------------------------------------------------------------------------

    def _retrieve(self, ask: Ask, version: ServingVersion) -> list[tuple[ItemId, float]]:
        """Candidates with the retriever's scores, best first."""
        if ask.candidates is None:
            k = max(self._settings.rank_candidates, ask.count)
            return version.index.candidates(ask.history, k, exclude=ask.exclude, categories=ask.categories)
        allowed = [item for item in ask.candidates if ask.allows(version.catalog.items[item])]
        if not allowed:
            return []
        scores = version.index.scores(ask.history, allowed)
        return sorted(zip(allowed, scores, strict=True), key=lambda pair: -pair[1])

    async def _popular(self, ask: Ask, catalog: CatalogSnapshot) -> list[Ranked]:
        """The most popular allowed items; those without any event come last, so that a new catalog answers too."""
        if ask.candidates is not None:
            allowed = [item for item in ask.candidates if ask.allows(catalog.items[item])]
            shares = await self._popularity.shares(ask.domain, allowed)
            return by_popularity(list(zip(allowed, shares, strict=True)))[: ask.count]
        counted = await self._popularity.counted(ask.domain)
        return by_popularity(await self._in_thread(_most_popular, ask, catalog, counted))

    # -- the LLM ----------------------------------------------------------------------------------

    async def _llm(self, ask: Ask, version: ServingVersion, best_first: Sequence[ItemId]) -> dict[ItemId, float] | str:
        """log p of the best candidates (in their order), renormalised over them, or why there is none."""
        engine, prompts = self._engine(), self._prompts()
        if engine is None or prompts is None:
            return "engine_unavailable"
        if self._running >= self._settings.max_concurrent_rankings:
            return "saturated"
        head = best_first[: min(self._settings.rank_candidates, len(prompts.label_ids))]
        self._running += 1
        self._metrics.rankings_running.set(self._running)
        try:
            async with asyncio.timeout(self._settings.rank_timeout_ms / 1000):
                return await self._rank(ask, version, head, engine, prompts)
        except TimeoutError:
            return "rank_timeout"
        except AdapterNotLoaded:
            return "adapter_unavailable"
        except EngineUnavailable:
            return "engine_unavailable"
        except Exception as error:
            log.error("ranking_failed", domain=ask.domain, adapter=version.name, error=repr(error))
            return "engine_failed"
        finally:
            self._running -= 1
            self._metrics.rankings_running.set(self._running)

    async def _rank(
        self,
        ask: Ask,
        version: ServingVersion,
        head: Sequence[ItemId],
        engine: RankingEngine,
        prompts: PromptBuilder,
    ) -> dict[ItemId, float]:
        order = candidate_order(head, ask.user_id or "")
        items = version.catalog.items
        with self._timed("prompt"):
            prompt = prompts.build([items[item] for item in ask.history], [items[item] for item in order])
        with self._timed("rank"):
            logprobs = await engine.rank(prompt.token_ids, prompts.label_ids[: len(order)], version.lora)
        found = dict(zip(order, logprobs, strict=True))
        return {item: found[item] for item in head}

    # -- explanations -----------------------------------------------------------------------------

    async def _reasons(self, ask: Ask, answer: Answer, catalog: CatalogSnapshot) -> dict[ItemId, Reason]:
        ids = [each.item_id for each in answer.ranked]
        shares = await self._popularity.shares(ask.domain, ids)
        # The window that the LLM saw; each of its items costs one pass of the retriever.
        window = shown(ask.history, self._settings.prompt_history)
        influences = await self._in_thread(_influences, window, ids, answer.adapter, catalog)
        return {
            each.item_id: Reason(
                llm_log_probability=each.llm,
                retriever_score=each.retriever,
                popularity_share=share,
                history=influences.get(each.item_id, []),
            )
            for each, share in zip(answer.ranked, shares, strict=True)
        }

    async def _in_thread(self, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._threads, partial(work, *args, **kwargs))

    @contextmanager
    def _timed(self, stage: str) -> Iterator[None]:
        with self._metrics.recommend_stage_seconds.labels(stage).time():
            yield


def _wanted(categories: Sequence[str] | None) -> frozenset[str] | None:
    """As `in_categories` takes them: cleaned like the catalog's own, so that a caller's string finds its items."""
    return None if categories is None else frozenset(joined(clean_text(category)) for category in categories)


def _most_popular(ask: Ask, catalog: CatalogSnapshot, counted: Mapping[ItemId, float]) -> list[tuple[ItemId, float]]:
    """The first `ask.count` allowed items with their shares; no item of a large catalog beyond those is looked at."""

    def in_order() -> Iterator[tuple[ItemId, float]]:
        yield from ((item_id, share) for item_id, share in counted.items() if item_id in catalog.items)
        yield from ((item_id, 0.0) for item_id in catalog.items if item_id not in counted)

    allowed = (pair for pair in in_order() if ask.allows(catalog.items[pair[0]]))
    return list(islice(allowed, ask.count))


def _influences(
    history: Sequence[ItemId], ids: Sequence[ItemId], version: ServingVersion | None, catalog: CatalogSnapshot
) -> dict[ItemId, list[Influence]]:
    """The history items that weighed most, strongest first."""
    if version is None:
        return {}
    found: dict[ItemId, list[Influence]] = {}
    for item_id, weights in zip(ids, version.index.contributions(history, ids), strict=True):
        strongest = sorted(zip(history, weights, strict=True), key=lambda pair: -pair[1])[:INFLUENCES]
        found[item_id] = [
            Influence(item_id=past, title=catalog.items[past].title, weight=weight) for past, weight in strongest
        ]
    return found


def _check_known(field: str, items: Sequence[ItemId], catalog: CatalogSnapshot) -> None:
    unknown = [item for item in items if item not in catalog.items]
    if unknown:
        shown = ", ".join(repr(item) for item in unknown[:NAMED_UNKNOWN])
        more = f" and {len(unknown) - NAMED_UNKNOWN} more" if len(unknown) > NAMED_UNKNOWN else ""
        raise InvalidInput(f"{field}: domain {catalog.domain!r} has no item {shown}{more}")
