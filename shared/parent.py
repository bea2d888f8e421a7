"""What Linux can do about a process whose parent dies. On other systems nothing happens."""

from __future__ import annotations

import ctypes
import signal

_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36


def signal_when_parent_dies(number: signal.Signals) -> None:
    """The kernel sends this process a signal once its parent is gone; the setting survives an exec."""
    _prctl(_PR_SET_PDEATHSIG, number)


def adopt_orphans() -> None:
    """Processes whose parent died become children of this one, so that stopping all descendants misses none."""
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)


def _prctl(option: int, value: int) -> None:
    prctl = getattr(ctypes.CDLL(None), "prctl", None)
    if prctl is not None:
        prctl(option, value, 0, 0, 0)
