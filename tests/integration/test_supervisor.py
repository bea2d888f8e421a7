"""The process supervisor with real child processes: they start together, stop together, and nothing stays behind."""

from __future__ import annotations

import asyncio
import errno
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Coroutine
from pathlib import Path

import psutil
import pytest

from deploy.local import stack
from deploy.local.signals import Interrupted, until_signal
from deploy.local.stack import start_processes, start_redis
from deploy.local.supervisor import ChildDied, ChildSpec, Supervisor, T
from shared.config import Settings

SLEEP = "import time; time.sleep(600)"
IGNORES_SIGTERM = (
    "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('up', flush=True); time.sleep(600)"
)
# A child with a grandchild in a session of its own, which nobody's process group reaches.
DAEMONIZES = (
    "import subprocess, sys, time;"
    f"p = subprocess.Popen([sys.executable, '-c', {SLEEP!r}], start_new_session=True);"
    "print(p.pid, flush=True); {then}"
)


class Lines:
    """A sink that remembers."""

    def __init__(self) -> None:
        self.seen: list[tuple[str, str]] = []

    def __call__(self, name: str, line: str) -> None:
        self.seen.append((name, line))

    async def first(self, timeout_s: float = 30) -> str:
        await until(lambda: bool(self.seen), timeout_s)
        return self.seen[0][1]


async def until(condition: Callable[[], bool], timeout_s: float = 30) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "condition not met in time"
        await asyncio.sleep(0.02)


def python(name: str, code: str, grace_s: float = 5) -> ChildSpec:
    return ChildSpec(name, (sys.executable, "-c", code), grace_s=grace_s)


def runs(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


async def test_lines_of_both_streams_arrive_with_the_name_of_their_child() -> None:
    lines = Lines()
    code = "import sys; print('out'); print('err', file=sys.stderr); print('x' * 3_000_000); print('after')"
    async with Supervisor(lines) as supervisor:
        await supervisor.start(python("talker", code))
        with pytest.raises(ChildDied, match="talker ended with exit code 0") as died:
            await supervisor.watch()
    assert ("talker", "out") in lines.seen
    assert ("talker", "err") in lines.seen
    assert lines.seen[-1] == ("talker", "after")
    assert sum(line.count("x") for _, line in lines.seen) == 3_000_000
    assert str(died.value).endswith("after")


@pytest.mark.parametrize(
    "error",
    [OSError(errno.ENOSPC, "No space left on device"), UnicodeEncodeError("latin-1", "→", 0, 1, "no such letter")],
)
async def test_a_child_goes_on_where_its_lines_cannot_be_written(error: Exception) -> None:
    def fail(name: str, line: str) -> None:
        raise error

    async with Supervisor(fail) as supervisor:
        await supervisor.start(python("talker", "print(('x' * 99 + chr(10)) * 30_000); print('after')"))
        with pytest.raises(ChildDied, match="talker ended with exit code 0") as died:
            await asyncio.wait_for(supervisor.watch(), 30)
    assert str(died.value).endswith("after")


# `evorec up` with one child, which writes many lines after its first, and then ends.
UP = """
import asyncio, sys
from deploy.cli.up import OwnConsole, line_printer
from deploy.local.supervisor import ChildDied, ChildSpec, Supervisor
TALKER = "import os; [os.write(1, (chr(0x2192) + f' {n}' + chr(10)).encode()) for n in range(20_000)]"
async def main():
    async with Supervisor(line_printer(OwnConsole())) as supervisor:
        await supervisor.start(ChildSpec("talker", (sys.executable, "-c", TALKER)))
        await supervisor.watch()
try:
    asyncio.run(main())
except ChildDied as died:
    sys.exit(f"stopped in order, after {str(died)[-5:]}")
"""


@pytest.mark.parametrize("reads_on", [True, False])
def test_up_goes_on_where_nobody_reads_or_letters_are_lacking(reads_on: bool) -> None:
    env = {**os.environ, "PYTHONIOENCODING": "latin-1"}
    with subprocess.Popen(
        [sys.executable, "-c", UP], env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, bufsize=0
    ) as up:
        assert up.stdout is not None
        assert up.stderr is not None
        assert up.stdout.readline() == b" talker | \\u2192 0\n"
        if reads_on:
            assert up.stdout.read().endswith(b" talker | \\u2192 19999\n")
        up.stdout.close()
        said = up.stderr.read().decode()
        assert (up.wait(), said) == (1, "stopped in order, after 19999\n")


async def test_files_of_the_current_folder_are_not_taken_for_ours(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither by the tether, nor by what a child runs with a plain `-m`, as vLLM does."""
    for name in ("deploy", "shared"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('a file of the folder')\n")
    monkeypatch.chdir(tmp_path)
    code = "import subprocess, sys; subprocess.run([sys.executable, '-m', 'deploy.local.tethered', 'echo', 'ours'])"
    lines = Lines()
    async with Supervisor(lines) as supervisor:
        await supervisor.start(python("child", code))
        assert await lines.first() == "ours"


class Recorder(Supervisor):
    """Starts nothing and remembers what it was to start."""

    def __init__(self) -> None:
        super().__init__(Lines())
        self.specs: list[ChildSpec] = []

    async def start(self, spec: ChildSpec) -> None:
        self.specs.append(spec)

    async def guard(self, work: Coroutine[object, object, T]) -> T:
        return await work


async def test_every_process_of_the_stack_ignores_the_current_folder(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def answers(_: Settings) -> None: ...

    monkeypatch.setattr(stack, "_redis_answers", answers)
    supervisor = Recorder()
    await start_redis(supervisor, settings, {})
    await start_processes(supervisor, {})
    assert [spec.command[:3] for spec in supervisor.specs] == [(sys.executable, "-P", "-m")] * 3


async def test_one_death_is_noticed_and_the_others_are_stopped() -> None:
    async with Supervisor(Lines()) as supervisor:
        await supervisor.start(python("steady", SLEEP))
        await supervisor.start(python("fragile", SLEEP))
        steady, fragile = supervisor.pid("steady"), supervisor.pid("fragile")
        os.kill(fragile, signal.SIGKILL)
        with pytest.raises(ChildDied, match="fragile was killed by SIGKILL"):
            await supervisor.guard(asyncio.sleep(60))
    assert not runs(steady)


async def test_a_death_is_noticed_while_a_grandchild_holds_the_pipe() -> None:
    lines = Lines()
    async with Supervisor(lines) as supervisor:
        await supervisor.start(python("parent", DAEMONIZES.format(then="sys.exit(3)")))
        await lines.first()
        with pytest.raises(ChildDied, match="parent ended with exit code 3"):
            await asyncio.wait_for(supervisor.watch(), 30)


async def test_guard_returns_what_the_work_returns() -> None:
    async def work() -> int:
        return 7

    async with Supervisor(Lines()) as supervisor:
        await supervisor.start(python("child", SLEEP))
        assert await supervisor.guard(work()) == 7


async def test_a_child_that_ignores_sigterm_is_killed_after_its_grace_period() -> None:
    lines = Lines()
    async with Supervisor(lines) as supervisor:
        await supervisor.start(python("deaf", IGNORES_SIGTERM, grace_s=0.3))
        await lines.first()
        pid = supervisor.pid("deaf")
        began = time.monotonic()
    assert time.monotonic() - began < 30
    assert not runs(pid)


@pytest.mark.parametrize("then", ["time.sleep(600)", "sys.exit(3)"])
async def test_daemonized_grandchildren_do_not_survive(then: str) -> None:
    lines = Lines()
    async with Supervisor(lines) as supervisor:
        await supervisor.start(python("parent", DAEMONIZES.format(then=then)))
        grandchild = int(await lines.first())
        assert runs(grandchild)
        began = time.monotonic()
    assert not psutil.pid_exists(grandchild), "not even a zombie is left"
    assert time.monotonic() - began < 30


async def test_children_of_others_are_left_alone() -> None:
    with subprocess.Popen([sys.executable, "-c", SLEEP]) as other:
        async with Supervisor(Lines()) as supervisor:
            await supervisor.start(python("child", SLEEP))
        assert other.poll() is None
        other.kill()


async def test_a_signal_stops_the_work_and_closes_its_contexts() -> None:
    async def work() -> None:
        async with Supervisor(Lines()) as supervisor:
            await supervisor.start(python("child", SLEEP))
            pids.append(supervisor.pid("child"))
            os.kill(os.getpid(), signal.SIGTERM)
            await asyncio.sleep(60)

    pids: list[int] = []
    with pytest.raises(Interrupted) as interrupted:
        await until_signal(work())
    assert interrupted.value.exit_code == 128 + signal.SIGTERM
    assert not runs(pids[0])


async def test_the_second_signal_cuts_the_grace_period_short() -> None:
    lines = Lines()

    async def work() -> None:
        async with Supervisor(lines) as supervisor:
            await supervisor.start(python("deaf", IGNORES_SIGTERM, grace_s=60))
            await lines.first()
            os.kill(os.getpid(), signal.SIGINT)
            asyncio.get_running_loop().call_later(0.3, os.kill, os.getpid(), signal.SIGINT)
            await asyncio.sleep(60)

    began = time.monotonic()
    with pytest.raises(Interrupted):
        await until_signal(work())
    assert time.monotonic() - began < 30


async def test_children_end_when_the_supervisor_itself_is_killed(tmp_path: Path) -> None:
    code = (
        "import asyncio, sys\n"
        "from deploy.local.supervisor import ChildSpec, Supervisor\n"
        "async def main():\n"
        "    async with Supervisor(lambda name, line: None) as s:\n"
        f"        await s.start(ChildSpec('child', (sys.executable, '-c', {SLEEP!r})))\n"
        "        print(s.pid('child'), flush=True)\n"
        "        await asyncio.sleep(600)\n"
        "asyncio.run(main())\n"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as supervisor:
        assert supervisor.stdout is not None
        child = int(supervisor.stdout.readline())
        await until(lambda: psutil.Process(child).cmdline()[1:] == ["-c", SLEEP])  # tethered before it became that
        supervisor.kill()
    await until(lambda: not runs(child))
