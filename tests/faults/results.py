"""What the fault tests tried and what was lost: a JSON file that `make faults` writes and docs/reliability.md shows."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from tests.load.results import ROOT

RESULTS = ROOT / "docs" / "results" / "reliability.json"


@dataclass(frozen=True)
class Outcome:
    """One fault test's run. `promise`: its number in docs/reliability.md; `faults`: what was done to the system, how
    often; `cases`: how many things were checked afterwards; `lost`: how many of them did not hold. `size`: full, or
    short as in `make test`.
    """

    promise: int
    what: str
    faults: Mapping[str, int]
    cases: int
    lost: int
    seconds: float
    size: str = "full"


def save(test: str, outcome: Outcome, path: Path = RESULTS) -> None:
    """Put a test's outcome (`test`: tests/faults/test_x.py::test_y) in place of the one that the file had of it.

    One of full size gives way to none of the short form.
    """
    known = json.loads(path.read_text()) if path.exists() else {}
    if outcome.size != "full" and known.get(test, {}).get("size") == "full":
        return
    known[test] = asdict(outcome)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(dict(sorted(known.items())), indent=1) + "\n")
