"""What the use cases need, as the smallest Protocols: vLLM and the stores fulfil them, and so do the tests' fakes."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence, Set
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from shared.config import Settings
from shared.errors import EvorecError, Unavailable
from shared.ranking import Blends
from shared.types import AdapterName, DomainId, Interaction, Item, ItemId, UserId


class EngineUnavailable(Unavailable):
    """The engine is not there: still starting, shut down, or dead."""


class AdapterNotLoaded(Unavailable):
    """The engine does not hold this adapter (any more)."""


class AdapterLoadFailed(EvorecError):
    """The engine refused an adapter; it has been removed again and the engine goes on."""

    title = "The engine refused the adapter"


class EngineFull(AdapterLoadFailed):
    """It holds as many adapters as fit; there is nothing wrong with this one."""


@dataclass(frozen=True, slots=True)
class LoraHandle:
    """An adapter version as the engine knows it.

    Id, name and path belong to one version for ever: vLLM hashes requests by name and keys its prefix cache by
    (name, path), so a reused one would serve old keys and values or kill the engine.
    """

    lora_id: int
    name: AdapterName
    path: Path


@dataclass(slots=True)
class PromptTokens:
    """Tokens of all prompts that an engine has ranked, and how many of them its prefix cache had."""

    asked: int = 0
    cached: int = 0


class RankingEngine(Protocol):
    """Scores labels under an adapter. Failures of one call never harm the others."""

    prompt_tokens: PromptTokens

    @property
    def alive(self) -> bool:
        """False once the engine has died or was closed; it never comes back to life."""

    async def add_adapter(self, lora: LoraHandle) -> None:
        """Loads it; a second call does nothing. AdapterLoadFailed leaves no trace; EngineUnavailable when dead."""

    async def remove_adapter(self, lora: LoraHandle) -> None:
        """Unloads it; nothing happens where it is not loaded. The caller has drained its requests."""

    async def rank(self, token_ids: Sequence[int], label_ids: Sequence[int], lora: LoraHandle) -> list[float]:
        """log p(label | prompt) at the position after the prompt, renormalised over `label_ids` (exp sums to 1).

        Raises AdapterNotLoaded, EngineUnavailable, or InvalidInput for ids outside the vocabulary or a prompt that is
        too long. Cancelling the call aborts the request.
        """

    async def check(self) -> None:
        """Returns once the engine has answered anything, this check or another call: never, where it hangs."""

    async def close(self) -> None:
        """Lets running calls finish for a moment, aborts the rest, frees every process."""


EngineFactory = Callable[[Settings], Awaitable[RankingEngine]]


class CandidateIndex(Protocol):
    """What serving needs of `shared.retriever.RetrieverIndex`. History is oldest first."""

    def candidates(
        self, history: Sequence[ItemId], k: int, *, exclude: Set[ItemId], categories: Set[str] | None
    ) -> list[tuple[ItemId, float]]:
        """The k best available items with their scores, best first."""

    def scores(self, history: Sequence[ItemId], item_ids: Sequence[ItemId]) -> list[float]:
        """log p(item | history) over the catalog."""

    def contributions(self, history: Sequence[ItemId], item_ids: Sequence[ItemId]) -> list[list[float]]:
        """How much each history item contributed to each item's score.  -> [len(item_ids)][len(history)]"""


class Forgotten(Protocol):
    """What serving needs of `shared.forgotten.ForgottenSet`."""

    def filter(self, user_id: UserId, history: Sequence[Interaction]) -> tuple[Interaction, ...]:
        """The history without what was forgotten."""


@dataclass(frozen=True, slots=True)
class KnownHistory:
    """A user's interactions, oldest first; empty for an unknown user. `current`: as the store has them now."""

    events: tuple[Interaction, ...]
    current: bool


class Histories(Protocol):
    async def get(self, domain: DomainId, user_id: UserId) -> KnownHistory:
        """What is known of the user at the moment."""


class Popularity(Protocol):
    async def counted(self, domain: DomainId) -> Mapping[ItemId, float]:
        """Item -> share of every item that has had an event, deleted ones too, largest first."""

    async def shares(self, domain: DomainId, item_ids: Sequence[ItemId]) -> list[float]:
        """Each item's share; 0 without an event."""


@dataclass(frozen=True, slots=True)
class CatalogSnapshot:
    """A domain's items at one version of the catalog."""

    domain: DomainId
    version: int
    items: Mapping[ItemId, Item]


@dataclass(frozen=True, slots=True)
class ServingVersion:
    """An adapter version with all that answers depend on; replaced as a whole when the catalog changes."""

    name: AdapterName
    domain: DomainId
    lora: LoraHandle
    blend: Blends
    forgotten: Forgotten
    catalog: CatalogSnapshot
    index: CandidateIndex


class Versions(Protocol):
    """Which version answers whom."""

    def lease(self, domain: DomainId, user_id: UserId | None) -> AbstractContextManager[ServingVersion | None]:
        """The version that answers this user, kept loaded for the block; None where nothing serves the domain."""

    def wanted(self, domain: DomainId) -> bool:
        """Whether the domain has a champion, one that is still loading or refused too."""
