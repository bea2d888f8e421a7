"""Long work is seen to go on where there is no terminal, too."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from deploy.output import share_progress


@pytest.mark.parametrize("terminal", [False, True])
def test_without_a_terminal_a_line_a_minute_says_how_far_the_work_is(terminal: bool) -> None:
    out, now = io.StringIO(), [100.0]
    with share_progress(Console(file=out, force_terminal=terminal, width=60), lambda: now[0]) as progress:
        rounds, step = progress.add_task("Seed 0", total=4), progress.add_task("", total=1.0)
        progress.update(rounds, completed=1, description="Seed 0: round 1 [evorec]")
        for second in range(130):
            now[0] = 100.0 + second
            progress.update(step, completed=second / 130, description="update")
        lines = [line for line in out.getvalue().splitlines() if "  Seed 0: round 1 [evorec] 25%" in line]
    assert lines == (
        []
        if terminal
        else [
            "0:00:00  Seed 0: round 1 [evorec] 25%",
            "0:01:00  Seed 0: round 1 [evorec] 25%, update 46%",
            "0:02:00  Seed 0: round 1 [evorec] 25%, update 92%",
        ]
    )
