"""The tables of docs/reliability.md, from docs/results/reliability.json: `python -m tests.faults.page`.

The table of a promise stands between `<!-- table: promise-N -->` and `<!-- end -->`; the rest is written by hand.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from typing import Any

from tests.faults.results import RESULTS
from tests.load.page import with_tables
from tests.load.results import ROOT

PAGE = ROOT / "docs" / "reliability.md"
PROMISES = range(1, 8)


def rendered(page: str, results: Mapping[str, Any]) -> str:
    """The page with its tables made anew. `KeyError` for a promise that has no results."""
    by_promise: dict[str, list[tuple[str, Any]]] = {}
    for test, found in results.items():
        by_promise.setdefault(f"promise-{found['promise']}", []).append((test, found))
    return with_tables(page, {section: _table(rows) for section, rows in by_promise.items()})


def _table(rows: list[tuple[str, Any]]) -> str:
    head = ["| what holds | faults injected | checked | lost | size | test |", "| --- | --- | --- | --- | --- | --- |"]
    return "\n".join([*head, *(_row(test, found) for test, found in rows)]) + "\n"


def _row(test: str, found: Any) -> str:
    faults = ", ".join(f"{count:,} x {what}" for what, count in found["faults"].items())
    file, _, name = test.removeprefix("tests/faults/").partition("::")
    return (
        f"| {found['what']} | {faults} | {found['cases']:,} | {found['lost']} | {found['size']} | `{file}`: `{name}` |"
    )


def main() -> int:
    PAGE.write_text(rendered(PAGE.read_text(), json.loads(RESULTS.read_text())))
    return 0


if __name__ == "__main__":
    sys.exit(main())
