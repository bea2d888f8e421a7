"""The work of a benchmark's seeds in several processes: first what a seed's strategies share, then each by itself.

They meet in the seeds' folders, where locks keep two from making the same step. Whoever goes on there afterwards finds
everything done.
"""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, replace

from deploy.cli.bench_run import Plan
from shared.errors import EvorecError

POLL_S = 0.5


@dataclass(frozen=True, slots=True)
class Job:
    """One process's part of a seed. Without strategies it is what all of them share; `leave_one_out` needs nothing."""

    seed: int
    strategies: tuple[str, ...] = ()
    leave_one_out: bool = False


def run_at_once(plan: Plan, seeds: Sequence[int], base: str, processes: int, on_poll: Callable[[], None]) -> None:
    """Do all steps of these seeds on a base. `on_poll` is called twice a second, and at the end.

    Raises what a job raised, the first of them; the others are then ended, and go on behind their last steps when the
    work is taken up again.
    """
    _share_threads(processes)
    # New objects, without the timelines that ours have read.
    quiet = replace(plan, source=replace(plan.source, quiet=True))
    with ProcessPoolExecutor(processes, mp_context=multiprocessing.get_context("spawn")) as pool:
        pending: dict[Future[None], Job] = {}

        def submit(job: Job) -> None:
            pending[pool.submit(_work, quiet, base, job)] = job

        try:
            for seed in seeds:
                submit(Job(seed))
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
            for child in multiprocessing.active_children():
                child.terminate()
            if isinstance(error, BrokenProcessPool):
                raise EvorecError(
                    "A process of the benchmark was ended from outside, most likely for want of memory. What is done "
                    "is kept: the same command goes on, with fewer --processes."
                ) from error
            raise


def _afterwards(plan: Plan, job: Job) -> list[Job]:
    """What can begin once a job is done."""
    if job.strategies or job.leave_one_out:
        return []
    of_strategies = [Job(job.seed, (name,)) for name in plan.strategies]
    return [*of_strategies, *([Job(job.seed, leave_one_out=True)] if plan.has_leave_one_out(job.seed) else [])]


def _work(plan: Plan, base: str, job: Job) -> None:
    from transformers.utils import logging

    logging.disable_progress_bar()
    timeline, _ = plan.source.timeline(job.seed)
    run = replace(plan, strategies=job.strategies).seed_run(job.seed, timeline, base)
    replace(run, leave_one_out=job.leave_one_out).run(_Silent())


class _Silent:
    """A watcher that shows nothing: many bars would write across each other."""

    def step(self, title: str, done: int, total: int) -> None:
        pass

    def report(self, stage: str, share: float) -> None:
        pass


def _share_threads(processes: int) -> None:
    """Divide the cores among the processes, unless the environment has decided."""
    if "OMP_NUM_THREADS" in os.environ:
        return
    import torch

    threads = max(1, len(os.sched_getaffinity(0)) // processes)
    os.environ["OMP_NUM_THREADS"] = str(threads)
    torch.set_num_threads(threads)  # the results say how many were used
