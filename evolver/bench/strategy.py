"""What the benchmark compares: a strategy makes a version of what is known by a window's end."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from evolver.inputs import EvolutionInputs
from evolver.locate import Location
from evolver.scoring import Version
from evolver.splits import Split
from shared.config import Settings
from shared.ranking import Blends


@dataclass(frozen=True, slots=True)
class Task:
    """One update, as one strategy sees it.

    `inputs` are all histories by the window's end, with the window's events marked; `split` says who may be learned
    from. `bootstrap` is the folder of the version that was made from the past alone, the same for all strategies;
    `parent` that of the strategy's own previous version (the bootstrap at first); `out` an empty folder for
    the files of the new one. `report(stage, share)` feeds the progress bar.
    """

    inputs: EvolutionInputs
    split: Split
    bootstrap: Path
    parent: Path
    out: Path
    settings: Settings
    report: Callable[[str, float], None]


@dataclass(frozen=True, slots=True)
class Cost:
    """What learning took, with everything that it needs (Locate, Forget, teacher passes and validation included).

    `seconds` by stage (on a CPU the processor's, see `machine.clock`); loading the base, the same for all, is in none.
    `examples`: passes of training prompts forward and backward (prompts times epochs). Tokens are those of the prompts,
    padding not counted (of some, parts of the pass are kept and not computed again). `added_memory_mib`: see
    `added_memory`.
    """

    seconds: Mapping[str, float]
    examples: int
    tokens_forward: int
    tokens_backward: int
    trainable_parameters: int
    lora_parameters: int
    added_memory_mib: float

    def __add__(self, later: Cost) -> Cost:
        """Both, one after the other."""
        stages = dict.fromkeys([*self.seconds, *later.seconds])
        return Cost(
            seconds={stage: self.seconds.get(stage, 0.0) + later.seconds.get(stage, 0.0) for stage in stages},
            examples=self.examples + later.examples,
            tokens_forward=self.tokens_forward + later.tokens_forward,
            tokens_backward=self.tokens_backward + later.tokens_backward,
            trainable_parameters=max(self.trainable_parameters, later.trainable_parameters),
            lora_parameters=max(self.lora_parameters, later.lora_parameters),
            added_memory_mib=max(self.added_memory_mib, later.added_memory_mib),
        )


@dataclass(frozen=True, slots=True)
class Learned:
    """The version that came of it, ready to be evaluated (its files lie in the task's `out`), and how.

    `validation_loss`: the trained LoRA's on held-out users before and after Update, in nats per prompt, where there was
    one; it includes the consistency term where that takes part.
    """

    version: Version
    blend: Blends
    location: Location
    forgotten_interactions: int
    forgotten_share: float
    consistency: float
    validation_loss: tuple[float, float] | None
    cost: Cost


@dataclass(frozen=True, slots=True)
class Strategy:
    """`what`: one plain sentence for the report."""

    name: str
    what: str
    learn: Callable[[Task], Learned]
