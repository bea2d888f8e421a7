"""What the demo found, as a value, as tables and as JSON."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from rich.console import Console
from rich.table import Table

from deploy.client import Recommendation
from deploy.demo.trial import HitRates
from evolver.stores import Store
from shared.categories import leaf
from shared.evolutions import Evolution
from shared.types import Interaction, Item, ItemId, UserId

SHOWN = 5


@dataclass(frozen=True, slots=True)
class Shown:
    """A user whose recommendations are shown, and their answers before and after the evolution."""

    user: UserId
    kind: str  # drifting or steady
    before: Recommendation
    after: Recommendation
    forgotten: int
    forgotten_outdated: int  # of those, how many the user's new taste contradicts


@dataclass(frozen=True, slots=True)
class DemoReport:
    bootstrap: Evolution
    evolution: Evolution
    shown: tuple[Shown, ...]
    before: dict[str, HitRates]
    after: dict[str, HitRates]
    requests_meanwhile: int
    failures_meanwhile: int
    stage_seconds: dict[str, float]
    total_seconds: float
    peak_pss_bytes: int

    def to_dict(self) -> dict[str, Any]:
        return asdict(self) | {
            "bootstrap": self.bootstrap.model_dump(mode="json"),
            "evolution": self.evolution.model_dump(mode="json"),
        }


def print_report(console: Console, report: DemoReport, store: Store) -> None:
    for shown in report.shown:
        _print_user(console, shown, store)
    console.print(_hit_rate_table(report))
    _print_evolution(console, report)
    console.print(_seconds_table(report))
    console.print(f"Peak memory of all processes together (sum of PSS): {report.peak_pss_bytes / 1e9:.2f} GB")


def taste(events: Sequence[Interaction], items: dict[ItemId, Item], user: UserId) -> str:
    """The categories that a user bought from most, most frequent first.

    >>> items = {ItemId("a"): Item(ItemId("a"), "", "Kitchen > Tea"), ItemId("b"): Item(ItemId("b"), "", "Pens")}
    >>> taste([Interaction("", UserId("u"), ItemId(i), 0.0) for i in "aab"], items, UserId("u"))
    'Tea (2), Pens (1)'
    """
    counts = Counter(_shelf(items[event.item_id]) for event in events if event.user_id == user)
    return ", ".join(f"{shelf} ({n})" for shelf, n in counts.most_common(3)) or "nothing"


def _print_user(console: Console, shown: Shown, store: Store) -> None:
    items = {item.item_id: item for item in store.items}
    target = store.future[shown.user]
    table = Table(title=f"{shown.user}, {shown.kind}", title_justify="left", expand=False)
    table.add_column("#", justify="right")
    table.add_column(f"before ({shown.before.adapter})")
    table.add_column(f"after ({shown.after.adapter})")
    for rank in range(SHOWN):
        cells = (_cell(answer, rank, items, target) for answer in (shown.before, shown.after))
        table.add_row(str(rank + 1), *cells)
    console.print()
    console.print(table)
    console.print(f"  first period:  {taste(store.first_period, items, shown.user)}", highlight=False)
    console.print(f"  second period: {taste(store.second_period, items, shown.user)}", highlight=False)
    console.print(f"  really next:   {items[target].title} ({_shelf(items[target])})", highlight=False, markup=False)
    if shown.forgotten:
        outdated = f", {shown.forgotten_outdated} of them from tastes given up" if shown.kind == "drifting" else ""
        console.print(f"  forgotten:     {shown.forgotten} older interactions{outdated}", highlight=False)


def _cell(answer: Recommendation, rank: int, items: dict[ItemId, Item], target: ItemId) -> str:
    if rank >= len(answer.items):
        return ""
    item = items[answer.items[rank].item_id]
    return f"{'* ' if item.item_id == target else ''}{item.title} ({_shelf(item)})"


def _shelf(item: Item) -> str:
    return leaf(item.category)


def _hit_rate_table(report: DemoReport) -> Table:
    title = "Panel users (never trained on): the really next purchase among 20 items; chance is 0.050 / 0.150"
    table = Table(title=title, title_justify="left")
    for column in ("users", "n", "HR@1 before", "HR@1 after", "HR@3 before", "HR@3 after"):
        table.add_column(column, justify="left" if column == "users" else "right")
    names = {"U_A": "U_A (active)", "U_I": "U_I (inactive)", "U": "U (all)"}
    for group, name in names.items():
        before, after = report.before[group], report.after[group]
        rates = (before.hr1, after.hr1, before.hr3, after.hr3)
        table.add_row(name, str(after.n), *(f"{rate:.3f}" for rate in rates))
    return table


def _print_evolution(console: Console, report: DemoReport) -> None:
    run = report.evolution
    votes = run.layer_votes or ()
    located = ", ".join(
        f"{layer} ({votes[layer]} votes)" if layer < len(votes) else str(layer) for layer in run.located_layers or ()
    )
    console.print(f"Evolution {run.id}: {run.status}; adapter {run.adapter or 'none'}", highlight=False)
    console.print(f"  located:   layers {located or 'none'} of {len(votes)}", highlight=False)
    if run.forgotten_share is not None:
        console.print(f"  forgotten: {run.forgotten_share:.1%} of the older interactions", highlight=False)
    for reason in run.gate.reasons if run.gate else ():
        console.print(f"  gate:      {reason}", markup=False, highlight=False)
    console.print(
        f"  meanwhile: {report.requests_meanwhile} recommendations answered, {report.failures_meanwhile} failed",
        highlight=False,
    )


def _seconds_table(report: DemoReport) -> Table:
    table = Table(title="Seconds", title_justify="left", show_header=False)
    table.add_column(justify="left")
    table.add_column(justify="right")
    for stage, seconds in report.stage_seconds.items():
        table.add_row(stage, f"{seconds:.1f}")
    table.add_section()
    table.add_row("total", f"{report.total_seconds:.1f}")
    return table
