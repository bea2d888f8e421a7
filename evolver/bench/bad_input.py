"""What a benchmark cannot be made from, and what to do about it."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime

from shared.errors import InvalidInput
from shared.types import Interaction

FIRST_DATE = 1e8
"""Unix seconds, March 1973: no shop's log goes back to it, and positions in a file do not reach it."""
MIN_PART = 20
"""Interactions of a part: with fewer there is nothing to learn from a window, or to score it on."""


def require_dates(events: Sequence[Interaction]) -> None:
    """Refuse timestamps that only say which came first.

    Windows, and the half-life of popularity, are made of days: positions taken for seconds would make all of history
    one moment, and the benchmark would compare against a popularity that no shop has.
    """
    if not events:
        return
    oldest, newest = (min(e.timestamp for e in events), max(e.timestamp for e in events))
    if oldest == newest:
        raise InvalidInput(
            f"All {len(events):,} interactions have the timestamp {newest:.0f}: there is no past to learn from and no "
            "future to predict. Give each interaction the time when it happened."
        )
    if max(abs(oldest), abs(newest)) < FIRST_DATE:
        raise InvalidInput(
            f"The timestamps of the interactions ({oldest:.0f} to {newest:.0f}) are no unix seconds (these would be "
            f"{_date(oldest)} to {_date(newest)}) but seem to be positions. Windows and time-decayed popularity need "
            "the time of each interaction: give unix seconds or ISO 8601 in the column timestamp."
        )


def require_enough(n_events: int, n_read: int, cuts: Sequence[int]) -> None:
    """Refuse a dataset whose parts are too small, or say that nearly everything was left out on the way."""
    smallest = min(after - before for before, after in zip((0, *cuts), cuts, strict=False))
    if smallest < MIN_PART:
        raise InvalidInput(
            f"{n_events:,} interactions are too few to split by time: the smallest part has {smallest}, it takes "
            f"{MIN_PART}. {n_read:,} were read; those on items that the catalog lacks, of an event type that is not in "
            "EVOREC_POSITIVE_EVENTS, or that occur twice do not count. Give more interactions, or the items that lack."
        )


def require_cases(number: int, counts: dict[str, int]) -> None:
    """Refuse a round in which nobody can be evaluated, or learned from."""
    missing = [what for what, count in counts.items() if not count]
    if missing:
        shorter = f", or --rounds {number - 1}" if number > 1 else ""
        raise InvalidInput(
            f"Round {number} has no {' and no '.join(missing)}. Users who come back are what the benchmark looks at: "
            f"give interactions of more users, or over a longer time{shorter}."
        )


def require_learners(number: int, counts: Sequence[int]) -> None:
    """Refuse updates of a round where one of them has nobody to learn from; `counts` are those who are there."""
    alone = [update for update, count in enumerate(counts, 1) if not count]
    if alone:
        raise InvalidInput(
            f"Of round {number}'s {len(counts)} updates, {len(alone)} (the first of them number {alone[0]}) have no "
            "active user to learn from: give fewer --updates-per-round, or interactions of more users."
        )


def _date(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).date().isoformat()
