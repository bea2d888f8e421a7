"""`python -m deploy.local.tethered COMMAND...`: becomes COMMAND, which gets SIGTERM when its parent dies.

A process of its own and not a `preexec_fn`, because Python code between fork and exec can deadlock once the parent
has threads. The kernel keeps the setting across the exec.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36
PARENT_VARIABLE = "EVOREC_TETHERED_TO"


def _prctl(option: int, value: int) -> None:
    """Does nothing where the C library has no prctl (anything but Linux)."""
    prctl = getattr(ctypes.CDLL(None), "prctl", None)
    if prctl is not None:
        prctl(option, value, 0, 0, 0)


def adopt_orphans() -> None:
    """Processes whose parent died become children of this one, so that stopping all descendants misses none."""
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)


def main() -> None:
    _prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    parent = os.environ.pop(PARENT_VARIABLE, None)
    if parent is not None and os.getppid() != int(parent):  # it died before the call above
        sys.exit(1)
    os.execvp(sys.argv[1], sys.argv[1:])  # noqa: S606  (an argument list; no shell wanted)


if __name__ == "__main__":
    main()
