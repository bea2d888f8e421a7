"""`python -m deploy.local.tethered COMMAND...`: becomes COMMAND, which gets SIGTERM when its parent dies.

A process of its own and not a `preexec_fn`, because Python code between fork and exec can deadlock once the parent
has threads. The kernel keeps the setting across the exec.
"""

from __future__ import annotations

import os
import signal
import sys

from shared.parent import signal_when_parent_dies

PARENT_VARIABLE = "EVOREC_TETHERED_TO"


def main() -> None:
    signal_when_parent_dies(signal.SIGTERM)
    parent = os.environ.pop(PARENT_VARIABLE, None)
    if parent is not None and os.getppid() != int(parent):  # it died before the call above
        sys.exit(1)
    os.execvp(sys.argv[1], sys.argv[1:])  # noqa: S606  (an argument list; no shell wanted)


if __name__ == "__main__":
    main()
