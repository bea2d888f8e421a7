"""`evorec bench`: does EvoRec pay on your data? Every strategy over the same rounds of a dataset's last months."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from deploy.cli.bench_processes import run_at_once
from deploy.cli.bench_run import FULL, QUICK, Plan, Source, usual_name
from deploy.cli.options import AsJson, InteractionsFile, ItemsFile
from deploy.output import note_console, print_json, result_console, share_progress
from shared.allocator import keep_freed_memory
from shared.config import Settings
from shared.errors import InvalidInput, NotFound

if TYPE_CHECKING:
    from rich.progress import Progress

QUICK_STRATEGIES = "frozen,retrain,finetune,evorec"
ALL = "all"


def bench(
    items: ItemsFile,
    interactions: InteractionsFile,
    out: Annotated[Path, typer.Option(help="Folder of results, report and plots; a second call goes on in it")],
    base: Annotated[
        str | None, typer.Option(help="Hugging Face id or folder of a causal LM; default: one made from the past")
    ] = None,
    strategies: Annotated[
        str | None, typer.Option(help="Comma separated, or `all`; default: without ablations (--quick: four)")
    ] = None,
    seeds: Annotated[int, typer.Option(min=1, help="Number of seeds: 0, 1, ...")] = 1,
    first_seed: Annotated[int, typer.Option(min=0, help="Where to begin: several machines can share the seeds")] = 0,
    fold: Annotated[
        int, typer.Option(min=0, max=4, help="Which fifth of the users is the panel; 1..4: confirm on others than 0's")
    ] = 0,
    quick: Annotated[
        bool, typer.Option("--quick", help="Minutes instead of hours: one round, less of everything")
    ] = False,
    rounds: Annotated[int | None, typer.Option(min=1, max=3, help="Default 3; with --quick 1")] = None,
    updates_per_round: Annotated[
        int,
        typer.Option(min=1, help="Learn so often, from windows as many times shorter; what is asked stays the same"),
    ] = 1,
    max_train_examples: Annotated[int | None, typer.Option(min=1, help="Per strategy and update; default 1500")] = None,
    max_evaluated: Annotated[int | None, typer.Option(min=1, help="Users per group and target; default 1000")] = None,
    base_scale: Annotated[
        float | None, typer.Option(min=0.001, help="Pretraining steps as a multiple of the shipped recipe's; 0.35")
    ] = None,
    shared: Annotated[
        bool, typer.Option("--shared", help="Other processes use the same GPU meanwhile: its seconds are not reported")
    ] = False,
    processes: Annotated[
        int, typer.Option(min=1, help="How many strategies and seeds at once, in processes of their own")
    ] = 1,
    name: Annotated[str | None, typer.Option(help="The dataset's name in the report; default: its folder's")] = None,
    as_json: AsJson = False,
) -> None:
    """Compare EvoRec with retraining, fine-tuning and others on your own data, and write report.md with plots."""
    keep_freed_memory()
    size = QUICK if quick else FULL
    size = replace(
        size,
        train_examples=max_train_examples or size.train_examples,
        evaluated=max_evaluated or size.evaluated,
        rounds=rounds or size.rounds,
        updates=updates_per_round,
        base_scale=base_scale or size.base_scale,
    )
    chosen = _strategies(strategies or (QUICK_STRATEGIES if quick else None))
    source = Source(items, interactions, name or usual_name(interactions), Settings(), fold)
    if base is not None and base_scale is not None:
        raise InvalidInput("--base names a base, --base-scale says how long one is made: give one of them")
    _require_plain(source.name)
    plan = Plan(source, chosen, base, size, out, processes, shared=shared)
    write_report = _report_writer()
    numbers = range(first_seed, first_seed + seeds)
    plan.refuse_other_arguments(numbers)
    if processes > 1:
        _at_once(plan, numbers)
    files = [_seed(plan, seed) for seed in numbers]
    report = write_report(files, out / "report.md")
    if as_json:
        print_json({"results": [str(path) for path in files], "report": str(report)})
    else:
        result_console().print(
            f"Report in {report}, figures in {', '.join(map(str, files))}", markup=False, soft_wrap=True
        )


def _require_plain(name: str) -> None:
    """Refuse a name that no file of a plot and no cell of a table can have, before hours of work."""
    if not name.strip() or not name.isprintable() or {*name} & {*"/\\|"}:
        raise InvalidInput(f"The dataset cannot be called {name!r} in a report: give --name without / \\ | in it.")


def _report_writer() -> Callable[[list[Path], Path], Path]:
    """Asked for first: who lacks what draws the plots should hear of it before hours of work."""
    try:
        from evolver.bench.report import write_report
    except ModuleNotFoundError as error:
        raise NotFound(f"{error.name} draws the plots and is not installed: pip install 'evorec[bench]'") from error
    return write_report


def _strategies(names: str | None) -> tuple[str, ...]:
    from evolver.bench.strategies import MAIN, STRATEGIES

    if names is None:
        return MAIN
    wanted = [*STRATEGIES] if names == ALL else [name.strip() for name in names.split(",") if name.strip()]
    unknown = [name for name in wanted if name not in STRATEGIES]
    if unknown or not wanted:
        raise InvalidInput(
            f"No strategy is called {', '.join(unknown) or 'nothing'}; there are {', '.join(STRATEGIES)}."
        )
    return tuple(dict.fromkeys(wanted))


def _at_once(plan: Plan, seeds: Sequence[int]) -> None:
    """Do the work of all seeds, several parts at a time."""
    from evolver.bench.runner import is_done

    with note_console().status("Reading the dataset"):
        _ = plan.source.first  # what is wrong with it is said before anything begins
    steps = [step for seed in seeds for step in plan.steps(seed)]
    with _watched(f"{plan.processes} processes") as watcher:
        watcher.step("base model", 0, 1)
        base, _ = plan.ensure_base(watcher.base)
        run_at_once(plan, seeds, base, lambda: watcher.step("", sum(map(is_done, steps)), len(steps)))


def _seed(plan: Plan, seed: int) -> Path:
    """Do what is missing of a seed; returns the file of its results."""
    with note_console().status("Reading the dataset"):
        timeline, about = plan.source.timeline(seed)
    with _watched(f"Seed {seed}") as watcher:
        watcher.step("base model", 0, 1)
        base, config = plan.ensure_base(watcher.base)
        run = plan.seed_run(seed, timeline, base)
        run.run(watcher)
        watcher.step("intervals", 1, 1)
    return plan.write_results(run, about, config)


class _Bars:
    """Two bars: steps of the run, and the step that is on."""

    def __init__(self, progress: Progress, what: str) -> None:
        self._progress, self._what = progress, what
        self._all, self._now = progress.add_task(what), progress.add_task("")

    def step(self, title: str, done: int, total: int) -> None:
        self._progress.update(
            self._all, completed=done, total=total, description=": ".join(filter(None, (self._what, title)))
        )
        self._progress.reset(self._now, total=1.0, description="")

    def report(self, stage: str, share: float) -> None:
        self._progress.update(self._now, completed=share, description=stage)

    def base(self, share: float, says: str) -> None:
        self.report(says, share)


@contextmanager
def _watched(what: str) -> Iterator[_Bars]:
    from transformers.utils import logging

    logging.disable_progress_bar()  # it writes across our bars, once for each version that is loaded
    with share_progress(note_console()) as progress:
        yield _Bars(progress, what)
