"""What a call of `evorec bench` asks for, and the work and results of one of its seeds."""

from __future__ import annotations

import os
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deploy.files import has_stand_in_title, read_interactions, read_items
from deploy.output import show_bad_lines
from shared.base_model import base_model_info
from shared.config import SHIPPED_BASE_MODEL, Settings
from shared.errors import InvalidInput, NotFound
from shared.types import Item

if TYPE_CHECKING:
    from evolver.bench.runner import SeedRun
    from evolver.bench.timeline import Timeline
    from evolver.pretrain.config import PretrainConfig

BASE_SEED = 0  # its order of events of one moment is the base's, for all seeds


@dataclass(frozen=True, slots=True)
class Size:
    """How much is done: of examples and users per strategy and round, rounds, and steps of the base (0: the shipped one
    as it is; it was made from generated stores, so it has seen nothing of anybody's data). `settings` as well;
    `leave_one_out`: whether the retriever is also tried in that protocol, with the first seed of all. `updates`: per
    strategy and round; the examples are then of each.
    """

    train_examples: int
    evaluated: int
    rounds: int
    base_scale: float
    leave_one_out: bool = True
    updates: int = 1
    settings: Mapping[str, int] = field(default_factory=dict)


FULL = Size(train_examples=1500, evaluated=1000, rounds=3, base_scale=0.35)
QUICK = Size(
    train_examples=150,
    evaluated=100,
    rounds=1,
    base_scale=0.0,
    leave_one_out=False,
    settings={
        "retriever_epochs": 3,
        "retriever_window_epochs": 2,
        "max_located_users": 32,
        "max_validation_users": 48,
    },
)


@dataclass(frozen=True)
class Source:
    items: Path
    interactions: Path
    name: str
    settings: Settings
    fold: int = 0
    quiet: bool = False

    def timeline(self, seed: int) -> tuple[Timeline, dict[str, Any]]:
        """The dataset with its ties in the seed's order, and what a report says of it."""
        return self.first if seed == BASE_SEED else self._read(seed)

    @cached_property
    def first(self) -> tuple[Timeline, dict[str, Any]]:
        """The timeline of `BASE_SEED`; what is wrong with the files is shown this once, unless `quiet`."""
        return self._read(BASE_SEED)

    def _read(self, seed: int) -> tuple[Timeline, dict[str, Any]]:
        from evolver.bench.timeline import make_timeline

        catalog = read_items(self.items)
        events = read_interactions(self.interactions, seed=seed)
        if seed == BASE_SEED and not self.quiet:
            show_bad_lines(catalog, str(self.items))
            show_bad_lines(events, str(self.interactions))
        untitled = require_titles(catalog.rows, self.items)
        timeline = make_timeline(catalog.rows, events.rows, self.settings, seed=seed, fold=self.fold)
        return timeline, {
            "name": self.name,
            "items": len(timeline.items),
            "items_without_title": untitled,
            "users": len({event.user_id for event in timeline.events}),
            "interactions": len(timeline.events),
            "interactions_left_out": len(events.rows) - len(timeline.events) + events.n_bad,
            "from": timeline.events[0].timestamp,
            "past_until": timeline.past_until,
            "until": timeline.events[-1].timestamp,
        }


def require_titles(items: Sequence[Item], path: Path) -> int:
    """How many items have none; their brand and category stand in for it. Raises where that is all there is."""
    untitled = sum(has_stand_in_title(item) for item in items)
    if items and untitled == len(items):
        raise InvalidInput(
            f"No item of {path} has a title, and titles are what the LLM reads. Give each item a field `title`."
        )
    return untitled


@dataclass(frozen=True)
class Plan:
    """`strategies` by their names; `base` None: one is made from the past; `processes`: so many at once; `shared`: with
    others on the same GPU, so that its seconds count for nothing.
    """

    source: Source
    strategies: tuple[str, ...]
    base: str | None
    size: Size
    out: Path
    processes: int = 1
    shared: bool = False

    @cached_property
    def settings(self) -> Settings:
        """Those of all seeds, without the base."""
        from evolver.device import device_of_run

        settings = self.source.settings
        changed = {"max_train_examples": self.size.train_examples, **self.size.settings}
        return settings.model_copy(update={**changed, "train_device": device_of_run(settings.train_device)})

    @property
    def threads(self) -> int | None:
        """Of each of several processes; None where there is one, or the environment decides."""
        if self.processes == 1 or ("OMP_NUM_THREADS" in os.environ and not self.settings.train_threads):
            return None
        return self.settings.train_threads or max(1, len(os.sched_getaffinity(0)) // self.processes)

    def ensure_base(self, on_step: Callable[[float, str], None]) -> tuple[str, PretrainConfig | None]:
        """The base's name or folder, made now if need be, and how it was made."""
        from evolver.bench.base import ensure_base

        if self.base is not None or not self.size.base_scale:
            return self.base or str(SHIPPED_BASE_MODEL), None
        first, _ = self.source.first
        folder, config = ensure_base(
            first,
            self.settings.state_dir,
            scale=self.size.base_scale,
            device=self.settings.train_device,
            on_step=on_step,
        )
        return str(folder), config

    def refuse_other_arguments(self, seeds: Sequence[int]) -> None:
        """Raises `Conflict` where a seed's folder is of a run with other arguments, and what is wrong with a base that
        was named: both are known before one is made.
        """
        from evolver.bench.runner import ARGUMENTS

        if self.base is not None:
            try:
                base_model_info(self.base)
            except NotFound as error:
                raise NotFound(f"{error}".replace("EVOREC_BASE_MODEL=", "--base ")) from error
        for seed in seeds:
            if (self.folder(seed) / ARGUMENTS).is_file():
                timeline, _ = self.source.timeline(seed)
                run = self.seed_run(seed, timeline, self.base or str(SHIPPED_BASE_MODEL))
                run.refuse_other_arguments(but="base")

    def folder(self, seed: int) -> Path:
        return self.out / f"seed-{seed}"

    def has_leave_one_out(self, seed: int) -> bool:
        """Whether the retriever is tried in that protocol with this seed."""
        return self.size.leave_one_out and seed == BASE_SEED

    def steps(self, seed: int) -> list[Path]:
        """The folders of all that is to be done of a seed."""
        from evolver.bench.runner import steps

        alone = self.has_leave_one_out(seed)
        return steps(self.folder(seed), self.strategies, self.size.rounds, leave_one_out=alone)

    def seed_run(self, seed: int, timeline: Timeline, base: str) -> SeedRun:
        """All the work of a seed."""
        from evolver.bench.runner import SeedRun
        from evolver.bench.strategies import STRATEGIES, make_bootstrap

        settings = self.settings.model_copy(update={"seed": seed, "base_model": base})
        return SeedRun(
            timeline,
            [STRATEGIES[name] for name in self.strategies],
            make_bootstrap,
            settings,
            self.folder(seed),
            self.size.rounds,
            self.size.evaluated,
            leave_one_out=self.has_leave_one_out(seed),
            updates=self.size.updates,
            shared=(self.shared or self.processes > 1) and settings.train_device != "cpu",
        )

    def write_results(self, run: SeedRun, about: Mapping[str, Any], config: PretrainConfig | None) -> Path:
        """What was found of a seed whose work is done; returns the file. `about`: what is said of the dataset."""
        from evolver.bench.base import about_base
        from evolver.bench.machine import machine
        from evolver.bench.results import collect, write_results

        path = run.folder / "results.json"
        results = {
            "command": self._command(),
            "machine": machine(run.settings.train_device) | ({"threads": self.threads} if self.threads else {}),
            "data": about,
            "seed": run.settings.seed,
            "base": about_base(run.settings.base_model, config),
            "arguments": run.arguments(),
            "strategies": {strategy.name: strategy.what for strategy in run.strategies},
            **collect(run.folder, self.strategies, self.size.rounds),
        }
        write_results(path, results)
        return path

    def _command(self) -> str:
        """What to type for the same figures, with what differs from the defaults; settings are among the arguments."""
        source, size, base = self.source, self.size, self.base
        words = ["evorec bench", "--items", _short(source.items), "--interactions", _short(source.interactions)]
        usual = FULL if size.settings == FULL.settings else QUICK
        words += ["--quick"] if usual is QUICK else []
        options = {
            "--rounds": (size.rounds, usual.rounds),
            "--max-train-examples": (size.train_examples, usual.train_examples),
            "--updates-per-round": (size.updates, usual.updates),
            "--max-evaluated": (size.evaluated, usual.evaluated),
            "--base-scale": (size.base_scale, usual.base_scale),
            "--fold": (source.fold, 0),
            "--processes": (self.processes, 1),
        }
        for option, (value, default) in options.items():
            words += [option, str(value)] if value != default else []
        if base is not None:
            words += ["--base", Path(base).name if Path(base).is_dir() else base]
        if source.name != usual_name(source.interactions):
            words += ["--name", shlex.quote(source.name)]
        return " ".join([*words, "--strategies", ",".join(self.strategies), "--out", "DIR"])


def usual_name(interactions: Path) -> str:
    """What a dataset is called unless a name is given: its folder's."""
    return interactions.absolute().parent.name or "data"


def _short(path: Path) -> str:
    """A folder and a name: where the folder lies is this machine's own."""
    return "/".join(path.absolute().parts[-2:])
