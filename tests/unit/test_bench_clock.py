"""What a benchmark's seconds are."""

from __future__ import annotations

import time

from evolver.bench.machine import clock
from evolver.stages import Stages


def test_on_a_cpu_waiting_costs_nothing_and_work_does() -> None:
    stages = Stages(lambda *_: None, clock=clock("cpu"))
    with stages.stage("wait"):
        time.sleep(0.4)
    with stages.stage("work"):
        until = time.process_time() + 0.2
        while time.process_time() < until:
            pass
    assert stages.seconds["wait"] < 0.3
    assert stages.seconds["work"] >= 0.2


def test_beside_an_accelerator_waiting_counts() -> None:
    stages = Stages(lambda *_: None, clock=clock("cuda"))
    with stages.stage("wait"):
        time.sleep(0.05)
    assert stages.seconds["wait"] >= 0.05
