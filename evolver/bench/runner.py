"""The benchmark of one seed: bootstrap, then every strategy in every round, each step kept as soon as it is done.

    FOLDER/arguments.json            what the steps below were made with
    FOLDER/leave-one-out/            the retriever in the usual protocol: result.json
    FOLDER/bootstrap/                the version of the past: version/, result.json
    FOLDER/rules/round-1/            plain rules on the same candidates: scores.npz, result.json
    FOLDER/STRATEGY/round-1/         version/, scores.npz, result.json
    *.lock                           empty; beside each of these

A step is written aside and renamed, so a run that ended anywhere goes on behind its last finished step. Several
processes may work in one folder, each on strategies of its own: a step that they share is made by the first of them.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property, partial, reduce
from operator import add
from pathlib import Path
from typing import Any, Protocol

from evolver.bench.bad_input import require_learners
from evolver.bench.base import data_hash
from evolver.bench.cases import CATALOG_SET, KINDS, Round, make_round, split_of, targets_of
from evolver.bench.leave_one_out import leave_one_out
from evolver.bench.locks import alone_in
from evolver.bench.machine import code
from evolver.bench.paired import GROUPS
from evolver.bench.rules import score_rules
from evolver.bench.scores import CaseScores, of_version, save_scores
from evolver.bench.strategy import Learned, Strategy, Task
from evolver.bench.timeline import Timeline
from evolver.disk import room_in
from evolver.inputs import EvolutionInputs
from evolver.scoring import Version, report_part, retrieved_cases, score_cases
from evolver.splits import Split
from shared.base_model import base_model_hash
from shared.config import Settings
from shared.errors import Conflict
from shared.prompt import PromptBuilder

RULES_FOLDER, BOOTSTRAP_FOLDER, LEAVE_ONE_OUT_FOLDER, VERSION_FOLDER = "rules", "bootstrap", "leave-one-out", "version"
RESULT, SCORES, ARGUMENTS = "result.json", "scores.npz", "arguments.json"
EVALUATE = "evaluate"

# What a version, and what is measured of it, depends on.
SETTINGS_THAT_COUNT = (
    "train_device",
    "dtype",
    "lora_rank",
    "prompt_history",
    "title_tokens",
    "rank_candidates",
    "positive_events",
    "popularity_half_life_days",
    "max_train_examples",
    "max_located_users",
    "max_validation_users",
    "retriever_members",
    "retriever_dropout",
    "retriever_epochs",
    "retriever_window_epochs",
    "bootstrap_epochs",
    "update_epochs",
    "learning_rate",
    "consistency_weights",
)

Bootstrap = Callable[[EvolutionInputs, Split, Path, Settings, Callable[[str, float], None]], Learned]


class Watcher(Protocol):
    """Whoever shows how far the run is."""

    def step(self, title: str, done: int, total: int) -> None: ...

    def report(self, stage: str, share: float) -> None: ...


@dataclass(frozen=True)
class SeedRun:
    """One dataset, base and seed. `settings.base_model` is a base that has seen nothing after the past.
    `leave_one_out`: whether the retriever is tried in that protocol too. `shared`: other processes use the same GPU.
    `updates`: so many times a round a strategy learns, from as many parts of the window; what is asked stays the same.
    """

    timeline: Timeline
    strategies: Sequence[Strategy]
    bootstrap: Bootstrap
    settings: Settings
    folder: Path
    rounds: int
    max_evaluated: int
    leave_one_out: bool = False
    shared: bool = False
    updates: int = 1

    def run(self, watcher: Watcher) -> None:
        """Do what is not done yet. Raises `Conflict` where the folder is of a run with other arguments, `InvalidInput`
        where a round has nobody to learn from or to ask.
        """
        self._keep_arguments()
        if not is_done(self.folder / BOOTSTRAP_FOLDER):
            for number in range(1, self.rounds + 1):  # the last round would say so after hours
                window = self.timeline.window(number)
                targets_of(window, split_of(window.inputs, self.settings))
                require_learners(number, [len(part.trainable & part.active) for _, part in self.learned_from(number)])
        names = [strategy.name for strategy in self.strategies]
        total, done = len(steps(self.folder, names, self.rounds, leave_one_out=self.leave_one_out)), 0
        if self.leave_one_out:
            watcher.step("leave one out", done, total)
            self.try_leave_one_out(watcher)
            done += 1
        watcher.step("bootstrap", done, total)
        _once(self.folder / BOOTSTRAP_FOLDER, partial(self._bootstrap, watcher))
        for number in range(1, self.rounds + 1):
            asked = _Asked(self, number)
            done += 1
            watcher.step(f"round {number}: candidates and rules", done, total)
            _once(self.folder / RULES_FOLDER / f"round-{number}", asked.rules)
            for strategy in self.strategies:
                done += 1
                watcher.step(f"round {number}: {strategy.name}", done, total)
                folder = self.folder / strategy.name
                _once(folder / f"round-{number}", partial(asked.learn, strategy, watcher))
                # The parent of this round's version has done its duty.
                shutil.rmtree(folder / f"round-{number - 1}" / VERSION_FOLDER, ignore_errors=True)
        watcher.step("done", total, total)

    def try_leave_one_out(self, watcher: Watcher) -> None:
        """That step alone, which depends on no other. Raises `Conflict` as `run` does."""
        self._keep_arguments()
        _once(self.folder / LEAVE_ONE_OUT_FOLDER, partial(self._leave_one_out, watcher))

    @cached_property
    def builder(self) -> PromptBuilder:
        return PromptBuilder.load(self.settings)

    @property
    def bootstrap_version(self) -> Path:
        return self.folder / BOOTSTRAP_FOLDER / VERSION_FOLDER

    def learned_from(self, number: int) -> list[tuple[EvolutionInputs, Split]]:
        """What a strategy learns from in a round, update by update, and who may be learned from in each."""
        parts = self.timeline.updates(number, self.updates)
        return [(inputs, split_of(inputs, self.settings)) for inputs in parts]

    def version_before(self, strategy: Strategy, number: int) -> Path:
        """What the strategy goes on from in a round."""
        if number == 1:
            return self.bootstrap_version
        return self.folder / strategy.name / f"round-{number - 1}" / VERSION_FOLDER

    def arguments(self) -> dict[str, Any]:
        """What all steps have in common. More strategies, rounds or seeds may come later."""
        everything = self.timeline.known_by(len(self.timeline.events))
        return {
            "data": data_hash(everything),
            "seed": self.timeline.seed,
            "base": base_model_hash(self.settings.base_model),
            "max_evaluated": self.max_evaluated,
            # A later call must not report these steps' seconds as if they had been alone.
            **({"shared": True} if self.shared else {}),
            **({"updates_per_round": self.updates} if self.updates > 1 else {}),
            **({"fold": self.timeline.fold} if self.timeline.fold else {}),
            **self.settings.model_dump(mode="json", include=set(SETTINGS_THAT_COUNT)),
            # A set has no order of its own.
            "positive_events": sorted(self.settings.positive_events),
        }

    def refuse_other_arguments(self, *, but: str | None = None) -> None:
        """Raises `Conflict` where the folder is of a run with other arguments. `but`: one that is not known yet."""
        path, wanted = self.folder / ARGUMENTS, self.arguments()
        before = json.loads(path.read_text()) if path.is_file() else wanted
        differ = [name for name in {**before, **wanted} if name != but and before.get(name) != wanted.get(name)]
        if differ:
            said = "; ".join(
                f"{name} was {before.get(name, 'not given')}, now {wanted.get(name, 'not given')}" for name in differ
            )
            raise Conflict(
                f"{self.folder} holds a benchmark with other arguments ({said}). Go on with those, or give "
                "another --out."
            )

    def _keep_arguments(self) -> None:
        path = self.folder / ARGUMENTS
        with alone_in(path):
            self.refuse_other_arguments()
            if not path.is_file():
                aside = path.with_suffix(".new")
                aside.write_text(json.dumps(self.arguments(), indent=1) + "\n")
                aside.replace(path)

    def _leave_one_out(self, watcher: Watcher, _out: Path) -> dict[str, Any]:
        return leave_one_out(self.timeline, self.settings, partial(watcher.report, "retriever"))

    def _bootstrap(self, watcher: Watcher, out: Path) -> dict[str, Any]:
        past, version = self.timeline.past, out / VERSION_FOLDER
        version.mkdir()
        learned = self.bootstrap(past, split_of(past, self.settings), version, self.settings, watcher.report)
        return _about(learned)


@dataclass(frozen=True)
class _Asked:
    """One round of a run; what it needs is made by the first step that is not done yet."""

    seed_run: SeedRun
    number: int

    @cached_property
    def round(self) -> Round:
        run = self.seed_run
        return make_round(run.timeline.window(self.number), run.settings, max_evaluated=run.max_evaluated)

    @cached_property
    def learned_from(self) -> list[tuple[EvolutionInputs, Split]]:
        return self.seed_run.learned_from(self.number)

    def rules(self, out: Path) -> dict[str, Any]:
        """Scores of the plain rules, and who is asked."""
        save_scores(out / SCORES, score_rules(self.round))
        return {
            "window_until": self.round.window_until,
            "window_interactions": len(self.round.inputs.window),
            "active_users": len(self.round.split.active),
            "known_items": len(self.round.inputs.items),
            "population": {
                kind: dict(zip(GROUPS[:2], question.population, strict=True))
                for kind, question in self.round.questions.items()
            },
        }

    def learn(self, strategy: Strategy, watcher: Watcher, out: Path) -> dict[str, Any]:
        """A strategy's version of the round's end, and what its experts say of every case."""
        run, learned = self.seed_run, self._updated(strategy, watcher, out)
        began = time.monotonic()
        scores = ask(learned.version, self.round, run.builder, run.settings, partial(watcher.report, EVALUATE))
        save_scores(out / SCORES, scores)
        return {**_about(learned), "evaluation_seconds": time.monotonic() - began}

    def _updated(self, strategy: Strategy, watcher: Watcher, out: Path) -> Learned:
        """The last of the round's updates, at the cost of all; each goes on from the one before."""
        *earlier, last = self.learned_from
        parent, costs = self.seed_run.version_before(strategy, self.number), []
        for number, part in enumerate(earlier, 1):
            version = out / f"update-{number}"
            costs.append(self._update(strategy, part, parent, version, watcher).cost)
            parent = version
        learned = self._update(strategy, last, parent, out / VERSION_FOLDER, watcher)
        for number in range(1, len(self.learned_from)):
            shutil.rmtree(out / f"update-{number}")
        return replace(learned, cost=reduce(add, [*costs, learned.cost]))

    def _update(
        self, strategy: Strategy, part: tuple[EvolutionInputs, Split], parent: Path, version: Path, watcher: Watcher
    ) -> Learned:
        inputs, learners = part
        version.mkdir()
        return strategy.learn(
            Task(
                inputs=inputs,
                split=learners,
                bootstrap=self.seed_run.bootstrap_version,
                parent=parent,
                out=version,
                settings=self.seed_run.settings,
                report=watcher.report,
            )
        )


def steps(folder: Path, strategies: Sequence[str], rounds: int, *, leave_one_out: bool) -> list[Path]:
    """The folders of all that is to be done of a seed; `is_done` says whether they are."""
    return [
        *([folder / LEAVE_ONE_OUT_FOLDER] if leave_one_out else []),
        folder / BOOTSTRAP_FOLDER,
        *(folder / name / f"round-{n}" for n in range(1, rounds + 1) for name in (RULES_FOLDER, *strategies)),
    ]


def is_done(step: Path) -> bool:
    """Whether a step's folder has its result, which it has from the moment it appears."""
    return (step / RESULT).is_file()


def ask(
    version: Version, a_round: Round, builder: PromptBuilder, settings: Settings, report: Callable[[float], None]
) -> dict[str, CaseScores]:
    """What a version says of every kind of target and candidate set; the catalog's candidates are its retriever's."""
    tables: dict[str, CaseScores] = {}
    n_tables = sum(len(question.cases) + 1 for question in a_round.questions.values())
    for kind in KINDS:
        question = a_round.questions[kind]
        found = retrieved_cases(version, question.targets, settings.rank_candidates, question.popularity)
        for name, cases in {**question.cases, CATALOG_SET: found}.items():
            part = partial(report_part, report, len(tables), n_tables)
            tables[f"{kind}/{name}"] = of_version(score_cases(version, cases, builder, question.popularity, part))
    return tables


def _about(learned: Learned) -> dict[str, Any]:
    return {
        "blend": learned.blend.model_dump(),
        "location": asdict(learned.location),
        "forgotten_interactions": learned.forgotten_interactions,
        "forgotten_share": learned.forgotten_share,
        "consistency": learned.consistency,
        "validation_loss": learned.validation_loss,
        "cost": {**asdict(learned.cost), "seconds": dict(learned.cost.seconds)},
        "code": code(),
    }


def _once(folder: Path, make: Callable[[Path], Mapping[str, Any]]) -> None:
    """Make a step's folder, unless it is there; it appears whole or not at all. Waits for another process at it."""
    with alone_in(folder):
        if is_done(folder):
            return
        aside = folder.with_name(f"{folder.name}.new")
        shutil.rmtree(aside, ignore_errors=True)  # of a run that ended in the middle of it
        aside.mkdir()
        with room_in(aside):
            result = make(aside)
            (aside / RESULT).write_text(json.dumps(result, indent=1) + "\n")
        aside.rename(folder)
