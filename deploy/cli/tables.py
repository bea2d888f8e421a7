"""Evolutions and adapter versions as people read them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime

from rich import box
from rich.table import Table
from rich.text import Text

from deploy.client import DomainVersions
from shared.dead_letters import DeadLetter
from shared.evolutions import Evolution
from shared.manifest import Manifest, Metrics
from shared.rebuild import Found
from shared.registry import CHALLENGER, CHAMPION
from shared.types import DomainId

GROUPS = ("U_A", "U_I", "U")
RAW_SHOWN = 80  # characters


def evolution_table(evolution: Evolution) -> Table:
    """What one run found and did."""
    table = Table(title=f"Evolution {evolution.id}", show_header=False, title_justify="left")
    rows = {
        "status": str(evolution.status),
        "adapter": evolution.adapter,
        "located layers": _numbers(evolution.located_layers),
        "votes per layer": _numbers(evolution.layer_votes),
        "forgotten": None
        if evolution.forgotten_share is None
        else f"{evolution.forgotten_share:.1%} of older interactions",
        "gate": None if evolution.gate is None else _gate(evolution.gate.passed, evolution.gate.reasons),
        "message": evolution.message,
        "error": evolution.error,
    }
    for name, value in rows.items():
        if value:
            table.add_row(name, _as_it_is(value, but="\n"))
    for group in GROUPS:
        if evolution.metrics and (line := metric_line(evolution.metrics, group)):
            table.add_row(f"panel {group}", line)
    return table


def adapters_table(domains: list[DomainVersions]) -> Table:
    """Every version, whose name begins with its domain's. 80 columns show it whole, unless that name is long."""
    table = Table(
        title="Adapter versions", title_justify="left", box=box.SIMPLE_HEAD, show_edge=False, padding=(0, 1, 0, 0)
    )
    for column in ("version", "alias", "created", "reason", "layers", "forgot", "HR@1\nU_A", "HR@1\nU_I"):
        table.add_column(column, no_wrap=column not in ("created", "layers"), overflow="fold")
    for entry in domains:
        for manifest in entry.versions:
            aliases = ", ".join(name for name, version in entry.aliases.items() if version == manifest.name)
            table.add_row(manifest.name, aliases, *_version_cells(manifest))
    return table


def rebuilt_table(rebuilt: Mapping[DomainId, Found]) -> Table:
    """What came back of each domain."""
    table = Table(title="Rebuilt from the artifact store", title_justify="left")
    for column in ("domain", "items", "versions", "champion", "challenger", "route"):
        table.add_column(column, no_wrap=column == "domain")
    for domain, found in rebuilt.items():
        route = f"share {found.route.share:g}{', paused' if found.route.paused else ''}"
        names = (found.aliases.get(alias, "") for alias in (CHAMPION, CHALLENGER))
        table.add_row(domain, str(len(found.items)), str(len(found.versions)), *names, route)
    return table


def dead_letters_table(domain: DomainId, letters: Sequence[DeadLetter]) -> Table:
    """What was set aside, newest first. Everything in it may come from outside: nothing is read as markup."""
    table = Table(title=f"Dead letters of {domain}", title_justify="left")
    for column in ("at", "evolution", "what", "reason", "raw"):
        table.add_column(column, no_wrap=column == "at")
    for letter in letters:
        at = datetime.fromtimestamp(letter.at, UTC).strftime("%Y-%m-%d %H:%M:%S")
        ids = {"stream": letter.stream_id, "user": letter.user_id, "item": letter.item_id}
        what = ", ".join(f"{name} {value}" for name, value in ids.items() if value is not None)
        raw = (letter.raw or "")[:RAW_SHOWN]
        cells = (at, letter.evolution_id or "", what, letter.reason, raw)
        table.add_row(*map(_as_it_is, cells))
    return table


def metric_line(metrics: Metrics, group: str) -> str | None:
    """`n=31: HR@1 0.161 -> 0.194, HR@3 ...`; None where the group was not measured."""
    before, after = (metrics.get(when, {}).get(group, {}) for when in ("before", "after"))
    if not after.get("n"):
        return None
    parts = [
        f"{name.upper()} {f'{before[name]:.3f} -> ' if name in before else ''}{after[name]:.3f}"
        for name in ("hr@1", "hr@3", "ndcg@3")
        if name in after
    ]
    return f"n={after['n']:.0f}: {', '.join(parts)}"


def _version_cells(manifest: Manifest) -> tuple[str, ...]:
    after = manifest.metrics.get("after", {})
    hits = (f"{after[group]['hr@1']:.3f}" if after.get(group, {}).get("n") else "" for group in ("U_A", "U_I"))
    created = manifest.created_at.strftime("%Y-%m-%d %H:%M")
    return (created, manifest.reason, _ranges(manifest.located_layers), f"{manifest.forgotten_share:.1%}", *hits)


def _as_it_is(text: str, but: str = "") -> Text:
    """Without markup: `[/tmp/a]` of an error is none. What moves a terminal's cursor is left out, `but` for these."""
    return Text("".join(char if char.isprintable() or char in but else "?" for char in text))


def _numbers(values: tuple[int, ...] | None) -> str:
    return " ".join(map(str, values or ()))


def _ranges(layers: tuple[int, ...]) -> str:
    """`0-2 7` for layers 0, 1, 2 and 7."""
    runs: list[list[int]] = []
    for layer in sorted(layers):
        if runs and layer == runs[-1][-1] + 1:
            runs[-1].append(layer)
        else:
            runs.append([layer])
    return " ".join(f"{run[0]}-{run[-1]}" if len(run) > 1 else f"{run[0]}" for run in runs)


def _gate(passed: bool, reasons: tuple[str, ...]) -> str:
    return ("passed" if passed else "not passed") + (f": {'; '.join(reasons)}" if reasons else "")
