"""`python -m tests.dependencies`: pip-audit over the pinned versions. Never green where nothing was audited.

Exit status: 0 audited without a finding, 1 known vulnerabilities, 3 nothing could be audited (an index without
vulnerability data answers "not found" for everything, and pip-audit calls that a success).
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
CLEAN, VULNERABLE, NOT_AUDITED = 0, 1, 3


def verdict(report: Mapping[str, Any]) -> tuple[int, str]:
    """Exit status and words for pip-audit's JSON report.

    >>> verdict({"dependencies": [{"name": "a", "skip_reason": "not found"}]})[0]
    3
    """
    dependencies = report["dependencies"]
    skipped = sorted(each["name"] for each in dependencies if "skip_reason" in each)
    found = [
        f"  {each['name']} {each['version']}: {vulnerability['id']}, fixed in "
        f"{', '.join(vulnerability['fix_versions']) or 'no version yet'}"
        for each in dependencies
        for vulnerability in each.get("vulns", ())
    ]
    n_audited = len(dependencies) - len(skipped)
    if n_audited == 0:
        return NOT_AUDITED, f"WARNING: NOTHING WAS AUDITED: no vulnerability data for any of {len(skipped)} packages"
    rest = f"; not audited: {', '.join(skipped)}" if skipped else ""
    if found:
        return VULNERABLE, "\n".join([f"{len(found)} known vulnerabilities in {n_audited} packages{rest}:", *found])
    return CLEAN, f"no known vulnerability in {n_audited} packages{rest}"


def audit(constraints: Path) -> tuple[int, str]:
    """The verdict on a constraints file. A local version (`+cpu`) is audited as the release that it was built from."""
    pins = [line.partition("+")[0] for line in constraints.read_text().splitlines()]
    with tempfile.TemporaryDirectory() as folder:
        public = Path(folder) / "requirements.txt"
        public.write_text("\n".join(pins) + "\n")
        command = [sys.executable, "-m", "pip_audit", "-r", str(public), "--no-deps", "--disable-pip", "-f", "json"]
        done = subprocess.run([*command, "--progress-spinner", "off"], capture_output=True, text=True, check=False)
    try:
        return verdict(json.loads(done.stdout))
    except (ValueError, KeyError):
        return NOT_AUDITED, f"WARNING: NOTHING WAS AUDITED: pip-audit failed: {done.stderr.strip()[-500:]}"


def main() -> int:
    worst = CLEAN
    for name in ("constraints.txt", "constraints-gpu.txt"):
        status, words = audit(ROOT / name)
        print(f"{name}: {words}")  # noqa: T201
        worst = status if worst != VULNERABLE and status != CLEAN else worst
    return worst


if __name__ == "__main__":
    sys.exit(main())
