"""What training and scoring take where glibc keeps freed memory, and where it gives it back: `shared.allocator`.

    python -m tests.load.allocator [--rounds 5]

One thread, the shipped base, processor's seconds. A process cannot be made to give back again: every round is a process
of each kind, `python -m tests.load.allocator one KIND`.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Annotated

import torch
import typer
from rich.progress import track

from evolver.batches import score_prompts
from evolver.trunk import decoder_layers
from evolver.update import UpdateConfig, update
from shared.allocator import keep_freed_memory
from shared.config import Settings
from shared.prompt import PromptBuilder
from tests.load.results import Entry, compared, save
from tests.load.training import HISTORY, LOCATED, adapted_model, examples

COMMAND = "python -m tests.load.allocator"
KEPT, GIVEN_BACK = "kept", "given back"
N_PROMPTS = 200

app = typer.Typer(add_completion=False)


@app.command()
def one(kind: str) -> None:
    """Prints the seconds of each work, the page faults of all, and the process's largest size in MiB."""
    if kind == KEPT:
        keep_freed_memory()
    torch.set_num_threads(1)
    settings = Settings(prompt_history=HISTORY)
    builder, model = PromptBuilder.load(settings), adapted_model(settings)
    shown = examples(builder, N_PROMPTS)
    prompts = [example.prompt for example in shown]
    everything = range(len(decoder_layers(model)))
    config, labels = UpdateConfig(epochs=1), builder.label_ids
    works: dict[str, Callable[[], object]] = {
        "scores": lambda: score_prompts(model, prompts, labels),
        "training, located layers": lambda: update(model, LOCATED[0], shown, [], [], labels, config),
        "training, all layers": lambda: update(model, everything, shown, [], [], labels, config),
    }
    score_prompts(model, prompts, labels)  # the first call chooses kernels
    faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    found: dict[str, float] = {}
    for name, work in works.items():
        began = time.process_time()
        work()
        found[name] = time.process_time() - began
    used = resource.getrusage(resource.RUSAGE_SELF)
    found |= {"page faults": float(used.ru_minflt - faults), "largest size": used.ru_maxrss / 1024}
    sys.stdout.write(json.dumps(found) + "\n")


def measure(rounds: int) -> list[Entry]:
    """A process of each kind per round, in turn first."""
    found: dict[str, list[dict[str, float]]] = {KEPT: [], GIVEN_BACK: []}
    for number in track(range(rounds), description="Freed memory: rounds"):
        for kind in [KEPT, GIVEN_BACK][:: -1 if number % 2 else 1]:
            command = [sys.executable, "-m", "tests.load.allocator", "one", kind]
            found[kind].append(json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout))
    entries = []
    for name in found[KEPT][0]:
        unit = {"page faults": "faults", "largest size": "MiB"}.get(name, "s")
        kept, given_back = ([one[name] for one in found[kind]] for kind in (KEPT, GIVEN_BACK))
        baseline = f"{name}, memory {GIVEN_BACK}"
        entries += [
            compared(baseline, unit, given_back, COMMAND),
            compared(f"{name}, memory {KEPT}", unit, kept, COMMAND, baseline=baseline, against=given_back),
        ]
    return entries


@app.callback(invoke_without_command=True)
def main(ctx: typer.Context, rounds: Annotated[int, typer.Option(min=1)] = 5) -> None:
    """Measure and write docs/results/performance.json."""
    if ctx.invoked_subcommand is None:
        save("allocator", measure(rounds))


if __name__ == "__main__":
    app()
