"""The work of a benchmark's seeds in several processes: first what a seed's strategies share, and beside it what waits
for nothing, then each strategy by itself.

They meet in the seeds' folders, where locks keep two from making the same step. Whoever goes on there afterwards finds
everything done.
"""

from __future__ import annotations

import multiprocessing
import signal
import traceback
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, replace

from deploy.cli.bench_run import Plan
from deploy.output import log_as_notes
from shared.allocator import keep_freed_memory
from shared.errors import EvorecError
from shared.parent import signal_when_parent_dies

POLL_S = 0.5


@dataclass(frozen=True, slots=True)
class Job:
    """One process's part of a seed. Without strategies it is what all of them share, or `leave_one_out`."""

    seed: int
    strategies: tuple[str, ...] = ()
    leave_one_out: bool = False


def run_at_once(plan: Plan, seeds: Sequence[int], base: str, on_poll: Callable[[], None]) -> None:
    """Do all steps of these seeds on a base, in `plan.processes`. `on_poll` is called twice a second and at the end.

    Raises what a job raised, the first of them; the others are then ended, and go on behind their last steps when the
    work is taken up again.
    """
    # New objects, without the timelines that ours have read.
    quiet = replace(plan, source=replace(plan.source, quiet=True))
    before = set(multiprocessing.active_children())
    with ProcessPoolExecutor(
        plan.processes,
        mp_context=multiprocessing.get_context("spawn"),
        initializer=_begin,
        initargs=(plan.threads,),
    ) as pool:
        pending: dict[Future[None], Job] = {}

        def submit(job: Job) -> None:
            pending[pool.submit(_work, quiet, base, job)] = job

        try:
            for seed in seeds:
                submit(Job(seed))
            for seed in filter(plan.has_leave_one_out, seeds):
                submit(Job(seed, leave_one_out=True))  # it waits for nothing, strategies wait for what they share
            while pending:
                done, _ = wait(pending, timeout=POLL_S, return_when=FIRST_COMPLETED)
                for future in done:
                    job = pending.pop(future)
                    future.result()
                    for then in _afterwards(plan, job):
                        submit(then)
                on_poll()
        except BaseException as error:
            pool.shutdown(wait=False, cancel_futures=True)
            for child in set(multiprocessing.active_children()) - before:
                child.terminate()
            if isinstance(error, BrokenProcessPool):
                raise EvorecError(
                    "A process of the benchmark ended unexpectedly, often for want of memory. What is done is kept: "
                    "the same command goes on, with fewer --processes (with one, on a GPU, also --shared)."
                ) from error
            raise


def _afterwards(plan: Plan, job: Job) -> list[Job]:
    """What can begin once a job is done."""
    if job.strategies or job.leave_one_out:
        return []
    return [Job(job.seed, (name,)) for name in plan.strategies]


# -- in the processes -------------------------------------------------------------------------------------------------


def _begin(threads: int | None) -> None:
    """What each process does first."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent hears Ctrl-C too, and ends us
    signal_when_parent_dies(signal.SIGKILL)  # or we would work on, and hold memory and locks
    log_as_notes()
    keep_freed_memory()
    import torch
    from transformers.utils import logging

    logging.disable_progress_bar()
    if threads is not None:
        torch.set_num_threads(threads)


def _work(plan: Plan, base: str, job: Job) -> None:
    try:
        timeline, _ = plan.source.timeline(job.seed)
        run = replace(plan, strategies=job.strategies).seed_run(job.seed, timeline, base)
        if job.leave_one_out:
            run.try_leave_one_out(_Silent())
        else:
            replace(run, leave_one_out=False).run(_Silent())
    except EvorecError:
        raise
    except Exception:  # not every library's error can be made again in the parent, and one that cannot breaks the pool
        raise RuntimeError(traceback.format_exc()) from None


class _Silent:
    """A watcher that shows nothing: many bars would write across each other."""

    def step(self, title: str, done: int, total: int) -> None:
        pass

    def report(self, stage: str, share: float) -> None:
        pass
