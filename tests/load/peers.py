"""The same rankings by what one would use instead, in turn within one run: `python -m tests.load.peers`.

The same base, the same prompts, four adapters mixed: the service's engine with its kernels; `vllm serve`, the OpenAI
endpoint, with vLLM's own LoRA; transformers + PEFT, which switches adapters between batches.
"""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Annotated, Any

import httpx
import torch
import typer
from rich.progress import Progress
from transformers import AutoModelForCausalLM

from deploy.demo.state import free_port
from evolver.stores import make_store
from service.engine import LORA_MODULES, engine_environment
from service.lora_kernels import SWITCH
from shared.config import Settings
from shared.precision import cpu_dtype
from shared.prompt import Prompt, PromptBuilder
from tests.load.engine_only import EngineOnly, engine_only
from tests.load.kernels import RANK, tiny_model
from tests.load.results import compared, save

COMMAND = "python -m tests.load.peers"
N_PROMPTS = 32
N_ADAPTERS = 4
CLIENTS = 16
START_S = 300


def prompts(settings: Settings, rounds: int) -> list[list[Prompt]]:
    """As many of a generated store for every round, and one to warm up; none comes twice."""
    builder, store = PromptBuilder.load(settings), make_store(7, n_users=N_PROMPTS * (rounds + 1))
    items = store.items
    built = [
        builder.build(
            [items[(11 * n + k) % len(items)] for k in range(10)],
            [items[(7 * n + 13 * k) % len(items)] for k in range(20)],
        )
        for n in range(N_PROMPTS * (rounds + 1))
    ]
    return [built[start : start + N_PROMPTS] for start in range(0, len(built), N_PROMPTS)]


# -- vllm serve -----------------------------------------------------------------------------------
@asynccontextmanager
async def vllm_serve(settings: Settings, adapters: Sequence[Path], log: Path) -> AsyncIterator[httpx.AsyncClient]:
    """RuntimeError with the end of its log where it ends."""
    port = free_port()
    modules = [json.dumps({"name": folder.name, "path": str(folder)}) for folder in adapters]
    arguments = {
        "--model": settings.base_model,
        "--port": str(port),
        "--dtype": cpu_dtype(settings.dtype),
        "--max-model-len": "1024",
        "--max-loras": str(N_ADAPTERS),
        "--max-lora-rank": str(RANK),
        "--max-logprobs": "20",
    }
    flags = [part for pair in arguments.items() for part in pair]
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", *flags, "--enforce-eager", "--enable-lora"]
    command += ["--no-enable-prefix-caching", "--lora-target-modules", *LORA_MODULES, "--lora-modules", *modules]
    env = {**os.environ, **engine_environment(settings), SWITCH: "0"}
    with log.open("wb") as output:
        process = subprocess.Popen(command, env=env, stdout=output, stderr=output)
    try:
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=600) as http:
            async with asyncio.timeout(START_S):
                while not await _healthy(http):
                    if process.poll() is not None:
                        raise RuntimeError((await asyncio.to_thread(log.read_text))[-3000:])
                    await asyncio.sleep(0.5)
            yield http
    finally:
        process.terminate()
        process.wait(60)


async def _healthy(http: httpx.AsyncClient) -> bool:
    try:
        return (await http.get("/health")).status_code == 200
    except httpx.TransportError:
        return False


async def ask_vllm(http: httpx.AsyncClient, batch: Sequence[Prompt], adapters: Sequence[Path]) -> float:
    """Seconds for all prompts, `CLIENTS` at a time."""
    slots = asyncio.Semaphore(CLIENTS)

    async def ask(number: int, prompt: Prompt) -> None:
        body = {
            "model": adapters[number % len(adapters)].name,
            "prompt": list(prompt.token_ids),
            "max_tokens": 1,
            "temperature": 0,
            "logprobs": 20,
        }
        async with slots:
            answer = await http.post("/v1/completions", json=body)
        assert answer.status_code == 200, answer.text

    began = time.perf_counter()
    await asyncio.gather(*(ask(number, prompt) for number, prompt in enumerate(batch)))
    return time.perf_counter() - began


# -- transformers + PEFT --------------------------------------------------------------------------
class Peft:
    """Batches of one adapter each, since PEFT switches for the whole model."""

    def __init__(self, settings: Settings, adapters: Sequence[Path]) -> None:
        from peft import PeftModel

        dtype = getattr(torch, cpu_dtype(settings.dtype))
        base = AutoModelForCausalLM.from_pretrained(settings.base_model, dtype=dtype)
        self._model: Any = PeftModel.from_pretrained(base, str(adapters[0]), adapter_name="0")
        for number, folder in enumerate(adapters[1:], start=1):
            self._model.load_adapter(str(folder), adapter_name=str(number))
        self._model.eval()

    @torch.inference_mode()
    def seconds(self, batch: Sequence[Prompt]) -> float:
        began = time.perf_counter()
        for adapter in range(N_ADAPTERS):
            self._model.set_adapter(str(adapter))
            rows = [list(prompt.token_ids) for prompt in batch[adapter::N_ADAPTERS]]
            longest = max(map(len, rows))
            ids = torch.tensor([[0] * (longest - len(row)) + row for row in rows])
            mask = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in rows])
            self._model(input_ids=ids, attention_mask=mask, logits_to_keep=1)
        return time.perf_counter() - began


async def measure(rounds: int) -> None:
    settings = Settings(_env_file=None)
    batches = prompts(settings, rounds)
    ours: list[float] = []
    serve: list[float] = []
    peft: list[float] = []
    with tempfile.TemporaryDirectory() as folder:
        adapters = tiny_model(Path(folder), N_ADAPTERS).adapters
        switching = Peft(settings, adapters)
        async with (
            engine_only(settings) as engine,
            vllm_serve(settings, adapters, Path(folder) / "serve.log") as http,
        ):
            await _ours(engine, batches[0], adapters)
            await ask_vllm(http, batches[0], adapters)
            switching.seconds(batches[0])
            with Progress() as progress:
                for batch in progress.track(batches[1:], description="Peers: rounds"):
                    ours.append(N_PROMPTS / await _ours(engine, batch, adapters))
                    serve.append(N_PROMPTS / await ask_vllm(http, batch, adapters))
                    peft.append(N_PROMPTS / await asyncio.to_thread(switching.seconds, batch))
    name = f"this project's engine, {CLIENTS} at once"
    instead = {
        f"vllm serve, vLLM's own LoRA, {CLIENTS} at once": serve,
        "transformers + PEFT, a batch for each adapter": peft,
    }
    entries = [
        compared(peer, "rankings/s", rates, COMMAND, baseline=name, against=ours) for peer, rates in instead.items()
    ]
    save("peers", [compared(name, "rankings/s", ours, COMMAND), *entries])


async def _ours(engine: EngineOnly, batch: Sequence[Prompt], adapters: Sequence[Path]) -> float:
    folders = [adapters[number % len(adapters)] for number in range(len(batch))]
    return (await engine.rank(batch, folders, CLIENTS)).seconds


def main(rounds: Annotated[int, typer.Option(min=1)] = 5) -> None:
    """Measure and write docs/results/performance.json."""
    asyncio.run(measure(rounds))


if __name__ == "__main__":
    typer.run(main)
