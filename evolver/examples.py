"""Whom a round asks, and what: the prompts that Locate, Update and validation read.

All of it comes from `Split.visible`, so that nothing that is held out for evaluation is ever read.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np

from evolver.batches import build_prompt, make_example
from evolver.inputs import EvolutionInputs, working_on
from evolver.recipe import Targets
from evolver.splits import Split, filtered, first_times, item_sequence, visible_popularity
from evolver.update import EXAMPLES_PER_INACTIVE, Labelled
from shared.config import Settings
from shared.errors import InvalidInput
from shared.forgotten import ForgottenSet
from shared.prompt import Prompt, PromptBuilder, candidate_order
from shared.retriever import RetrieverIndex
from shared.types import Interaction, ItemId, UserId

Position = tuple[UserId, int]
"""An interaction: its user, and its place in their filtered history."""


class Examples:
    """The prompts of one round, in seeded orders: the same inputs give the same prompts.

    Raises `InvalidInput` where the base model has fewer labels than a prompt has candidates.
    """

    def __init__(self, inputs: EvolutionInputs, split: Split, settings: Settings) -> None:
        self._inputs, self._split, self._settings = inputs, split, settings
        self.builder = PromptBuilder.load(settings)
        if len(self.builder.label_ids) < settings.rank_candidates:
            raise InvalidInput(
                f"{settings.base_model} has {len(self.builder.label_ids)} single-token labels: lower "
                f"EVOREC_RANK_CANDIDATES ({settings.rank_candidates})"
            )
        self.popularity = visible_popularity(inputs, split, settings.popularity_half_life_days)
        self._pool = sorted(self.popularity)  # items known by now

    # -- users and their interactions ---------------------------------------------------------------------------------

    def users(self, targets: Targets, *, trainable_only: bool = False) -> list[UserId]:
        """Users whose visible interactions may be targets; those held out for validation are not visible."""
        visible = self._split.visible
        allowed = self._split.trainable if trainable_only else frozenset(visible) - self._inputs.panel
        return sorted(allowed & self._split.active if targets is Targets.WINDOW else allowed)

    def inactive_users(self, limit: int) -> list[UserId]:
        """At most `limit` of the trainable users who did nothing in the window, drawn with the seed."""
        return self._shuffled(self._split.trainable - self._split.active)[:limit]

    def before_window(self, user: UserId) -> tuple[Interaction, ...]:
        """The user's visible events before the window."""
        return tuple(event for event in self._split.visible[user] if not self._inputs.in_window(event))

    def positions(self, targets: Targets, forgotten: ForgottenSet) -> list[Position]:
        """The trainable users' interactions that supply targets, at most `max_train_examples`, drawn with the seed.

        What a user had before is no target: it is never served, and stands in the prompt where no negative does.
        """
        cap = self._settings.max_train_examples
        window: list[Position] = []
        past: list[Position] = []
        for user in self.users(targets, trainable_only=True):
            visible = self._split.visible[user]
            new = {visible[place].event_id for place in first_times(visible)}
            events = forgotten.filter(user, visible)
            for place in range(1, len(events)):
                if events[place].event_id in new:
                    (window if self._inputs.in_window(events[place]) else past).append((user, place))
        if targets is Targets.WINDOW:
            return self._drawn(window, cap)
        if targets is Targets.EVERYTHING:
            return self._drawn(sorted([*window, *past]), cap)
        half = self._drawn(window, cap // 2)
        return [*half, *self._drawn(past, len(half))]

    def _drawn(self, positions: Sequence[Position], limit: int) -> list[Position]:
        rng = np.random.default_rng(self._inputs.seed)
        return [positions[i] for i in rng.permutation(len(positions))[:limit]]

    def _shuffled(self, users: frozenset[UserId]) -> list[UserId]:
        ordered = sorted(users)
        rng = np.random.default_rng(self._inputs.seed)
        return [ordered[i] for i in rng.permutation(len(ordered))]

    # -- prompts ------------------------------------------------------------------------------------------------------

    def training(
        self, targets: Targets, index: RetrieverIndex, forgotten: ForgottenSet, *, near_share: float
    ) -> list[Labelled]:
        """The prompts that Update trains on; `near_share` of their negatives are of the index's best."""
        examples = []
        for user, place in self.positions(targets, forgotten):
            sequence = filtered(forgotten, user, self._split.visible[user])
            examples.append(self._labelled(index, user, sequence[:place], sequence[place], near_share))
        return examples

    def validation(self, index: RetrieverIndex, forgotten: ForgottenSet, *, near_share: float) -> list[Labelled]:
        """The held-out active users' prompts, which choose between checkpoints; made as those of `training`."""
        return [
            self._labelled(
                index, target.user_id, filtered(forgotten, target.user_id, target.before), target.item_id, near_share
            )
            for target in self._split.validation
        ]

    def inactive(self, index: RetrieverIndex, forgotten: ForgottenSet) -> list[Prompt]:
        """What inactive users would be asked now: their histories and retrieved candidates."""
        prompts = []
        for user in self.inactive_users(math.ceil(self._settings.max_train_examples / EXAMPLES_PER_INACTIVE)):
            with working_on(user):
                history = filtered(forgotten, user, self._split.visible[user])
                candidates = self._served_candidates(index, user, history)
                if history and candidates:
                    prompts.append(build_prompt(self.builder, index, history, candidates))
        return prompts

    def before_and_after(self, index: RetrieverIndex, known: ForgottenSet) -> Iterator[tuple[Prompt, Prompt]]:
        """Active users' prompts before and after the window, with the candidates that the new history retrieves.

        Users without an old history, and those who have seen the whole catalog, are left out.
        """
        for user in self._shuffled(self._split.trainable & self._split.active):
            old_events = self.before_window(user)
            if not old_events:
                continue
            with working_on(user):
                old = filtered(known, user, old_events)
                new = filtered(known, user, self._split.visible[user])
                candidates = self._served_candidates(index, user, new)
                if not candidates:
                    continue
                prompts = (
                    build_prompt(self.builder, index, old, candidates),
                    build_prompt(self.builder, index, new, candidates),
                )
            yield prompts

    def _labelled(
        self, index: RetrieverIndex, user: UserId, history: Sequence[ItemId], target: ItemId, near_share: float
    ) -> Labelled:
        with working_on(user):
            example = make_example(
                user,
                history,
                target,
                index,
                self._pool,
                near_share=near_share,
                n_candidates=self._settings.rank_candidates,
                own=frozenset(item_sequence(self._split.visible[user])),
                seed=self._inputs.seed,
            )
            return Labelled(build_prompt(self.builder, index, history, example.candidates), example.target_index)

    def _served_candidates(self, index: RetrieverIndex, user: UserId, history: Sequence[ItemId]) -> list[ItemId]:
        """What the service would rank: the retriever's top K outside the full history, in the order of the user's
        hash.
        """
        seen = frozenset(item_sequence(self._split.visible[user]))
        found = [item for item, _ in index.candidates(history, self._settings.rank_candidates, exclude=seen)]
        return candidate_order(found, user)
