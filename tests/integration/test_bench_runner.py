"""A benchmark's run with strategies that train nothing: what they get, what is kept, and going on after a crash."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from threading import Barrier, Thread

import numpy as np
import pytest

from evolver.bench.base import about_base, recipe
from evolver.bench.cases import DRAWN_SETS, KINDS
from evolver.bench.leave_one_out import leave_one_out
from evolver.bench.machine import code
from evolver.bench.paired import GROUPS, difference
from evolver.bench.results import BLEND, EVOREC, FROZEN, SETS, collect
from evolver.bench.runner import ARGUMENTS, BOOTSTRAP_FOLDER, RESULT, SCORES, SeedRun
from evolver.bench.scores import RETRIEVER, load_scores, save_scores
from evolver.bench.strategy import Learned, Strategy, Task
from evolver.bench.timeline import make_timeline
from evolver.inputs import EvolutionInputs
from evolver.splits import Split
from shared.config import Settings
from shared.errors import Conflict, InvalidInput
from shared.types import UserId
from tests import tiny_base
from tests.bench_support import SETTINGS, learned_nothing, make_interactions, make_items

ROUNDS = 2


class _Silent:
    def step(self, title: str, done: int, total: int) -> None:
        assert 0 <= done <= total, title

    def report(self, stage: str, share: float) -> None:
        assert 0.0 <= share <= 1.0, stage


@dataclass
class _Lab:
    """A run with two strategies of its own; `tasks` are what they were given, `crash_in` stops the run there."""

    base: Path
    folder: Path
    settings: Settings = SETTINGS
    tasks: list[tuple[str, Task]] = field(default_factory=list)
    bootstraps: int = 0
    crash_in: Callable[[str, Task], bool] = lambda name, task: False

    def run(self, **changes: object) -> None:
        replace(self.seed_run(), **changes).run(_Silent())  # type: ignore[arg-type]

    def seed_run(self) -> SeedRun:
        timeline = make_timeline(make_items(), make_interactions(), self.settings, seed=0)
        strategies = [Strategy(name, f"{name}.", self._learner(n)) for n, name in enumerate((FROZEN, EVOREC))]
        settings = self.settings.model_copy(update={"base_model": str(self.base)})
        return SeedRun(timeline, strategies, self._bootstrap, settings, self.folder, ROUNDS, max_evaluated=12)

    def collected(self) -> dict:  # type: ignore[type-arg]
        return collect(self.folder, [FROZEN, EVOREC], ROUNDS)

    def _bootstrap(
        self, inputs: EvolutionInputs, split: Split, out: Path, settings: Settings, report: Callable[[str, float], None]
    ) -> Learned:
        self.bootstraps += 1
        assert not split.trainable & inputs.panel
        return learned_nothing(inputs, out)

    def _learner(self, number: int) -> Callable[[Task], Learned]:
        def learn(task: Task) -> Learned:
            name = (FROZEN, EVOREC)[number]
            if self.crash_in(name, task):
                (task.out / "half").touch()
                raise KeyboardInterrupt
            assert (task.parent / "made").exists()
            assert not list(task.out.iterdir())
            self.tasks.append((name, task))
            task.report("update", 0.5)
            return learned_nothing(task.inputs, task.out)

        return learn


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_base.write_base(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def lab(base: Path, tmp_path_factory: pytest.TempPathFactory) -> _Lab:
    done = _Lab(base, tmp_path_factory.mktemp("bench") / "seed-0")
    done.run()
    return done


def test_strategies_go_on_from_their_own_version_and_all_from_one_bootstrap(lab: _Lab) -> None:
    assert lab.bootstraps == 1
    assert [name for name, _ in lab.tasks] == [FROZEN, EVOREC] * ROUNDS
    for number, (name, task) in enumerate(lab.tasks):
        assert task.bootstrap == lab.folder / "bootstrap" / "version"
        own = lab.folder / name / "round-1" / "version"
        assert task.parent == (task.bootstrap if number < 2 else own)
    assert lab.tasks[0][1].inputs is lab.tasks[1][1].inputs


def test_a_round_of_several_updates_goes_on_from_each_and_costs_them_all(base: Path, tmp_path: Path, lab: _Lab) -> None:
    often = _Lab(base, tmp_path / "seed-0")
    often.run(updates=3)
    assert [name for name, _ in often.tasks] == [FROZEN] * 3 + [EVOREC] * 3 + [FROZEN] * 3 + [EVOREC] * 3
    second = [task for _, task in often.tasks[9:]]
    assert second[0].parent == often.folder / EVOREC / "round-1" / "version"
    assert [task.parent for task in second[1:]] == [task.out for task in second[:-1]]
    assert len({task.inputs.window for task in second}) == 3
    mine, theirs = (one.collected()["rounds"][1] for one in (often, lab))
    assert mine["strategies"][EVOREC]["cost"]["examples"] == 3 * theirs["strategies"][EVOREC]["cost"]["examples"] == 30
    assert mine["strategies"][EVOREC]["cost"]["seconds"] == {"update": 6.0}
    assert mine["strategies"][EVOREC]["cost"]["trainable_parameters"] == 30
    for table, asked in theirs["asked"].items():
        assert mine["asked"][table]["users"] == asked["users"]
    kept = [path.name for path in (often.folder / EVOREC / "round-2").iterdir()]
    assert sorted(kept) == ["result.json", "scores.npz", "version"]
    with pytest.raises(Conflict, match="updates_per_round was 3, now not given"):
        often.run()


def test_updates_too_many_to_have_somebody_to_learn_from_are_refused(base: Path, tmp_path: Path) -> None:
    lab = _Lab(base, tmp_path / "seed-0")
    with pytest.raises(InvalidInput, match=r"Of round 1's 60 updates, \d+ \(the first of them number \d+\) have no"):
        lab.run(updates=60)
    assert lab.bootstraps == 0


def test_versions_that_nobody_goes_on_from_are_dropped(lab: _Lab) -> None:
    for name in (FROZEN, EVOREC):
        assert not (lab.folder / name / "round-1" / "version").exists()
        assert (lab.folder / name / f"round-{ROUNDS}" / "version" / "made").exists()


def test_all_strategies_are_asked_about_the_same_candidates(lab: _Lab) -> None:
    for number in (1, 2):
        of_rules = load_scores(lab.folder / "rules" / f"round-{number}" / SCORES)
        tables = [load_scores(lab.folder / name / f"round-{number}" / SCORES) for name in (FROZEN, EVOREC)]
        for kind in KINDS:
            for name in DRAWN_SETS:
                asked = [of_rules[f"{kind}/{name}"], *(table[f"{kind}/{name}"] for table in tables)]
                for other in asked[1:]:
                    np.testing.assert_array_equal(asked[0].users, other.users)
                    np.testing.assert_array_equal(asked[0].target, other.target)
                shares = [table[f"{kind}/{name}"].experts["popularity"] for table in tables]
                np.testing.assert_array_equal(shares[0], shares[1])
                np.testing.assert_allclose(shares[0], asked[0].experts["decayed popularity"], rtol=1e-6)


def test_results_have_every_figure_and_agree_with_the_saved_scores(lab: _Lab) -> None:
    collected = lab.collected()
    assert [one["round"] for one in collected["rounds"]] == [1, 2]
    found = collected["rounds"][0]["strategies"][EVOREC]
    assert (found["location"]["votes"], found["forgotten_share"]) == ([0, 3], 0.25)
    assert found["cost"]["seconds"] == {"update": 2.0}
    assert found["code"] == collected["bootstrap"]["code"] == code()
    table = load_scores(lab.folder / EVOREC / "round-1" / SCORES)["next/uniform"]
    retriever = found["metrics"]["next"]["uniform"][RETRIEVER]
    assert retriever["U"]["hr@3"] == pytest.approx((table.rank_by(RETRIEVER) <= 3).mean())
    assert retriever["U"]["n"] == retriever["U_A"]["n"] + retriever["U_I"]["n"] == len(table.users)
    for kind in KINDS:
        population = collected["rounds"][0]["population"][kind]
        assert all(population[group] >= found["metrics"][kind]["uniform"][BLEND][group]["n"] for group in GROUPS[:2])
        for name in SETS:
            assert set(found["metrics"][kind][name][BLEND]) == set(GROUPS)
            of_table = collected["rounds"][0]["asked"][f"{kind}/{name}"]
            for group, figures in found["metrics"][kind][name][BLEND].items():
                if figures["n"]:
                    k = 10 if name == "catalog" else 3
                    other = collected["rounds"][0]["strategies"][FROZEN]["metrics"][kind][name][BLEND][group]
                    between = difference([of_table], EVOREC, FROZEN, group, k)
                    assert between.mean == pytest.approx(figures[f"ndcg@{k}"] - other[f"ndcg@{k}"])
                    assert between.low <= between.mean + 1e-9
                    assert between.mean <= between.high + 1e-9
    json.dumps(collected)


def test_a_run_that_crashed_goes_on_where_it_was(base: Path, tmp_path: Path, lab: _Lab) -> None:
    broken = _Lab(base, tmp_path / "seed-0")
    broken.crash_in = lambda name, task: name == EVOREC and task.parent.parent.name == "round-1"
    with pytest.raises(KeyboardInterrupt):
        broken.run()
    assert [name for name, _ in broken.tasks] == [FROZEN, EVOREC, FROZEN]
    broken.crash_in = lambda name, task: False
    broken.run()
    assert broken.bootstraps == 1
    assert [name for name, _ in broken.tasks] == [FROZEN, EVOREC, FROZEN, EVOREC]
    assert not (broken.folder / EVOREC / "round-2" / "version" / "half").exists()
    figures, whole = (one.collected()["rounds"] for one in (broken, lab))
    for mine, theirs in zip(figures, whole, strict=True):
        for name in (FROZEN, EVOREC):
            assert mine["strategies"][name]["metrics"] == theirs["strategies"][name]["metrics"]
    broken.run()
    assert len(broken.tasks) == 4


def test_processes_in_one_folder_make_each_step_once(base: Path, tmp_path: Path) -> None:
    """A second one that comes while the first is at a strategy's round waits for it."""
    first, second = (_Lab(base, tmp_path / "seed-0") for _ in range(2))
    waiting: list[Thread] = []

    def is_first_step(name: str, task: Task) -> bool:
        if not waiting:
            waiting.append(Thread(target=second.run))
            waiting[0].start()
            # It shares everything with this one, so this step is the first it can wait for.
            waiting[0].join(0.5)
            assert waiting[0].is_alive()
            assert not second.tasks
        return False

    first.crash_in = is_first_step
    first.run()
    waiting[0].join(60)
    assert not waiting[0].is_alive()
    assert first.bootstraps + second.bootstraps == 1
    made = [(name, task.inputs.window) for name, task in (*first.tasks, *second.tasks)]
    assert len(made) == len(set(made)) == 2 * ROUNDS


def test_processes_that_begin_at_once_agree_on_the_arguments(base: Path, tmp_path: Path) -> None:
    labs = [_Lab(base, tmp_path / "seed-0") for _ in range(3)]
    together = Barrier(len(labs))
    failed: list[BaseException] = []

    def begin(lab: _Lab) -> None:
        together.wait()
        try:
            lab.run()
        except BaseException as error:
            failed.append(error)

    threads = [Thread(target=begin, args=[lab]) for lab in labs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert not failed
    assert sum(lab.bootstraps for lab in labs) == 1
    assert sum(len(lab.tasks) for lab in labs) == 2 * ROUNDS


def test_seconds_of_a_shared_gpu_cannot_be_reported_by_a_later_call(base: Path, tmp_path: Path) -> None:
    lab = _Lab(base, tmp_path / "seed-0")
    lab.run(rounds=1, shared=True)
    with pytest.raises(Conflict, match="shared was True, now not given"):
        lab.run(rounds=1)


def test_what_a_seed_took_by_the_clock_ends_with_the_last_of_the_steps_asked_for(base: Path, tmp_path: Path) -> None:
    lab = _Lab(base, tmp_path / "seed-0")
    lab.run(rounds=1)
    result = lab.folder / FROZEN / "round-1" / RESULT
    began = (lab.folder / ARGUMENTS).stat().st_mtime
    os.utime(result, (began, began + 90))
    assert collect(lab.folder, [FROZEN, EVOREC], 1)["elapsed_seconds"] == pytest.approx(90)
    assert collect(lab.folder, [], 0)["elapsed_seconds"] < 60


def test_the_retriever_in_the_usual_protocol_is_asked_about_everyone_once(lab: _Lab, tmp_path: Path) -> None:
    assert lab.collected()["leave_one_out"] is None
    tried = _Lab(lab.base, tmp_path / "seed-0")
    tried.seed_run().try_leave_one_out(_Silent())
    assert not (tried.folder / BOOTSTRAP_FOLDER).exists()  # it waits for nothing
    tried.run(leave_one_out=True, strategies=[], rounds=0)
    found = collect(tried.folder, [], 0)["leave_one_out"]
    # Users of this store buy from one shelf of twelve things: ten guesses are right far more often than ten of sixty.
    assert found["users"] == 80
    assert 0.3 < found["hr@10"] <= 1
    assert 0 < found["ndcg@10"] < found["hr@10"]


def test_a_folder_of_other_arguments_is_refused_and_the_difference_is_said(lab: _Lab) -> None:
    other = _Lab(lab.base, lab.folder, lab.settings.model_copy(update={"max_train_examples": 7}))
    with pytest.raises(Conflict, match=r"\(max_train_examples was 1200, now 7\)"):
        other.run()
    with pytest.raises(Conflict, match="max_evaluated was 12, now 13"):
        lab.run(max_evaluated=13)
    assert not other.tasks


def test_the_usual_protocol_asks_for_new_items_and_for_nothing_where_there_are_none(base: Path, tmp_path: Path) -> None:
    events = make_interactions()
    again = [replace(e, timestamp=e.timestamp + 1e9) for e in events]
    for shop, users in ((events, 80), ([*events, *again], 0)):
        run = _Lab(base, tmp_path / str(users)).seed_run()
        found = leave_one_out(make_timeline(make_items(), shop, SETTINGS, seed=0), run.settings, lambda share: None)
        assert found["users"] == users
        assert ("hr@10" in found) == (users > 0)


def test_a_round_that_cannot_be_is_refused_before_anything_is_learned(base: Path, tmp_path: Path) -> None:
    """The last part is of users whom nobody has seen before."""
    events = list(make_interactions())
    strangers = [replace(e, user_id=UserId(f"new{n}")) for n, e in enumerate(events[832:])]
    timeline = make_timeline(make_items(), [*events[:832], *strangers], SETTINGS, seed=0)
    lab = _Lab(base, tmp_path / "seed-0")
    with pytest.raises(InvalidInput, match=r"Round 3 has no user whose next new item .* or --rounds 2"):
        lab.run(timeline=timeline, rounds=3)
    assert lab.bootstraps == 0
    lab.run(timeline=timeline, rounds=2)
    assert lab.bootstraps == 1


def test_answers_to_different_questions_are_not_compared(base: Path, tmp_path: Path) -> None:
    lab = _Lab(base, tmp_path / "seed-0")
    lab.run()
    path = lab.folder / EVOREC / "round-2" / SCORES
    tables = load_scores(path)
    other = replace(tables["next/uniform"], target=(tables["next/uniform"].target + 1) % 20)
    for changed in ({"next/uniform": other}, {"memory/catalog": tables["next/catalog"]}):
        save_scores(path, {**tables, **changed})
        (name,) = changed
        with pytest.raises(Conflict, match=rf"round-2 hold answers to different questions \({name}\)"):
            lab.collected()


def test_the_base_says_its_size_and_a_short_recipe_still_reaches_its_full_rate() -> None:
    about = about_base(Settings(_env_file=None).base_model, None)
    assert about["name"] == "tiny-stores"
    assert 4_000_000 < about["parameters"] < 12_000_000
    for scale in (0.01, 0.05, 0.35):
        config = recipe(scale)
        assert config.warmup <= 0.2 * config.total_steps
