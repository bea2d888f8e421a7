"""The worker process: a Celery worker that runs one evolution at a time, and the tick beside it.

An evolution runs in a child process that ends with it, so torch's memory goes back to the system and a crash there
takes nothing else along. The parent holds no torch (a fork of it might not work with a GPU); it receives tasks and
signals, and its tick starts what is due.
"""

from __future__ import annotations

import asyncio
import logging
import mmap
import os
import signal
import threading
from typing import Any, Final

import structlog
from celery import Celery, signals

from evolver import heartbeat, tasks, trigger, upkeep
from evolver.attempt import Surroundings, load_pipeline
from evolver.backend import open_backend
from evolver.figures import Figures
from evolver.inputs import Pipeline
from evolver.monitor import MAX_RUN_S
from evolver.trigger import Enqueue
from evolver.upkeep import EnqueueUpkeep
from shared.allocator import keep_freed_memory
from shared.config import Settings
from shared.fixed_settings import require_fixed_settings_at_start
from shared.parent import signal_when_parent_dies
from shared.redis_urls import broker_url, task_queue
from shared.telemetry import configure_logging

log = structlog.get_logger(__name__)

# A run ends itself after MAX_RUN_S; the pool kills one that does not. A message is delivered again only later still.
HARD_TIME_LIMIT_S: Final = int(MAX_RUN_S) + 600
VISIBILITY_TIMEOUT_S: Final = HARD_TIME_LIMIT_S + 3600
DRAIN_S: Final = 15.0

_CHATTY: Final = ("celery.worker.strategy", "celery.app.trace")  # our own records say more of a run's begin and end


class Flag:
    """A yes or no that the parent sets and its children read: one byte of shared memory, no lock to die with."""

    def __init__(self) -> None:
        self._memory = mmap.mmap(-1, 1)

    def set(self) -> None:
        self._memory[0] = 1

    def is_set(self) -> bool:
        return self._memory[0] == 1


def create_app(settings: Settings, surroundings: Surroundings | None = None) -> Celery:
    """The Celery app `evorec`: JSON only, late acknowledgement, one message at a time, no results."""
    app = Celery("evorec", broker=broker_url(settings), set_as_current=False)
    app.conf.update(
        accept_content=["json"],
        task_serializer="json",
        task_default_queue=task_queue(settings),
        task_ignore_result=True,
        task_acks_late=True,
        task_time_limit=HARD_TIME_LIMIT_S,
        broker_transport_options={"visibility_timeout": VISIBILITY_TIMEOUT_S},
        broker_connection_retry_on_startup=True,
        broker_connection_max_retries=None,
        # A lost broker connection does not end a run: its lease tells whether the run is still the one that counts.
        worker_cancel_long_running_tasks_on_connection_loss=False,
        worker_prefetch_multiplier=1,
        worker_max_tasks_per_child=1,
        worker_enable_remote_control=False,
        worker_hijack_root_logger=False,
        worker_redirect_stdouts=False,
    )
    tasks.register(app, settings, surroundings or Surroundings())
    return app


def run(settings: Settings, pipeline: Pipeline | None = None) -> int:
    """Work until SIGTERM or SIGINT; the process's exit status.

    A signal ends a running evolution at its next step and puts it back into the queue; what takes longer than
    `DRAIN_S` is killed, and redone from its start. `pipeline` replaces `evolver.pipeline.run_pipeline` in tests.
    Raises `Conflict` where the data in Redis were written by other settings.
    """
    configure_logging(settings, "worker")
    for name in _CHATTY:
        logging.getLogger(name).setLevel(logging.WARNING)
    asyncio.run(require_fixed_settings_at_start(settings))
    figures = Figures()
    figures.serve(settings)  # before the worker takes a task: Celery swallows what a signal's receiver raises
    stopping = Flag()
    app = create_app(settings, Surroundings(pipeline=pipeline, interrupted=stopping.is_set))
    ticker = Ticker(settings, figures, tasks.enqueuer(app), tasks.upkeep_enqueuer(app))

    def begin(**_: object) -> None:
        ticker.start()
        log.info("worker_ready", pid=os.getpid())

    def drain(**_: object) -> None:
        stopping.set()
        ticker.stop()
        _kill_self_after(DRAIN_S)

    def prepare_child(**_: object) -> None:
        # A killed worker takes its child along: nobody would look after it, and two of them might not fit in memory.
        signal_when_parent_dies(signal.SIGKILL)  # Linux only; elsewhere the lease alone keeps runs apart
        _stay_in_the_background()
        keep_freed_memory()
        if pipeline is None:
            # While the child waits for a run: half of a short run's time would go into imports.
            threading.Thread(target=load_pipeline, name="evolver-warm-up", daemon=True).start()

    # Signals keep weak references: these closures live as long as this frame, which is as long as the worker.
    signals.worker_ready.connect(begin)
    signals.worker_shutting_down.connect(drain)
    signals.worker_process_init.connect(prepare_child)
    worker: Any = app.Worker(
        pool="prefork",
        concurrency=1,
        loglevel=settings.log_level,
        without_gossip=True,
        without_mingle=True,
        without_heartbeat=True,
        quiet=True,
    )
    worker.start()
    return 0 if stopping.is_set() else int(worker.exitcode or 0)  # Celery calls Ctrl-C a failure


def _stay_in_the_background() -> None:
    """Serving goes first where both share a machine: measured on 2 cores, two pools of spinning threads made both some
    ten times slower. To be called before torch is loaded.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    os.nice(10)


def _kill_self_after(seconds: float) -> None:
    def kill() -> None:
        log.warning("worker_drain_timeout", seconds=seconds)
        os.kill(os.getpid(), signal.SIGKILL)

    timer = threading.Timer(seconds, kill)
    timer.daemon = True
    timer.start()


class Ticker:
    """Both ticks every `settings.trigger_tick_s`, in a thread of its own; survives whatever they raise."""

    def __init__(self, settings: Settings, figures: Figures, enqueue: Enqueue, enqueue_upkeep: EnqueueUpkeep) -> None:
        self._settings = settings
        self._figures = figures
        self._enqueue = enqueue
        self._enqueue_upkeep = enqueue_upkeep
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="evolver-tick", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stop.set()

    def _run(self) -> None:
        while not self._stop.is_set():
            try:
                asyncio.run(self._ticks())
            except Exception:
                log.exception("tick_failed")
                self._stop.wait(self._settings.trigger_tick_s)

    async def _ticks(self) -> None:
        async with open_backend(self._settings) as backend:
            while not self._stop.is_set():
                await trigger.tick(backend, self._enqueue)
                await upkeep.tick(backend, self._enqueue_upkeep)
                await self._figures.read(backend)
                await heartbeat.beat(backend.redis, self._settings.trigger_tick_s)
                await asyncio.to_thread(self._stop.wait, self._settings.trigger_tick_s)
