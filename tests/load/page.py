"""The tables of docs/performance.md, from docs/results/performance.json: `python -m tests.load.page`.

A table stands between `<!-- table: SECTION -->` and `<!-- end -->`; what stands around it is written by hand.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Mapping
from typing import Any

from tests.load.results import RESULTS, ROOT

PAGE = ROOT / "docs" / "performance.md"
_TABLE = re.compile(r"(<!-- table: (?P<section>[\w-]+) -->\n).*?(<!-- end -->)", re.DOTALL)


def rendered(page: str, results: dict[str, Any]) -> str:
    """The page with its tables made anew. `KeyError` for a section that has no results."""
    return with_tables(page, {section: _table(found) for section, found in results.items()})


def with_tables(page: str, tables: Mapping[str, str]) -> str:
    """The page with each marked table replaced. `KeyError` for a marker without a table."""
    return _TABLE.sub(lambda found: f"{found[1]}{tables[found['section']]}{found[3]}", page)


def _table(section: dict[str, Any]) -> str:
    made_on = section["machine"]
    head = [
        f"{made_on['cpu']}, {made_on['cores']} cores, widest instructions {made_on['widest_instructions']}, "
        f"{made_on['dtype']}; `{section['entries'][0]['command']}`",
        "",
        "| | value | ratio (smallest to largest) | target | against | runs |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    return "\n".join([*head, *(_row(entry) for entry in section["entries"])]) + "\n"


def _row(entry: dict[str, Any]) -> str:
    low, high = entry["spread"]
    spread = f"({_number(low)} to {_number(high)})" if entry["runs"] > 1 else ""
    ratio = f"{entry['ratio']:.2f} {spread}" if entry["ratio"] is not None else spread
    target = "" if entry["target"] is None else f"{entry['target']:.2f}"
    value = f"{_number(entry['value'])} {entry['unit']}"
    return f"| {entry['name']} | {value} | {ratio.strip()} | {target} | {entry['baseline'] or ''} | {entry['runs']} |"


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def main() -> int:
    page = rendered(PAGE.read_text(), json.loads(RESULTS.read_text()))
    PAGE.write_text(page)
    return 0


if __name__ == "__main__":
    sys.exit(main())
