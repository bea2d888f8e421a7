"""The learner: Locate, Forget and Update as a recipe says, and the blend. The evolver and the benchmark both run it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

import structlog
import torch

from evolver.blend import choose_blend
from evolver.disk import room_in
from evolver.examples import Examples
from evolver.forget import CurrentSequence, outdated
from evolver.inputs import EvolutionInputs, n_rehearsed, working_on
from evolver.locate import Location, locate
from evolver.lora import load_with_lora, lora_parameters, save_lora
from evolver.recipe import Negatives, Recipe, Start, Targets, Unasked, top_layers
from evolver.retriever_training import renew_retriever, retriever_config, train_retriever
from evolver.scoring import Version, judged_candidates, make_cases, retrieved_cases, score_cases
from evolver.splits import Split, filtered, item_sequence
from evolver.stages import Stages
from evolver.trunk import decoder_layers
from evolver.update import Labelled, UpdateConfig, UpdateResult, update
from evolver.work import Work, tokens, work_of_update
from shared.config import Settings
from shared.errors import EvorecError
from shared.forgotten import ForgottenSet
from shared.ranking import Blends
from shared.retriever import Retriever, RetrieverIndex
from shared.types import Interaction

if TYPE_CHECKING:
    from peft import PeftModel

log = structlog.get_logger(__name__)

BYTES_PER_WEIGHT = 4  # float32
NEAR_SHARE = 0.5  # of a training prompt's negatives, where some are near ones (ADR 0026)


@dataclass(frozen=True, slots=True)
class Forgetting:
    """The renewed retriever, the set that applies from now on, and how many of the considered interactions went."""

    retriever: Retriever
    forgotten: ForgottenSet
    count: int = 0
    share: float = 0.0


@dataclass(frozen=True, slots=True)
class Lesson:
    """What came of learning: the new version, and how. `updated` is what Update chose."""

    version: Version
    location: Location
    forgetting: Forgetting
    updated: UpdateResult
    trainable_parameters: int
    lora_parameters: int

    def save(self, out: Path) -> None:
        """Write the version's adapter, retriever and forgotten set; raises `DiskFull` without room for them."""
        retriever = self.forgetting.retriever
        in_retriever = sum(value.numel() for value in retriever.state_dict().values())
        with room_in(out, needed=BYTES_PER_WEIGHT * (in_retriever + self.lora_parameters)):
            save_lora(self.version.model, out)
            retriever.save(out)
            self.forgetting.forgotten.save(out)


class Learner:
    """Makes a version from a window by a recipe, in the stages "locate", "forget" and "update".

    `parent` is the folder of the version to go on from; None at the bootstrap, where nothing is known yet. `model` is
    trained in place; `work` is what the steps so far have put through it.
    """

    def __init__(
        self,
        inputs: EvolutionInputs,
        split: Split,
        parent: Path | None,
        settings: Settings,
        recipe: Recipe,
        stages: Stages,
    ) -> None:
        if settings.train_threads:
            torch.set_num_threads(settings.train_threads)
        self._inputs, self._split, self._settings = inputs, split, settings
        self._recipe, self._stages = recipe, stages
        self._is_bootstrap = parent is None
        self.examples = Examples(inputs, split, settings)
        # What the parent knows, read once: its retriever over today's catalog, and what it has forgotten. At the
        # bootstrap its place is taken by an untrained retriever, whose weights are to be the same in equal runs.
        torch.manual_seed(inputs.seed)
        forgotten = ForgottenSet.load(parent) if parent else ForgottenSet()
        self._known = forgotten if inputs.known is None else forgotten.among(inputs.known)
        self._parent_retriever = Retriever.load(parent) if parent else Retriever([])
        self._parent_index = RetrieverIndex(self._parent_retriever, inputs.items)
        start = parent if recipe.start is Start.PARENT else None
        self.model: PeftModel = load_with_lora(settings, start, seed=inputs.seed)
        self.work = Work()

    @property
    def before(self) -> Version:
        """What training starts from, as long as it has not begun."""
        model = None if self._is_bootstrap else self.model
        return Version(model, self._parent_index, self._known)

    def learn(self) -> Lesson:
        """All stages. Raises `EvorecError` where the retriever's training diverges."""
        stages = self._stages
        with stages.stage("locate"):
            location = self._locate()
        with stages.stage("forget"):
            forgetting = self._forget()
        index = RetrieverIndex(forgetting.retriever, self._inputs.items)
        with stages.stage("update"):
            updated = self._update(location, index, forgetting.forgotten)
        sizes = [(layer, parameter.numel()) for layer, _, parameter in lora_parameters(self.model)]
        return Lesson(
            Version(self.model, index, forgetting.forgotten),
            location,
            forgetting,
            updated,
            trainable_parameters=sum(size for layer, size in sizes if layer in location.layers),
            lora_parameters=sum(size for _, size in sizes),
        )

    def blend(self, version: Version, parent: Blends | None) -> Blends:
        """The weights that explain validation best, active and inactive users together; a parent's are the prior."""
        targets = (*self._split.validation, *self._split.quiet_validation)
        builder, popularity, settings = self.examples.builder, self.examples.popularity, self._settings
        drawn = make_cases(targets, popularity, seed=self._inputs.seed, n=judged_candidates(settings))
        retrieved = retrieved_cases(version, targets, settings.rank_candidates, popularity)
        *given, own = (score_cases(version, cases, builder, popularity) for cases in (*drawn.values(), retrieved))
        self.work += Work(tokens_forward=sum(one.tokens for scored in (*given, own) for one in scored))
        return choose_blend(given, own, parent)

    def validation(self, index: RetrieverIndex, forgotten: ForgottenSet) -> list[Labelled]:
        """The held-out users' prompts, with negatives as in training; `index` is the renewed retriever's."""
        near, near_share = self._negatives(index)
        return self.examples.validation(near, forgotten, near_share=near_share)

    def _negatives(self, renewed: RetrieverIndex) -> tuple[RetrieverIndex, float]:
        """Whose best some of the negatives are, and what share of them."""
        negatives = self._recipe.negatives
        index = self._parent_index if negatives is Negatives.PARENT else renewed
        return index, 0.0 if negatives is Negatives.EVEN else NEAR_SHARE

    # -- locate -------------------------------------------------------------------------------------------------------

    def _locate(self) -> Location:
        """The layers that the recipe's rule chooses; the top ones where it asks users and nobody can answer."""
        rule = self._recipe.layers
        # Another one in each round, or a rule that draws would draw the same layers in all of them.
        seed = (self._inputs.seed, len(self._inputs.histories))
        n_layers = len(decoder_layers(self.model))
        if isinstance(rule, Unasked):
            return _unasked(rule.choose(n_layers, seed), n_layers)
        pairs = self.examples.before_and_after(self._parent_index, self._known)
        asked = [*islice(pairs, self._settings.max_located_users)]
        if not asked:
            # Nobody can vote: the top layers, nearest to the answer, and still no more than may be trained.
            return _unasked(top_layers(n_layers, seed), n_layers)
        old, new = zip(*asked, strict=True)
        self.work += Work(tokens_forward=tokens(old) + tokens(new))
        return locate(self.model, old, new, rule=rule.choose, on_batch=self._stages.report)

    # -- forget -------------------------------------------------------------------------------------------------------

    def _forget(self) -> Forgetting:
        """Renew the retriever; where the recipe forgets, ask it what is outdated.

        Fitting takes nearly all of the time: scoring what to forget stays at the end of the bar. Raises `EvorecError`
        where the fit diverges.
        """
        renewed = self._renewed()
        if not renewed.is_finite():
            raise EvorecError(
                "the retriever's weights are not numbers: its training has diverged, nothing can be ranked by it; "
                "lower EVOREC_RETRIEVER_WINDOW_EPOCHS (for a first version EVOREC_RETRIEVER_EPOCHS) and evolve again"
            )
        return self._outdated(renewed) if self._recipe.forget else Forgetting(renewed, self._known)

    def _renewed(self) -> Retriever:
        """The parent's, fitted to the window; or one from scratch, where the recipe learns from everything."""
        if self._recipe.targets is Targets.EVERYTHING:
            return self._trained()
        rehearsing = self._recipe.rehearsing
        active = self.examples.users(Targets.WINDOW)
        rehearsed = self.examples.inactive_users(n_rehearsed(len(active)) if rehearsing else 0)
        sequences, places = {}, {}
        for user in (*active, *rehearsed):
            with working_on(user):
                events = self._known.filter(user, self._split.visible[user])
                sequences[user] = item_sequence(events)
                places[user] = self._window_places(events)
        return renew_retriever(
            self._parent_retriever,
            self._inputs.items,
            sequences,
            {user: places[user] for user in active},
            rehearsed,
            rehearsing=rehearsing,
            epochs=self._settings.retriever_window_epochs,
            seed=self._inputs.seed,
            on_step=self._stages.report,
            device=self.model.device,
        )

    def _window_places(self, events: Sequence[Interaction]) -> frozenset[int]:
        return frozenset(place for place, event in enumerate(events) if self._inputs.in_window(event))

    def _trained(self) -> Retriever:
        """A retriever from scratch, on everything."""
        known, visible = self._known, self._split.visible
        return train_retriever(
            self._inputs.items,
            {user: filtered(known, user, visible[user]) for user in self.examples.users(Targets.EVERYTHING)},
            epochs=self._settings.retriever_epochs,
            config=retriever_config(self._settings),
            seed=self._inputs.seed,
            on_step=self._stages.report,
            device=self.model.device,
        )

    def _outdated(self, renewed: Retriever) -> Forgetting:
        current, events = {}, {}
        for user in sorted(self._split.active):
            with working_on(user):
                events[user] = self._known.filter(user, self._split.visible[user])
                current[user] = CurrentSequence(item_sequence(events[user]), self._window_places(events[user]))
        gone = outdated(renewed, self._inputs.items, current, on_chunk=lambda _: self._stages.report(1.0))
        forgotten = ForgottenSet(
            {u: frozenset(events[u][p].event_id for p in positions) for u, positions in gone.items()}
        )
        considered = sum(len(sequence.considered) for sequence in current.values())
        share = len(forgotten) / max(1, considered)
        return Forgetting(renewed, self._known.union(forgotten), len(forgotten), share)

    # -- update -------------------------------------------------------------------------------------------------------

    def _update(self, location: Location, index: RetrieverIndex, forgotten: ForgottenSet) -> UpdateResult:
        settings, examples = self._settings, self.examples
        near, near_share = self._negatives(index)
        # As these users were served: what Forget says now, it says knowing the targets.
        active = examples.training(self._recipe.targets, near, self._known, near_share=near_share)
        validation = self.validation(index, forgotten)
        config = UpdateConfig(
            epochs=settings.bootstrap_epochs if self._is_bootstrap else settings.update_epochs,
            learning_rate=settings.learning_rate,
            consistency=settings.consistency_weights,
            seed=self._inputs.seed,
        )
        inactive = examples.inactive(index, forgotten) if self._recipe.consistency else []
        self.work += work_of_update(active, inactive, validation, config)
        result = update(
            self.model,
            location.layers,
            active,
            inactive,
            validation,
            examples.builder.label_ids,
            config,
            on_step=self._stages.report,
        )
        if active and result.loss_after >= result.loss_before:
            log.info("update_no_better_than_its_start", nats_per_prompt=result.loss_before, train_examples=len(active))
        return result


def _unasked(layers: tuple[int, ...], n_layers: int) -> Location:
    return Location(layers, (0,) * n_layers, (1.0,) * n_layers)
