"""`evorec bench`: does EvoRec pay on your data? Every strategy over the same rounds of a dataset's last months."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from deploy.cli.options import AsJson, InteractionsFile, ItemsFile
from deploy.cli.output import note_console, print_json, result_console, share_progress, show_bad_lines
from deploy.files import has_stand_in_title, read_interactions, read_items
from shared.config import SHIPPED_BASE_MODEL, Settings
from shared.errors import InvalidInput, NotFound
from shared.types import Item

if TYPE_CHECKING:
    from rich.progress import Progress

    from evolver.bench.strategy import Strategy
    from evolver.bench.timeline import Timeline

QUICK_STRATEGIES = "frozen,retrain,finetune,evorec"
BASE_SEED = 0  # its order of events of one moment is the base's, for all seeds


@dataclass(frozen=True, slots=True)
class Size:
    """How much is done: of examples and users per strategy and round, rounds, and steps of the base (0: the shipped one
    as it is; it was made from generated stores, so it has seen nothing of anybody's data). `settings` as well;
    `leave_one_out`: whether the retriever is also tried in that protocol, with the first seed of all.
    """

    train_examples: int
    evaluated: int
    rounds: int
    base_scale: float
    leave_one_out: bool = True
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


def bench(
    items: ItemsFile,
    interactions: InteractionsFile,
    out: Annotated[Path, typer.Option(help="Folder of results, report and plots; a second call goes on in it")],
    base: Annotated[
        str | None, typer.Option(help="Hugging Face id or folder of a causal LM; default: one made from the past")
    ] = None,
    strategies: Annotated[
        str | None, typer.Option(help="Comma separated; default: all (--quick: the main ones)")
    ] = None,
    seeds: Annotated[int, typer.Option(min=1, help="Number of seeds: 0, 1, ...")] = 1,
    first_seed: Annotated[int, typer.Option(min=0, help="Where to begin: several machines can share the seeds")] = 0,
    quick: Annotated[
        bool, typer.Option("--quick", help="Minutes instead of hours: one round, less of everything")
    ] = False,
    rounds: Annotated[int | None, typer.Option(min=1, max=3, help="Default 3; with --quick 1")] = None,
    max_train_examples: Annotated[int | None, typer.Option(min=1, help="Per strategy and round; default 1500")] = None,
    max_evaluated: Annotated[int | None, typer.Option(min=1, help="Users per group and target; default 1000")] = None,
    base_scale: Annotated[
        float | None, typer.Option(min=0.001, help="Pretraining steps as a multiple of the shipped recipe's; 0.35")
    ] = None,
    shared: Annotated[
        bool, typer.Option("--shared", help="Other processes use the same GPU meanwhile: its seconds are not reported")
    ] = False,
    name: Annotated[str | None, typer.Option(help="The dataset's name in the report; default: its folder's")] = None,
    as_json: AsJson = False,
) -> None:
    """Compare EvoRec with retraining, fine-tuning and others on your own data, and write report.md with plots."""
    size = QUICK if quick else FULL
    size = replace(
        size,
        train_examples=max_train_examples or size.train_examples,
        evaluated=max_evaluated or size.evaluated,
        rounds=rounds or size.rounds,
        base_scale=base_scale or size.base_scale,
    )
    chosen = _strategies(strategies or (QUICK_STRATEGIES if quick else None))
    source = _Source(items, interactions, name or interactions.absolute().parent.name, Settings())
    write_report = _report_writer()
    files = [
        _seed(source, seed, base, chosen, size, out, shared=shared) for seed in range(first_seed, first_seed + seeds)
    ]
    report = write_report(files, out / "report.md")
    if as_json:
        print_json({"results": [str(path) for path in files], "report": str(report)})
    else:
        result_console().print(f"Report in {report}, figures in {', '.join(map(str, files))}", soft_wrap=True)


@dataclass(frozen=True)
class _Source:
    items: Path
    interactions: Path
    name: str
    settings: Settings

    def timeline(self, seed: int) -> tuple[Timeline, dict[str, Any]]:
        """The dataset with its ties in the seed's order, and what a report says of it."""
        return self.first if seed == BASE_SEED else self._read(seed)

    @cached_property
    def first(self) -> tuple[Timeline, dict[str, Any]]:
        """The timeline of `BASE_SEED`; what is wrong with the files is shown this once."""
        return self._read(BASE_SEED)

    def _read(self, seed: int) -> tuple[Timeline, dict[str, Any]]:
        from evolver.bench.timeline import make_timeline

        catalog = read_items(self.items)
        events = read_interactions(self.interactions, seed=seed)
        if seed == BASE_SEED:
            show_bad_lines(catalog, str(self.items))
            show_bad_lines(events, str(self.interactions))
        untitled = _require_titles(catalog.rows, self.items)
        timeline = make_timeline(catalog.rows, events.rows, self.settings, seed=seed)
        return timeline, {
            "name": self.name,
            "items": len(catalog.rows),
            "items_without_title": untitled,
            "users": len({event.user_id for event in timeline.events}),
            "interactions": len(timeline.events),
            "interactions_left_out": len(events.rows) - len(timeline.events) + events.n_bad,
            "from": timeline.events[0].timestamp,
            "past_until": timeline.past_until,
            "until": timeline.events[-1].timestamp,
        }


def _require_titles(items: Sequence[Item], path: Path) -> int:
    """How many items have none; their brand and category stand in for it. Raises where that is all there is."""
    untitled = sum(has_stand_in_title(item) for item in items)
    if items and untitled == len(items):
        raise InvalidInput(
            f"No item of {path} has a title, and titles are what the LLM reads. Give each item a field `title`."
        )
    return untitled


def _report_writer() -> Callable[[list[Path], Path], Path]:
    """Asked for first: who lacks what draws the plots should hear of it before hours of work."""
    try:
        from evolver.bench.report import write_report
    except ModuleNotFoundError as error:
        raise NotFound(f"{error.name} draws the plots and is not installed: pip install 'evorec[bench]'") from error
    return write_report


def _strategies(names: str | None) -> list[Strategy]:
    from evolver.bench.strategies import STRATEGIES

    wanted = [*STRATEGIES] if names is None else [name.strip() for name in names.split(",") if name.strip()]
    unknown = [name for name in wanted if name not in STRATEGIES]
    if unknown or not wanted:
        raise InvalidInput(
            f"No strategy is called {', '.join(unknown) or 'nothing'}; there are {', '.join(STRATEGIES)}."
        )
    return [STRATEGIES[name] for name in dict.fromkeys(wanted)]


def _seed(
    source: _Source, seed: int, base: str | None, strategies: list[Strategy], size: Size, out: Path, *, shared: bool
) -> Path:
    """Run what is missing of a seed; returns the file of its results."""
    from evolver.bench.base import about_base, ensure_base
    from evolver.bench.machine import machine
    from evolver.bench.results import collect, write_results
    from evolver.bench.runner import SeedRun
    from evolver.bench.strategies import make_bootstrap
    from evolver.device import device_of_run

    settings = source.settings
    changed = {"seed": seed, "max_train_examples": size.train_examples, **size.settings}
    settings = settings.model_copy(update={**changed, "train_device": device_of_run(settings.train_device)})
    folder = out / f"seed-{seed}"
    with note_console().status("Reading the dataset"):
        timeline, about = source.timeline(seed)
    with _watched(seed) as watcher:
        config, model = None, base or str(SHIPPED_BASE_MODEL)
        if base is None and size.base_scale:
            watcher.step("base model", 0, 1)
            first, _ = source.first
            made, config = ensure_base(
                first,
                settings.state_dir,
                scale=size.base_scale,
                device=settings.train_device,
                on_step=watcher.base,
            )
            model = str(made)
        settings = settings.model_copy(update={"base_model": model})
        run = SeedRun(
            timeline,
            strategies,
            make_bootstrap,
            settings,
            folder,
            size.rounds,
            size.evaluated,
            leave_one_out=size.leave_one_out and seed == BASE_SEED,
            shared=shared and settings.train_device != "cpu",
        )
        run.run(watcher)
        watcher.step("intervals", 1, 1)
    path = folder / "results.json"
    results = {
        "command": _command(source, size, base, [strategy.name for strategy in strategies]),
        "machine": machine(settings.train_device),
        "data": about,
        "seed": seed,
        "base": about_base(model, config),
        "arguments": run.arguments(),
        "strategies": {strategy.name: strategy.what for strategy in strategies},
        **collect(folder, [strategy.name for strategy in strategies], size.rounds),
    }
    write_results(path, results)
    return path


def _command(source: _Source, size: Size, base: str | None, strategies: list[str]) -> str:
    """What to type for the same figures, with what differs from the defaults; settings are among the arguments."""
    words = ["evorec bench", "--items", _short(source.items), "--interactions", _short(source.interactions)]
    usual = FULL if size.settings == FULL.settings else QUICK
    words += ["--quick"] if usual is QUICK else []
    options = {
        "--rounds": (size.rounds, usual.rounds),
        "--max-train-examples": (size.train_examples, usual.train_examples),
        "--max-evaluated": (size.evaluated, usual.evaluated),
        "--base-scale": (size.base_scale, usual.base_scale),
    }
    for option, (value, default) in options.items():
        words += [option, str(value)] if value != default else []
    if base is not None:
        words += ["--base", Path(base).name if Path(base).is_dir() else base]
    return " ".join([*words, "--strategies", ",".join(strategies), "--out", "DIR"])


def _short(path: Path) -> str:
    """A folder and a name: where the folder lies is this machine's own."""
    return "/".join(path.absolute().parts[-2:])


class _Bars:
    """Two bars: steps of the run, and the step that is on."""

    def __init__(self, progress: Progress, seed: int) -> None:
        self._progress, self._seed = progress, seed
        self._all, self._now = progress.add_task(f"Seed {seed}"), progress.add_task("")

    def step(self, title: str, done: int, total: int) -> None:
        self._progress.update(self._all, completed=done, total=total, description=f"Seed {self._seed}: {title}")
        self._progress.reset(self._now, total=1.0, description="")

    def report(self, stage: str, share: float) -> None:
        self._progress.update(self._now, completed=share, description=stage)

    def base(self, share: float, says: str) -> None:
        self.report(says, share)


@contextmanager
def _watched(seed: int) -> Iterator[_Bars]:
    from transformers.utils import logging

    logging.disable_progress_bar()  # it writes across our bars, once for each version that is loaded
    with share_progress(note_console()) as progress:
        yield _Bars(progress, seed)
