"""What an evolution is given and what it answers: the seam between the stores and the algorithm.

`evolver.window` makes the inputs, `evolver.pipeline` (pure: no Redis, no Celery) turns them into a result, and
`evolver.publish` turns the result into a version.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

from shared.config import Settings
from shared.manifest import Gate, Manifest, Metrics
from shared.ranking import Blends
from shared.types import DomainId, Interaction, Item, ItemId, UserId

EventKey = tuple[UserId, str]
"""User and event id: clients choose the ids, so that one user's new event may have that of another's old one."""

_REHEARSED = 3  # inactive users for each active one (ADR 0033)

Progress = Callable[[str, float], None]
"""`progress(stage, share)`: the stage that runs (locate, forget, update, evaluate) and its done share, 0..1."""

ShouldStop = Callable[[], bool]
"""Asked between steps; once it answers True the pipeline raises `Cancelled`."""


class Cancelled(Exception):
    """The evolution was cancelled; nothing of it may be published."""


class PoisonUser(Exception):
    """Something in this user's data makes a step fail; the evolution goes on without them."""

    def __init__(self, user_id: UserId, reason: str) -> None:
        super().__init__(f"user {user_id!r}: {reason}")
        self.user_id = user_id


@contextmanager
def working_on(user_id: UserId) -> Iterator[None]:
    """Work that concerns one user alone: what goes wrong in it is that user's data's fault (`PoisonUser`)."""
    try:
        yield
    except (Cancelled, PoisonUser, MemoryError, OSError):
        raise
    except Exception as error:
        raise PoisonUser(user_id, f"{type(error).__name__}: {error}") from error


def n_rehearsed(n_active: int) -> int:
    """How many inactive users are rehearsed beside so many active ones, where members rehearse."""
    return _REHEARSED * n_active


def event_key(event: Interaction) -> EventKey:
    """What tells an event from all others of a domain's histories."""
    return event.user_id, event.event_id


@dataclass(frozen=True, slots=True)
class EvolutionInputs:
    """Everything that one evolution learns from, read once, at its start.

    `histories` are oldest first, window included, and hold positive events alone. `window` are the events of the window
    among them; a user with one is active (U_A), every other user is inactive (U_I). Without a parent (bootstrap) all
    events are the window's. Users of `panel` never supply a training target. `known` is everybody whom
    the domain knows, those without a history here too: no version may name others. None: that cannot be told.
    `popularity` is log2 of each item's decayed mass over all events of the domain (`shared.popularity`). None:
    `histories` are all there are.
    """

    domain: DomainId
    items: tuple[Item, ...]
    histories: Mapping[UserId, tuple[Interaction, ...]]
    window: frozenset[EventKey]
    panel: frozenset[UserId]
    seed: int
    known: frozenset[UserId] | None = None
    popularity: Mapping[ItemId, float] | None = None

    def active_users(self) -> tuple[UserId, ...]:
        """U_A, in the order of `histories`."""
        return tuple(user for user, events in self.histories.items() if any(map(self.in_window, events)))

    def in_window(self, event: Interaction) -> bool:
        """Whether an interaction is one of the window's."""
        return event_key(event) in self.window

    def without(self, user_id: UserId) -> EvolutionInputs:
        """The same, as if the user had never been there."""
        histories = {user: events for user, events in self.histories.items() if user != user_id}
        theirs = set(map(event_key, self.histories.get(user_id, ())))
        return replace(self, histories=histories, window=self.window - theirs, panel=self.panel - {user_id})


@dataclass(frozen=True, slots=True)
class ParentVersion:
    """The champion at the evolution's start: a verified local folder and its manifest."""

    folder: Path
    manifest: Manifest


@dataclass(frozen=True, slots=True, kw_only=True)
class PipelineResult:
    """What Locate, Forget, Update and Evaluate found; the manifest's fields bear the same names.

    `layer_votes` and `layer_similarity` have one entry per decoder layer; `located_layers` are their indices,
    ascending. `train_examples` are those that Update trained on: with none of them there is nothing to publish.
    """

    located_layers: tuple[int, ...]
    layer_votes: tuple[int, ...]
    layer_similarity: tuple[float, ...]
    n_layers: int
    trainable_parameters: int
    lora_parameters: int
    forgotten_interactions: int
    forgotten_share: float
    lora_rank: int
    target_modules: tuple[str, ...]
    blend: Blends
    metrics: Metrics
    gate: Gate
    stage_seconds: Mapping[str, float]
    train_examples: int


class Pipeline(Protocol):
    """`evolver.pipeline.run_pipeline`, or a fast stand-in of the tests: a synchronous function that writes the
    version's files (adapter, retriever, forgotten set) into `out`. Raises `Cancelled` and `PoisonUser`."""

    def __call__(
        self,
        inputs: EvolutionInputs,
        parent: ParentVersion | None,
        out: Path,
        settings: Settings,
        progress: Progress,
        should_stop: ShouldStop,
    ) -> PipelineResult: ...
