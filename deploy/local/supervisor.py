"""Child processes that start together, log in one place and stop together, with nothing left running."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
import time
from collections import deque
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import NoReturn, TypeVar

import psutil

from deploy.local.tethered import PARENT_VARIABLE
from shared.errors import EvorecError
from shared.parent import adopt_orphans

# -P: a file in the current folder, a deploy.py of the user's say, must not be taken for ours.
RUN_MODULE = (sys.executable, "-P", "-m")

_LINE_LIMIT = 1 << 20  # bytes of one log line; a longer one is cut into several
_TAIL_LINES = 40
_POLL_S = 0.05

T = TypeVar("T")

LineSink = Callable[[str, str], None]
"""`sink(child name, line)`: called for every line that a child writes to stdout or stderr."""


class ChildDied(EvorecError):
    """A child ended although nobody asked it to."""

    title = "A process ended unexpectedly"


@dataclass(frozen=True, slots=True)
class ChildSpec:
    """What to run. `env`: its environment, None: this process's own. `grace_s`: seconds between SIGTERM and SIGKILL."""

    name: str
    command: tuple[str, ...]
    env: Mapping[str, str] | None = None
    cwd: Path | None = None
    grace_s: float = 20.0


@dataclass(slots=True)
class _Child:
    spec: ChildSpec
    process: asyncio.subprocess.Process
    tail: deque[str]
    pump: asyncio.Task[None]


class Supervisor:
    """Starts children in sessions of their own and stops them in reverse order of their start.

    Leaving the context stops everything: SIGTERM to the child alone (it knows how to stop its own children), SIGKILL
    to its group after the grace period, and at last SIGKILL to whatever descendant is still there: every process that
    this one got, directly or as an orphan, since the context was entered. A cancellation
    while that happens (the second Ctrl-C) cuts the grace periods short. When this process itself is killed, every
    child gets SIGTERM from the kernel.
    """

    def __init__(self, sink: LineSink) -> None:
        self._sink = sink
        self._children: list[_Child] = []
        self._hurry = asyncio.Event()
        self._others: frozenset[psutil.Process] = frozenset()

    async def __aenter__(self) -> Supervisor:
        adopt_orphans()
        self._others = frozenset(psutil.Process().children())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        stopping = asyncio.create_task(self.stop())
        cancelled = False
        while not stopping.done():
            try:
                await asyncio.shield(stopping)
            except asyncio.CancelledError:
                cancelled = True
                self._hurry.set()
        stopping.result()
        if cancelled:
            raise asyncio.CancelledError

    async def start(self, spec: ChildSpec) -> None:
        """Returns once the process exists, not once it is ready."""
        env = {
            **(os.environ if spec.env is None else spec.env),
            "PYTHONUNBUFFERED": "1",
            "PYTHONSAFEPATH": "1",  # -P for what a child starts: vLLM runs a module that imports our plugin
            PARENT_VARIABLE: str(os.getpid()),
        }
        process = await asyncio.create_subprocess_exec(
            *RUN_MODULE,
            "deploy.local.tethered",
            *spec.command,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            limit=_LINE_LIMIT,
            env=env,
            cwd=spec.cwd,
            start_new_session=True,
        )
        tail: deque[str] = deque(maxlen=_TAIL_LINES)
        pump = asyncio.create_task(self._pump(spec.name, process, tail))
        self._children.append(_Child(spec, process, tail, pump))

    def pid(self, name: str) -> int:
        return next(child.process.pid for child in self._children if child.spec.name == name)

    async def watch(self) -> NoReturn:
        """Runs until a child ends by itself, then raises `ChildDied` with the end of its log."""
        ends = {asyncio.create_task(_end(child.process)): child for child in self._children}
        try:
            done, _ = await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for end in ends:
                end.cancel()
        child = ends[done.pop()]
        with contextlib.suppress(TimeoutError):  # its last words may still be in the pipe
            await asyncio.wait_for(asyncio.shield(child.pump), timeout=1)
        raise ChildDied(
            f"{child.spec.name} {_ending(child.process.returncode)}; its log ends:\n" + "\n".join(child.tail)
        )

    async def guard(self, work: Coroutine[object, object, T]) -> T:
        """The result of `work`, or `ChildDied` as soon as a child that it depends on ends."""
        main, watch = asyncio.create_task(work), asyncio.create_task(self.watch())
        try:
            await asyncio.wait({main, watch}, return_when=asyncio.FIRST_COMPLETED)
            return main.result() if main.done() else watch.result()
        finally:
            main.cancel()
            watch.cancel()
            await asyncio.gather(main, watch, return_exceptions=True)

    async def stop(self) -> None:
        for child in reversed(self._children):
            await self._stop_child(child)
        if self._children:
            await asyncio.to_thread(_kill_all_but, self._others)
            await asyncio.wait({child.pump for child in self._children}, timeout=1)
        for child in self._children:
            child.pump.cancel()
        self._children.clear()

    async def _stop_child(self, child: _Child) -> None:
        if child.process.returncode is None:
            child.process.terminate()
            end = asyncio.create_task(_end(child.process))
            hurry = asyncio.create_task(self._hurry.wait())
            await asyncio.wait({end, hurry}, timeout=child.spec.grace_s, return_when=asyncio.FIRST_COMPLETED)
            end.cancel()
            hurry.cancel()
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child.process.pid, signal.SIGKILL)  # the child's own children, even where it has ended well
        await _end(child.process)

    async def _pump(self, name: str, process: asyncio.subprocess.Process, tail: deque[str]) -> None:
        assert process.stdout is not None  # noqa: S101  (for the type checker)
        while raw := await _next_line(process.stdout):
            line = raw.decode("utf-8", "replace").rstrip()
            tail.append(line)
            # A log on a full disk, a terminal without the letter: a pipe that nobody empties would stop the child.
            with contextlib.suppress(Exception):
                self._sink(name, line)


async def _end(process: asyncio.subprocess.Process) -> None:
    """Returns when the process has ended. `Process.wait` of Python 3.11 waits for its pipes as well, which a
    grandchild may hold open for ever."""
    while process.returncode is None:  # noqa: ASYNC110  (asyncio offers nothing to wait for)
        await asyncio.sleep(_POLL_S)


async def _next_line(stream: asyncio.StreamReader) -> bytes:
    """The next line, or a part of one beyond the limit; empty at the end."""
    try:
        return await stream.readuntil(b"\n")
    except asyncio.IncompleteReadError as end:
        return end.partial
    except asyncio.LimitOverrunError as overrun:
        return await stream.readexactly(overrun.consumed)


def _ending(code: int | None) -> str:
    if code is not None and code < 0:
        return f"was killed by {signal.Signals(-code).name}"
    return f"ended with exit code {code}"


def _descendants(others: frozenset[psutil.Process]) -> list[psutil.Process]:
    """Of this process, without `others` and theirs. Marks in the environment would not do: Celery, vLLM and Redis
    overwrite theirs when they set their titles."""
    found = []
    for child in psutil.Process().children():
        if child not in others:
            with contextlib.suppress(psutil.NoSuchProcess):
                found += [*child.children(recursive=True), child]
    return found


def _kill_all_but(others: frozenset[psutil.Process], grace_s: float = 3.0, timeout_s: float = 10.0) -> None:
    """SIGTERM to all descendants, SIGKILL to those that stay and to what they start meanwhile, until none is left."""
    start = time.monotonic()
    while (pending := _descendants(others)) and time.monotonic() < start + timeout_s:
        for process in pending:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.terminate() if time.monotonic() < start + grace_s else process.kill()
            with contextlib.suppress(ChildProcessError):  # an orphan that became ours is ours to reap
                os.waitpid(process.pid, os.WNOHANG)
        time.sleep(0.05)
