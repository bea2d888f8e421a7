"""A pipeline of seconds in place of minutes: the real one's stages, files and manners, without a model.

For tests of what surrounds the algorithm (leases, crashes, publication); injected by parameter, never by a setting.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from evolver.inputs import Cancelled, EvolutionInputs, ParentVersion, PipelineResult, Progress, ShouldStop
from shared.config import Settings
from shared.forgotten import ForgottenSet
from shared.manifest import Gate
from shared.ranking import Blends, BlendWeights

STAGES = ("evaluate before", "locate", "forget", "update", "evaluate")


@dataclass(frozen=True)
class FakePipeline:
    """`stage_s`: seconds per stage. `trace`: a file that gets a line "pid stage" when a stage begins. `unasked`: groups
    of the panel in which there is nobody."""

    stage_s: float = 0.0
    trace: Path | None = None
    train_examples: int = 10
    gate_reasons: tuple[str, ...] = ()
    groups: tuple[str, ...] = ("U",)
    unasked: tuple[str, ...] = ()
    forgotten: ForgottenSet = ForgottenSet()  # noqa: RUF009 - immutable

    def __call__(
        self,
        inputs: EvolutionInputs,
        parent: ParentVersion | None,
        out: Path,
        settings: Settings,
        progress: Progress,
        should_stop: ShouldStop,
    ) -> PipelineResult:
        for stage in STAGES:
            self._run(stage, progress, should_stop)
        asked = {group: {"n": 1.0, "hr@1": 0.5, "ndcg@3": float("nan")} for group in self.groups}
        unasked = {group: {"n": 0.0, "hr@1": 0.0, "ndcg@3": 0.0} for group in self.unasked}
        learned = {user: len(events) for user, events in inputs.histories.items() if user not in inputs.panel}
        for name in ("adapter_config.json", "adapter_model.safetensors", "retriever.safetensors"):
            (out / name).write_text(json.dumps({"file": name, "learned": learned}))
        self.forgotten.save(out)
        return PipelineResult(
            located_layers=(1, 4, 7),
            layer_votes=(0, 3, 0, 0, 2, 0, 0, 1, 0, 0),
            layer_similarity=(0.9,) * 10,
            n_layers=10,
            trainable_parameters=30,
            lora_parameters=100,
            forgotten_interactions=2,
            forgotten_share=0.1,
            lora_rank=settings.lora_rank,
            target_modules=("q_proj",),
            blend=Blends.alike(BlendWeights()),
            metrics={"after": asked | unasked},
            gate=Gate(passed=not self.gate_reasons, reasons=self.gate_reasons),
            stage_seconds=dict.fromkeys(STAGES, self.stage_s),
            train_examples=self.train_examples,
        )

    def _run(self, stage: str, progress: Progress, should_stop: ShouldStop) -> None:
        if self.trace is not None:
            with self.trace.open("a") as trace:
                trace.write(f"{os.getpid()} {stage}\n")
        end = time.monotonic() + self.stage_s
        progress(stage, 0.0)
        while time.monotonic() < end:
            if should_stop():
                raise Cancelled
            time.sleep(0.02)
        progress(stage, 1.0)


@dataclass(frozen=True)
class Looking:
    """The fast pipeline that is chosen by what an evolution is given. Choosing may raise, or meddle with the world."""

    choose: Callable[[EvolutionInputs], FakePipeline]

    def __call__(
        self,
        inputs: EvolutionInputs,
        parent: ParentVersion | None,
        out: Path,
        settings: Settings,
        progress: Progress,
        should_stop: ShouldStop,
    ) -> PipelineResult:
        return self.choose(inputs)(inputs, parent, out, settings, progress, should_stop)


def meddling(meddle: Callable[[], object]) -> Looking:
    """The fast pipeline, and something that happens to the world while it runs."""

    def choose(_: EvolutionInputs) -> FakePipeline:
        meddle()
        return FakePipeline()

    return Looking(choose)
