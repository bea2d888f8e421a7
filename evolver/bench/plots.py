"""The report's plots: accuracy per round, EvoRec against the others, accuracy against cost, and which layers users
voted for.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine

from evolver.bench.cases import DRAWN_SETS, KINDS, UNIFORM_SET
from evolver.bench.reading import Results, has_seconds, mean_figure, mean_seconds, n_rounds, strategies_of
from evolver.bench.results import EVOREC
from evolver.bench.summary import AHEAD, BEHIND, LEVEL, Compared, verdict

# Okabe and Ito's colours, which colour-blind people can tell apart; shapes tell the rest apart.
COLOURS = ("#D55E00", "#0072B2", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">", "*")
LINES = ("-", "--", ":")
VERDICTS = {AHEAD: COLOURS[1], BEHIND: COLOURS[0], LEVEL: "#777777"}
DPI = 130
LOGARITHMIC_FROM = 20.0  # times the cheapest strategy's seconds


def draw_plots(seeds: Sequence[Results], against: Compared, folder: Path, *, name: str) -> dict[Path, str]:
    """Write the plots as PNG into a folder; returns them with their captions. `against`: what `compared` gave."""
    plots = {
        "rounds": (
            _rounds(seeds) if n_rounds(seeds) > 1 else None,
            "NDCG@3 per round for active and inactive users",
        ),
        "against": (
            _against(against) if against else None,
            "EvoRec's NDCG@3 minus each other strategy's, all rounds together, with 95 % intervals",
        ),
        "cost": (
            _cost(seeds) if has_seconds(seeds) else None,
            "NDCG@3 in the last round against training seconds per round",
        ),
        "votes": (_votes(seeds), "Which layers active users voted for"),
    }
    written = {}
    for kind, (plot, caption) in plots.items():
        if plot is not None:
            path = folder / f"{name}-{kind}.png"
            plot.savefig(path, dpi=DPI)
            written[path] = caption
    return written


def _style(names: Sequence[str], name: str) -> dict[str, str]:
    """EvoRec always has the first colour; the others follow in the order of the report."""
    ordered = [*([EVOREC] if EVOREC in names else []), *(one for one in names if one != EVOREC)]
    number = ordered.index(name)
    again, place = divmod(number, len(COLOURS))
    colour = COLOURS[place]
    return {
        "color": colour,
        "marker": MARKERS[number % len(MARKERS)],
        "linestyle": LINES[again % len(LINES)],
        # A colour that comes again is hollow.
        "markerfacecolor": "white" if again else colour,
    }


def _figure(width: float, height: float) -> Figure:
    return Figure(figsize=(width, height), layout=ConstrainedLayoutEngine(h_pad=0.09, w_pad=0.09))


def _legend(plot: Figure, axes: Axes, n_names: int) -> None:
    """Beside the panels, so that it never lies over data."""
    handles, labels = axes.get_legend_handles_labels()
    plot.legend(handles, labels, loc="outside right upper", frameon=False, fontsize=9 if n_names < 16 else 7)


def _rounds(seeds: Sequence[Results]) -> Figure:
    """Rows: kind and group; columns: candidate sets."""
    rows = [(kind, group) for kind in KINDS for group in ("U_A", "U_I")]
    plot = _figure(11, 12)
    grid = plot.subplots(len(rows), len(DRAWN_SETS), squeeze=False, sharex=True)
    names, numbers = strategies_of(seeds), list(range(1, n_rounds(seeds) + 1))
    for row, (kind, group) in enumerate(rows):
        for column, candidates in enumerate(DRAWN_SETS):
            axes = grid[row, column]
            for name in names:
                values = [mean_figure(seeds, number, name, kind, candidates, group, "ndcg@3") for number in numbers]
                width = 2.4 if name == EVOREC else 1.3
                axes.plot(numbers, values, label=name, linewidth=width, markersize=6, **_style(names, name))
            axes.set_title(f"{kind}, {group}, {candidates} candidates", fontsize=10)
            axes.set_ylabel("NDCG@3")
            axes.grid(alpha=0.3)
            axes.set_xticks(numbers)
            axes.set_xlim(0.8, max(numbers) + 0.2)
            if row == len(rows) - 1:
                axes.set_xlabel("round")
    _legend(plot, grid[0, 0], len(names))
    return plot


def _against(found: Compared) -> Figure:
    """A panel for each part, a row for each other strategy; right of zero EvoRec is ahead."""
    others = [*found]
    parts = [*next(iter(found.values()))]
    plot = _figure(2.6 * len(parts), 0.34 * len(others) + 1.6)
    grid = plot.subplots(1, len(parts), sharey=True)
    for axes, part in zip(grid, parts, strict=True):
        for row, other in enumerate(others):
            one = found[other][part]
            said = verdict(one)
            colour = VERDICTS.get(said, VERDICTS[LEVEL])
            face = colour if said in (AHEAD, BEHIND) else "white"
            if not one.of_few:
                axes.plot([one.low, one.high], [row, row], color=colour, linewidth=2)
            axes.plot([one.mean], [row], marker="o", markersize=6, color=colour, markerfacecolor=face)
        axes.axvline(0, color="black", linewidth=0.8)
        axes.set_title(part, fontsize=10)
        axes.grid(alpha=0.3, axis="x")
        axes.tick_params(axis="x", labelsize=8)
        axes.locator_params(axis="x", nbins=4)
    grid[0].set_yticks(range(len(others)), others)
    grid[0].set_ylim(len(others) - 0.5, -0.5)
    plot.supxlabel("EvoRec's NDCG@3 minus the other's, on the catalog NDCG@10 (hollow: level)", fontsize=9)
    return plot


def _cost(seeds: Sequence[Results]) -> Figure:
    """One panel per kind and group, uniform candidates."""
    panels = [(kind, group) for kind in KINDS for group in ("U_A", "U_I")]
    plot = _figure(11, 7.5)
    grid = plot.subplots(2, 2, sharex=True)
    names, last = strategies_of(seeds), n_rounds(seeds)
    seconds = {name: mean_seconds(seeds, name) for name in names}
    cheapest = min((value for value in seconds.values() if value > 0), default=1.0)
    dearest = max(*seconds.values(), cheapest)
    for axes, (kind, group) in zip(grid.flat, panels, strict=True):
        for name in names:
            style = {**_style(names, name), "linestyle": "none"}
            value = mean_figure(seeds, last, name, kind, UNIFORM_SET, group, "ndcg@3")
            axes.plot([seconds[name]], [value], markersize=11 if name == EVOREC else 8, label=name, zorder=3, **style)
        if dearest > LOGARITHMIC_FROM * cheapest:
            # Nothing learned costs nothing, hence the linear part.
            axes.set_xscale("symlog", linthresh=cheapest, linscale=0.4)
            axes.set_xlim(-0.25 * cheapest, 1.6 * dearest)
        else:
            axes.set_xlim(-0.05 * dearest, 1.1 * dearest)
        axes.xaxis.set_major_formatter("{x:g}")
        axes.set_title(f"{kind}, {group}, {UNIFORM_SET} candidates, round {last}", fontsize=10)
        axes.set_ylabel("NDCG@3")
        axes.margins(y=0.15)
        axes.grid(alpha=0.3)
    for axes in grid[1]:
        axes.set_xlabel("training seconds per round")
    _legend(plot, grid[0, 0], len(names))
    return plot


def _votes(seeds: Sequence[Results]) -> Figure | None:
    """Shares of votes per layer, one row per round and seed; a dot marks the layers that trained."""
    located = [one for one in strategies_of(seeds) if one == EVOREC]
    if not located:
        return None
    rows = [
        (f"round {number}, seed {one['seed']}", one["rounds"][number - 1]["strategies"][EVOREC]["location"])
        for number in range(1, n_rounds(seeds) + 1)
        for one in seeds
    ]
    shares = np.array([np.array(found["votes"]) / max(1, sum(found["votes"])) for _, found in rows])
    plot = _figure(max(6.0, 0.45 * shares.shape[1] + 3), 0.42 * len(rows) + 1.8)
    axes = plot.subplots()
    image = axes.imshow(shares, cmap="viridis", vmin=0.0, aspect="auto")
    for row, (_, found) in enumerate(rows):
        axes.scatter(found["layers"], [row] * len(found["layers"]), s=26, color="white", edgecolor="black", zorder=3)
    axes.set_yticks(range(len(rows)), [name for name, _ in rows])
    axes.set_xticks(range(shares.shape[1]))
    axes.set_xlabel("decoder layer (dots: trained)")
    axes.set_title("Share of active users' votes per layer", fontsize=10)
    plot.colorbar(image, ax=axes, label="share of votes")
    return plot
