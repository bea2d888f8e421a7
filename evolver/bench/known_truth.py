"""How well Forget finds what a change of taste made outdated, where the truth is known: on generated stores.

    python -m evolver.bench.known_truth --out docs/results/forget.json --page docs/forget.md

As the evolver does it: the retriever is trained on the first period, renewed by the second, and says what is outdated
for users who came back. Precision is the share of the forgotten that a drift of taste made outdated, recall
the share of the outdated that was forgotten; `base_rate` is the precision of forgetting at random, among the
interactions that Forget considers.

And the same interactions in one window or in several, as a service meets them whose windows are short: what is
forgotten then adds up.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from rich.progress import Progress

from evolver.bench.tables import markdown, spread
from evolver.forget import THRESHOLD, CurrentSequence, outdated
from evolver.inputs import n_rehearsed
from evolver.recipe import EVOREC
from evolver.retriever_training import renew_retriever, retriever_config, train_retriever
from evolver.splits import item_sequence
from evolver.stores import Store, make_store
from shared.config import Settings
from shared.retriever import Retriever
from shared.types import Interaction, UserId

FORMAT = "forget-2"
COMMAND = "python -m evolver.bench.known_truth --out docs/results/forget.json --page docs/forget.md"
# The first is the demo's store; the threshold was chosen on it and on 21 (ADR 0006), the others had no part in it.
FIRST_SEED = 7
N_STORES = 5
THRESHOLDS = (-2.0, -1.0, THRESHOLD, -0.25, 0.0, 0.5)
CAME_BACK_FOR = 4  # interactions of each user in the second period, which are divided into:
N_WINDOWS = (1, 2, 4)

Figures = Mapping[str, float]


class KnownStore:
    """A generated store, and a retriever that was trained on its first period."""

    def __init__(self, store: Store, settings: Settings, seed: int) -> None:
        self._store, self._settings, self._seed = store, settings, seed
        self._histories: dict[UserId, list[Interaction]] = {}
        for event in (*store.first_period, *store.second_period):
            self._histories.setdefault(event.user_id, []).append(event)
        old = {event.event_id for event in store.first_period}
        self._n_old = {user: sum(e.event_id in old for e in events) for user, events in self._histories.items()}
        self._retriever = train_retriever(
            store.items,
            {user: item_sequence(events[: self._n_old[user]]) for user, events in self._histories.items()},
            epochs=settings.retriever_epochs,
            config=retriever_config(settings),
            seed=seed,
            on_step=lambda _: None,
        )

    def by_threshold(self) -> dict[str, Figures]:
        """Precision, recall, base rate and share of the considered that was forgotten, for each threshold."""
        back = [user for user, events in self._histories.items() if self._n_old[user] < len(events)]
        window = {user: frozenset(range(self._n_old[user], len(self._histories[user]))) for user in back}
        model = self._renewed(self._retriever, self._histories, window)
        current = {user: CurrentSequence(item_sequence(self._histories[user]), window[user]) for user in back}
        considered = {
            self._histories[user][place].event_id for user, sequence in current.items() for place in sequence.considered
        }
        truth = considered & self._store.outdated
        found: dict[str, Figures] = {}
        for threshold in THRESHOLDS:
            gone = outdated(model, self._store.items, current, threshold=threshold)
            forgotten = {self._histories[user][place].event_id for user, places in gone.items() for place in places}
            right = len(forgotten & truth)
            found[f"{threshold:g}"] = {
                "precision": right / max(1, len(forgotten)),
                "recall": right / max(1, len(truth)),
                "base_rate": len(truth) / max(1, len(considered)),
                "forgotten_share": len(forgotten) / max(1, len(considered)),
            }
        return found

    def in_windows(self, n_windows: int) -> Figures:
        """What is forgotten of the first period, of steady and of drifting users, and how much of it rightly, where the
        first `CAME_BACK_FOR` interactions of who came back as often are divided into so many windows.
        """
        back = [u for u, events in self._histories.items() if len(events) - self._n_old[u] >= CAME_BACK_FOR]
        model, forgotten = self._retriever, set[str]()
        each = CAME_BACK_FOR // n_windows
        for number in range(n_windows):
            left = {user: events[: self._n_old[user]] for user, events in self._histories.items()}
            window: dict[UserId, frozenset[int]] = {}
            for user in back:
                end = self._n_old[user] + each * (number + 1)
                left[user] = [event for event in self._histories[user][:end] if event.event_id not in forgotten]
                window[user] = frozenset(range(len(left[user]))[-each:])
            model = self._renewed(model, left, window)
            current = {user: CurrentSequence(item_sequence(left[user]), window[user]) for user in back}
            gone = outdated(model, self._store.items, current, threshold=THRESHOLD)
            forgotten |= {left[user][place].event_id for user, places in gone.items() for place in places}
        shares = {}
        for name, members in (("steady", self._store.steady), ("drifting", self._store.drifting)):
            theirs = {
                e.event_id for user in back if user in members for e in self._histories[user][: self._n_old[user]]
            }
            shares[name] = len(theirs & forgotten) / max(1, len(theirs))
        return {"precision": len(forgotten & self._store.outdated) / max(1, len(forgotten)), **shares}

    def _renewed(
        self,
        parent: Retriever,
        histories: Mapping[UserId, Sequence[Interaction]],
        window: Mapping[UserId, frozenset[int]],
    ) -> Retriever:
        away = sorted(histories.keys() - window.keys())
        rehearsed = np.random.default_rng(self._seed).permutation(away)[: n_rehearsed(len(window))].tolist()
        return renew_retriever(
            parent,
            self._store.items,
            {user: item_sequence(events) for user, events in histories.items()},
            window,
            rehearsed,
            rehearsing=EVOREC.rehearsing,
            epochs=self._settings.retriever_window_epochs,
            seed=self._seed,
            on_step=lambda _: None,
        )


def section(results: Mapping[str, Any]) -> list[str]:
    """Means over the stores with their deviation, as a section of Markdown."""
    stores: Sequence[Mapping[str, Figures]] = results["stores"]
    names = {"precision": "precision", "recall": "recall", "base_rate": "at random", "forgotten_share": "forgotten"}
    rows = [
        [
            f"{threshold}{' (used)' if float(threshold) == results['threshold'] else ''}",
            *(spread([one[threshold][name] for one in stores]) for name in names),
        ]
        for threshold in stores[0]
    ]
    return [
        "## Forget, where the truth is known",
        "",
        f"On {len(stores)} generated stores (seeds {', '.join(map(str, results['seeds']))}; the first is the demo's).",
        "A part of the users change their taste. Precision: the share of the forgotten that it made outdated. Recall:",
        "the share of the outdated that was forgotten. `at random`: the precision of forgetting without a look.",
        "`forgotten`: the share of all that may be. Command:",
        f"`{results['command']}`",
        "",
        *markdown(["threshold, nats", *names.values()], rows),
        *_of_windows(results),
    ]


def _of_windows(results: Mapping[str, Any]) -> list[str]:
    windows: Sequence[Mapping[str, Figures]] = results["windows"]
    names = {
        "precision": "precision",
        "steady": "forgotten of steady users",
        "drifting": "of those whose taste changed",
    }
    rows = [[n, *(spread([one[n][name] for one in windows]) for name in names)] for n in windows[0]]
    return [
        f"The first {CAME_BACK_FOR} interactions of each user who came back as often, in one window or in several,",
        "each with an evolution, at the threshold that is used. `forgotten`: the share of their first period.",
        "",
        *markdown(["windows", *names.values()], rows),
    ]


def page(results: Mapping[str, Any]) -> str:
    """The section as a page of its own."""
    title, *lines = section(results)
    return "\n".join([title.removeprefix("#"), *lines]).rstrip() + "\n"


def main(
    out: Annotated[Path, typer.Option(help="The JSON file to write")],
    page_file: Annotated[Path | None, typer.Option("--page", help="A Markdown page to write")] = None,
    stores: Annotated[int, typer.Option(min=1, help="Generated stores, each of its own seed")] = N_STORES,
) -> None:
    """Measure on several stores, and write what was found."""
    settings = Settings(_env_file=None)
    with Progress() as progress:
        seeds = range(FIRST_SEED, FIRST_SEED + stores)
        known = [KnownStore(make_store(s), settings, s) for s in progress.track(seeds, description="Training")]
        found = [one.by_threshold() for one in progress.track(known, description="Thresholds")]
        windows = [
            {str(n): one.in_windows(n) for n in N_WINDOWS} for one in progress.track(known, description="Windows")
        ]
    results = {
        "format": FORMAT,
        "command": COMMAND,
        "threshold": THRESHOLD,
        "seeds": [*seeds],
        "stores": found,
        "windows": windows,
    }
    out.write_text(json.dumps(results, indent=1) + "\n")
    if page_file is not None:
        page_file.write_text(page(results))
    typer.echo(page(results))


if __name__ == "__main__":
    typer.run(main)
