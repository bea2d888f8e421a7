from __future__ import annotations

from typing import Any

import pytest

from tests.dependencies import CLEAN, NOT_AUDITED, VULNERABLE, verdict

SKIPPED = {"name": "torch", "skip_reason": "Dependency not found on PyPI and could not be audited: torch (2.13.0)"}
FINE = {"name": "redis", "version": "7.0", "vulns": []}
BAD = {"name": "h11", "version": "0.1", "vulns": [{"id": "CVE-1", "fix_versions": ["0.2"], "description": ""}]}
UNFIXED = {"name": "x", "version": "1", "vulns": [{"id": "CVE-2", "fix_versions": []}]}


@pytest.mark.parametrize(
    ("dependencies", "status", "words"),
    [
        ([SKIPPED, SKIPPED], NOT_AUDITED, "NOTHING WAS AUDITED"),
        ([], NOT_AUDITED, "NOTHING WAS AUDITED"),
        ([FINE], CLEAN, "no known vulnerability in 1 packages"),
        ([FINE, SKIPPED], CLEAN, "not audited: torch"),
        ([FINE, BAD], VULNERABLE, "h11 0.1: CVE-1, fixed in 0.2"),
        ([SKIPPED, UNFIXED], VULNERABLE, "x 1: CVE-2, fixed in no version yet"),
    ],
)
def test_an_audit_is_green_only_where_something_was_audited(
    dependencies: list[dict[str, Any]], status: int, words: str
) -> None:
    found = verdict({"dependencies": dependencies})
    assert found[0] == status
    assert words in found[1]
