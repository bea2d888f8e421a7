"""One evolution from data to files: evaluate, learn (Locate, Forget, Update), evaluate. Knows neither Redis nor Celery.

Without a parent it is the bootstrap: the retriever is trained from scratch, nothing is forgotten, and a fresh LoRA
trains on all layers.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from evolver.evaluate import gains, paired_interval
from evolver.inputs import EvolutionInputs, ParentVersion, PipelineResult, Progress, ShouldStop
from evolver.learning import Learner
from evolver.lora import TARGET_MODULES
from evolver.recipe import BOOTSTRAP, EVOREC
from evolver.scoring import (
    POPULARITY_ONLY,
    UNIFORM,
    WEIGHTED,
    Report,
    Version,
    evaluate_version,
    judged_candidates,
    make_cases,
)
from evolver.splits import Target, split
from evolver.stages import Stages
from evolver.trunk import decoder_layers
from shared.config import Settings
from shared.manifest import Gate
from shared.ranking import Blends

GATE_LEAST_USERS = 10


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
    return _Run(inputs, parent, settings, Stages(progress, should_stop)).execute(out)


class _Run:
    """The steps of one evolution, in order."""

    def __init__(
        self, inputs: EvolutionInputs, parent: ParentVersion | None, settings: Settings, stages: Stages
    ) -> None:
        self._inputs, self._settings, self._stages = inputs, settings, stages
        self._split = split(
            inputs, max_panel=settings.max_evaluated_users, max_validation=settings.max_validation_users
        )
        folder, recipe = (parent.folder, EVOREC) if parent else (None, BOOTSTRAP)
        self._learner = Learner(inputs, self._split, folder, settings, recipe, stages)
        self._parent_blend = parent.manifest.blend if parent else None

    def execute(self, out: Path) -> PipelineResult:
        """All stages; files are written last."""
        stages, learner = self._stages, self._learner
        with stages.stage("evaluate before"):
            # What the domain answered until now: the parent, or popularity where there is none.
            before = self._evaluate(learner.before, self._parent_blend or POPULARITY_ONLY)
        lesson = learner.learn()
        with stages.stage("evaluate"):
            blends = learner.blend(lesson.version, self._parent_blend)
            after = self._evaluate(lesson.version, blends)
        lesson.save(out)
        return PipelineResult(
            located_layers=lesson.location.layers,
            layer_votes=lesson.location.votes,
            layer_similarity=lesson.location.similarity,
            n_layers=len(decoder_layers(learner.model)),
            trainable_parameters=lesson.trainable_parameters,
            lora_parameters=lesson.lora_parameters,
            forgotten_interactions=lesson.forgetting.count,
            forgotten_share=lesson.forgetting.share,
            lora_rank=learner.model.peft_config["default"].r,
            target_modules=TARGET_MODULES,
            blend=blends,
            metrics={"before": before.metrics, "after": after.metrics},
            gate=gate(self._split.panel, before, after, seed=self._inputs.seed),
            stage_seconds=stages.seconds,
            train_examples=lesson.updated.trained_prompts,
        )

    def _evaluate(self, version: Version, blends: Blends) -> Report:
        examples = self._learner.examples
        n = judged_candidates(self._settings)
        cases = make_cases(self._split.panel, examples.popularity, seed=self._inputs.seed, n=n)
        return evaluate_version(
            version,
            blends,
            cases,
            examples.builder,
            examples.popularity,
            k=self._settings.rank_candidates,
            on_batch=self._stages.report,
        )


def gate(panel: Sequence[Target], before: Report, after: Report, *, seed: int) -> Gate:
    """Not significantly worse: no group's paired 95 % interval of NDCG@3 lies below zero on either candidate set. Of
    groups smaller than `GATE_LEAST_USERS` it says nothing: resampling one or two users gives no interval.
    """
    reasons = []
    for name in (UNIFORM, WEIGHTED):
        for group, wanted in (("U_A", True), ("U_I", False)):
            users = [target.user_id for target in panel if target.active is wanted]
            if len(users) < GATE_LEAST_USERS:
                continue
            old, new = (gains([report.ranks[name][user] for user in users], 3) for report in (before, after))
            low, high = paired_interval(old, new, seed=seed)
            if high < 0:
                reasons.append(
                    f"{name}ndcg@3 of {group} fell by {-high:.3f} to {-low:.3f} (95 % interval, {len(users)} users)"
                )
    return Gate(passed=not reasons, reasons=tuple(reasons))
