"""One evolution from data to files: Locate, Forget, Update, Evaluate. Knows neither Redis nor Celery.

Without a parent it is the bootstrap: the retriever is trained from scratch, nothing is forgotten, and a fresh LoRA
trains on all layers.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from evolver.batches import build_prompt, make_example
from evolver.evaluate import gain, paired_interval
from evolver.forget import KEPT_NEWEST, CurrentSequence, outdated
from evolver.inputs import Cancelled, EvolutionInputs, ParentVersion, PipelineResult, Progress, ShouldStop, working_on
from evolver.locate import Location, locate
from evolver.lora import TARGET_MODULES, decoder_layers, load_with_lora, lora_parameters, save_lora
from evolver.retriever_training import finetune_retriever, train_retriever
from evolver.scoring import (
    POPULARITY_ONLY,
    UNIFORM,
    WEIGHTED,
    Report,
    Version,
    choose_blend,
    evaluate_version,
    make_cases,
    score_cases,
)
from evolver.splits import Split, decayed_popularity, filtered, item_sequence, split
from evolver.update import Labelled, UpdateConfig, UpdateResult, update
from shared.config import Settings
from shared.disk import room_in
from shared.forgotten import ForgottenSet
from shared.manifest import Gate
from shared.prompt import Prompt, PromptBuilder, candidate_order
from shared.ranking import BlendWeights
from shared.retriever import Retriever, RetrieverIndex
from shared.types import ItemId, UserId

if TYPE_CHECKING:
    from peft import PeftModel

BYTES_PER_WEIGHT = 4  # float32


def run_pipeline(
    inputs: EvolutionInputs,
    parent: ParentVersion | None,
    out: Path,
    settings: Settings,
    progress: Progress,
    should_stop: ShouldStop,
) -> PipelineResult:
    """Learn from the window and write the version's files into `out`.

    Raises `Cancelled` between two steps once `should_stop()` answers True.
    """
    if settings.train_threads:
        torch.set_num_threads(settings.train_threads)
    return _Run(inputs, parent, settings, _Stages(progress, should_stop)).execute(out)


class _Stages:
    """Times the stages, reports their progress and notices cancellation."""

    def __init__(self, progress: Progress, should_stop: ShouldStop) -> None:
        self._progress, self._should_stop = progress, should_stop
        self._name = ""
        self.seconds: dict[str, float] = {}

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Everything inside counts as this stage."""
        self._name, started = name, time.monotonic()
        self.report(0.0)
        try:
            yield
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + time.monotonic() - started

    def report(self, share: float) -> None:
        """Done share of the current stage, 0..1; raises `Cancelled` if the run should stop."""
        if self._should_stop():
            raise Cancelled
        self._progress(self._name, share)


@dataclass(frozen=True, slots=True)
class _Forgetting:
    """The renewed retriever, the set that applies from now on, and the share of the considered interactions that
    went.
    """

    retriever: Retriever
    forgotten: ForgottenSet
    count: int
    share: float


class _Run:
    """The steps of one evolution, in order."""

    def __init__(
        self, inputs: EvolutionInputs, parent: ParentVersion | None, settings: Settings, stages: _Stages
    ) -> None:
        self._inputs, self._parent, self._settings, self._stages = inputs, parent, settings, stages
        self._builder = PromptBuilder.load(settings)
        # What the parent knows, read once: its retriever over today's catalog, and what it has forgotten.
        self._known = ForgottenSet.load(parent.folder) if parent else ForgottenSet()
        self._parent_retriever = Retriever.load(parent.folder) if parent else Retriever([])
        self._parent_index = RetrieverIndex(self._parent_retriever, inputs.items)
        self._split: Split = split(
            inputs, max_panel=settings.max_evaluated_users, max_validation=settings.max_validation_users
        )
        self._popularity = decayed_popularity(self._split.visible, settings.popularity_half_life_days)
        self._pool = sorted(self._popularity)  # items known by now

    def execute(self, out: Path) -> PipelineResult:
        """All stages; files are written last."""
        stages, settings = self._stages, self._settings
        model = load_with_lora(settings, self._parent.folder if self._parent else None, seed=self._inputs.seed)
        with stages.stage("evaluate before"):
            before = self._before(model)
        with stages.stage("locate"):
            location = self._locate(model)
        with stages.stage("forget"):
            forgetting = self._forget()
        index = RetrieverIndex(forgetting.retriever, self._inputs.items)
        with stages.stage("update"):
            updated = self._update(model, location, index, forgetting.forgotten)
        with stages.stage("evaluate"):
            version = Version(model, index, forgetting.forgotten)
            weights = self._blend(version)
            after = self._evaluate(version, weights)
        sizes = [(layer, parameter.numel()) for layer, _, parameter in lora_parameters(model)]
        in_retriever = sum(value.numel() for value in forgetting.retriever.state_dict().values())
        with room_in(out, needed=BYTES_PER_WEIGHT * (in_retriever + sum(size for _, size in sizes))):
            save_lora(model, out)
            forgetting.retriever.save(out)
            forgetting.forgotten.save(out)
        return PipelineResult(
            located_layers=location.layers,
            layer_votes=location.votes,
            layer_similarity=location.similarity,
            n_layers=len(decoder_layers(model)),
            trainable_parameters=sum(size for layer, size in sizes if layer in location.layers),
            lora_parameters=sum(size for _, size in sizes),
            forgotten_interactions=forgetting.count,
            forgotten_share=forgetting.share,
            lora_rank=settings.lora_rank,
            target_modules=TARGET_MODULES,
            blend=weights,
            metrics={"before": before.metrics, "after": after.metrics},
            gate=self._gate(before, after),
            stage_seconds=stages.seconds,
            train_examples=updated.trained_prompts,
        )

    # -- evaluate -----------------------------------------------------------------------------------------------------

    def _before(self, model: PeftModel) -> Report:
        """What the domain answered until now: the parent, or popularity where there is none."""
        if self._parent is None:
            return self._evaluate(Version(None, self._parent_index, self._known), POPULARITY_ONLY)
        return self._evaluate(Version(model, self._parent_index, self._known), self._parent.manifest.blend)

    def _evaluate(self, version: Version, weights: BlendWeights) -> Report:
        cases = make_cases(self._split.panel, self._popularity, seed=self._inputs.seed)
        return evaluate_version(
            version,
            weights,
            cases,
            self._builder,
            self._popularity,
            k=self._settings.rank_candidates,
            on_batch=self._stages.report,
        )

    def _blend(self, version: Version) -> BlendWeights:
        cases = make_cases(self._split.validation, self._popularity, seed=self._inputs.seed)
        scored = [score_cases(version, chosen, self._builder, self._popularity) for chosen in cases.values()]
        return choose_blend(scored)

    def _gate(self, before: Report, after: Report) -> Gate:
        """Not significantly worse: no group's paired 95 % interval of NDCG@3 lies below zero on either candidate
        set.
        """
        reasons = []
        for name in (UNIFORM, WEIGHTED):
            for group, wanted in (("U_A", True), ("U_I", False)):
                users = [target.user_id for target in self._split.panel if target.active is wanted]
                old, new = ([gain(report.ranks[name][user], 3) for user in users] for report in (before, after))
                low, high = paired_interval(old, new, seed=self._inputs.seed)
                if high < 0:
                    reasons.append(
                        f"{name}ndcg@3 of {group} fell by {-high:.3f} to {-low:.3f} (95 % interval, {len(users)} users)"
                    )
        return Gate(passed=not reasons, reasons=tuple(reasons))

    # -- locate -------------------------------------------------------------------------------------------------------

    def _locate(self, model: PeftModel) -> Location:
        """The located layers; all of them at the bootstrap, or where no active user has an old history to compare
        with.
        """
        everything = range(len(decoder_layers(model)))
        sampled = self._sample(self._split.trainable & self._split.active)
        index = self._parent_index
        pairs = (self._old_and_new(index, user) for user in sampled if self._old_events(user))
        if self._parent is None:
            return Location(tuple(everything), (0,) * len(everything), (1.0,) * len(everything))
        votes = [*islice((pair for pair in pairs if pair is not None), self._settings.max_located_users)]
        if not votes:
            # Nobody can vote: the top layers, nearest to the answer, and still no more than may be trained.
            k = max(1, 3 * len(everything) // 10)
            return Location(tuple(everything[-k:]), (0,) * len(everything), (1.0,) * len(everything))
        old, new = zip(*votes, strict=True)
        return locate(model, old, new, on_batch=self._stages.report)

    def _old_and_new(self, index: RetrieverIndex, user: UserId) -> tuple[Prompt, Prompt] | None:
        """The prompts before and after the window, with the candidates that the new history retrieves.

        None for a user who has seen the whole catalog.
        """
        known = self._known
        with working_on(user):
            old = filtered(known, user, self._old_events(user))
            new = filtered(known, user, self._split.visible[user])
            candidates = self._served_candidates(index, user, new)
            if not candidates:
                return None
            before, after = (build_prompt(self._builder, index, history, candidates) for history in (old, new))
            return before, after

    # -- forget -------------------------------------------------------------------------------------------------------

    def _forget(self) -> _Forgetting:
        items, seed, report = self._inputs.items, self._inputs.seed, self._stages.report
        known = self._known
        sequences = {user: filtered(known, user, self._split.visible[user]) for user in self._learned_users()}
        if self._parent is None:
            retriever = train_retriever(
                items, sequences, epochs=self._settings.retriever_epochs, seed=seed, on_step=report
            )
            return _Forgetting(retriever, known, 0, 0.0)
        windows = {}
        for user in sequences:
            with working_on(user):
                windows[user] = self._window_positions(user, known)
        retriever = finetune_retriever(
            self._parent_retriever,
            items,
            sequences,
            windows,
            epochs=self._settings.retriever_window_epochs,
            seed=seed,
            on_step=report,
        )
        # Fitting takes nearly all of the time: scoring what to forget stays at the end of the bar.
        return self._outdated(retriever, known)

    def _outdated(self, retriever: Retriever, known: ForgottenSet) -> _Forgetting:
        current, events = {}, {}
        for user in sorted(self._split.active):
            with working_on(user):
                events[user] = known.filter(user, self._split.visible[user])
                n_old = sum(event.event_id not in self._inputs.window_event_ids for event in events[user])
                current[user] = CurrentSequence(item_sequence(events[user]), n_old)
        gone = outdated(retriever, self._inputs.items, current, on_user=lambda _: self._stages.report(1.0))
        forgotten = ForgottenSet(
            {u: frozenset(events[u][p].event_id for p in positions) for u, positions in gone.items()}
        )
        considered = sum(max(0, min(s.n_old, len(s.items) - KEPT_NEWEST)) for s in current.values())
        return _Forgetting(retriever, known.union(forgotten), len(forgotten), len(forgotten) / max(1, considered))

    # -- update -------------------------------------------------------------------------------------------------------

    def _update(
        self, model: PeftModel, location: Location, index: RetrieverIndex, forgotten: ForgottenSet
    ) -> UpdateResult:
        settings = self._settings
        active = self._examples(index, forgotten)
        validation = [
            self._labelled(index, target.user_id, filtered(forgotten, target.user_id, target.before), target.item_id)
            for target in self._split.validation
        ]
        config = UpdateConfig(
            epochs=settings.update_epochs if self._parent else settings.bootstrap_epochs,
            learning_rate=settings.learning_rate,
            consistency=settings.consistency_weights,
            seed=self._inputs.seed,
        )
        inactive = self._inactive_prompts(index, forgotten) if self._parent else []
        return update(
            model,
            location.layers,
            active,
            inactive,
            validation,
            self._builder.label_ids,
            config,
            on_step=self._stages.report,
        )

    def _examples(self, index: RetrieverIndex, forgotten: ForgottenSet) -> list[Labelled]:
        """The trainable users' window interactions as targets, at most `max_train_examples`, drawn with the seed."""
        positions = []
        for user in self._learned_users(trainable_only=True):
            events = forgotten.filter(user, self._split.visible[user])
            positions += [
                (user, p) for p in range(1, len(events)) if events[p].event_id in self._inputs.window_event_ids
            ]
        rng = np.random.default_rng(self._inputs.seed)
        chosen = [positions[i] for i in rng.permutation(len(positions))[: self._settings.max_train_examples]]
        examples = []
        for user, position in chosen:
            sequence = filtered(forgotten, user, self._split.visible[user])
            examples.append(self._labelled(index, user, sequence[:position], sequence[position]))
        return examples

    def _labelled(self, index: RetrieverIndex, user: UserId, history: Sequence[ItemId], target: ItemId) -> Labelled:
        with working_on(user):
            example = make_example(
                user,
                history,
                target,
                index,
                self._pool,
                n_candidates=self._settings.rank_candidates,
                own=frozenset(item_sequence(self._split.visible[user])),
                seed=self._inputs.seed,
            )
            return Labelled(build_prompt(self._builder, index, history, example.candidates), example.target_index)

    def _inactive_prompts(self, index: RetrieverIndex, forgotten: ForgottenSet) -> list[Prompt]:
        """What inactive users would be asked now: their histories and retrieved candidates."""
        users = self._sample(self._split.trainable - self._split.active)[: self._settings.max_train_examples // 4]
        prompts = []
        for user in users:
            with working_on(user):
                history = filtered(forgotten, user, self._split.visible[user])
                candidates = self._served_candidates(index, user, history)
                if history and candidates:
                    prompts.append(build_prompt(self._builder, index, history, candidates))
        return prompts

    # -- what the steps share -----------------------------------------------------------------------------------------

    def _learned_users(self, *, trainable_only: bool = False) -> list[UserId]:
        """Users whose visible interactions may be targets; validation users' last one is not visible."""
        allowed = self._split.trainable if trainable_only else frozenset(self._split.visible) - self._inputs.panel
        return sorted(allowed & self._split.active)

    def _old_events(self, user: UserId) -> tuple:  # type: ignore[type-arg]
        return tuple(e for e in self._split.visible[user] if e.event_id not in self._inputs.window_event_ids)

    def _window_positions(self, user: UserId, known: ForgottenSet) -> frozenset[int]:
        events = known.filter(user, self._split.visible[user])
        return frozenset(p for p, event in enumerate(events) if event.event_id in self._inputs.window_event_ids)

    def _served_candidates(self, index: RetrieverIndex, user: UserId, history: Sequence[ItemId]) -> list[ItemId]:
        """What the service would rank: the retriever's top K outside the full history, in the order of the user's
        hash.
        """
        seen = frozenset(item_sequence(self._split.visible[user]))
        found = [item for item, _ in index.candidates(history, self._settings.rank_candidates, exclude=seen)]
        return candidate_order(found, user)

    def _sample(self, users: frozenset[UserId]) -> list[UserId]:
        """All of the users in a seeded order."""
        ordered = sorted(users)
        rng = np.random.default_rng(self._inputs.seed)
        return [ordered[i] for i in rng.permutation(len(ordered))]
