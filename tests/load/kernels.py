"""Throughput of multi-LoRA batches on this CPU: the kernels, vLLM's own, and the engine without LoRA.

    python -m tests.load.kernels [--rounds 5]

Two models: the shipped base, and a 1024-wide one with random weights. Every round starts the engines anew and asks
them in turn, so a ratio compares what ran within seconds, and its spread shows what a start is worth.
"""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.progress import track

from service.engine import LORA_MODULES
from service.lora_kernels import SWITCH
from service.verify import BaseShape
from shared.config import SHIPPED_BASE_MODEL, Settings
from shared.precision import cpu_dtype
from tests.load.engine_process import Batch, EngineProcess
from tests.load.results import Entry, compared, save

COMMAND = "python -m tests.load.kernels"
RANK = 16
MAX_LORAS = 8
LENGTH = 250
REPEATS = 3  # of each batch within a round
STOCK = Batch(n_prompts=16, length=LENGTH, adapters=4)
# Of the ceiling for the shipped base, of the engine without LoRA for the wide one.
TARGETS = {"tiny": {1: 0.95, 4: 0.88, 8: 0.80}, "wide": {1: 0.93, 4: 0.90, 8: 0.87}}
DECODE_TARGET = 0.75


@dataclass(frozen=True)
class Model:
    """A base model and adapters for it. `config` is its `config.json`."""

    name: str
    folder: Path
    config: dict[str, Any]
    adapters: tuple[Path, ...]
    n_prompts: int

    @property
    def batches(self) -> dict[str, dict[int, Batch]]:
        """Kind -> number of adapters -> batch."""
        n = self.n_prompts
        return {
            "prefill": {k: Batch(n, LENGTH, k) for k in (0, 1, 4, 8)},
            "decode": {k: Batch(n, 16, k, max_tokens=17) for k in (0, 4)},
        }

    @property
    def ceiling(self) -> float:
        """The share of its throughput that a model with LoRA could keep if every multiplication cost the same."""
        linears = BaseShape.from_config(self.config, base_hash="").linears.values()
        base = sum(n_in * n_out for n_in, n_out in linears)
        heads = self.config["num_attention_heads"] * self.config["head_dim"]
        attention = 2 * heads * LENGTH // 2  # scores and values, over half of the prompt on average
        lora = sum(RANK * (n_in + n_out) for n_in, n_out in linears)
        return float((base + attention) / (base + attention + lora))


def tiny_model(root: Path, n_adapters: int = MAX_LORAS) -> Model:
    """The base that evorec ships."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(SHIPPED_BASE_MODEL)
    return _with_adapters("tiny", SHIPPED_BASE_MODEL, model, root, n_prompts=64, n_adapters=n_adapters)


def wide_model(root: Path) -> Model:
    """1024 wide, 8 layers, random weights: speed does not ask what they say."""
    import torch
    from transformers import Qwen3Config, Qwen3ForCausalLM

    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=4096,
        hidden_size=1024,
        intermediate_size=3072,
        num_hidden_layers=8,
        num_attention_heads=16,
        num_key_value_heads=8,
        head_dim=128,
        tie_word_embeddings=True,
    )
    model = Qwen3ForCausalLM(config).to(torch.bfloat16)
    model.save_pretrained(root / "wide")
    return _with_adapters("wide", root / "wide", model, root, n_prompts=16)


def _with_adapters(
    name: str, folder: Path, model: Any, root: Path, n_prompts: int, n_adapters: int = MAX_LORAS
) -> Model:
    from peft import LoraConfig, get_peft_model

    from evolver.lora import TARGET_MODULES

    config = model.config.to_dict()
    lora = LoraConfig(
        r=RANK, lora_alpha=2 * RANK, target_modules=list(TARGET_MODULES), init_lora_weights=False, task_type="CAUSAL_LM"
    )
    adapted = get_peft_model(model, lora)
    folders = tuple(root / f"{name}-adapter-{n}" for n in range(n_adapters))
    for target in folders:
        adapted.save_pretrained(str(target))
    return Model(name, folder, config, folders, n_prompts)


def engine_options(model: Model) -> tuple[dict[str, Any], dict[str, Any]]:
    """The engine without LoRA, and with it."""
    plain = {
        "model": str(model.folder),
        "dtype": cpu_dtype(Settings().dtype),
        "max_model_len": 1024,
        "max_num_batched_tokens": 2048,
    }
    lora = {
        "enable_lora": True,
        "max_loras": MAX_LORAS,
        "max_lora_rank": RANK,
        "lora_target_modules": list(LORA_MODULES),
    }
    return plain, plain | lora


def measure(model: Model, rounds: int, logs: Path) -> list[Entry]:
    """All entries of one model. Two starts of the same engine differ, so every round starts both anew."""
    plain, lora = engine_options(model)
    seconds: dict[tuple[str, str, int], list[float]] = {}
    with EngineProcess(logs / "stock.log", lora, model.adapters, **{SWITCH: "0"}) as stock:
        stock.seconds(STOCK)
        # vLLM's own takes many times as long: once is enough to say so.
        stock_s = stock.seconds(STOCK)
    for _ in track(range(rounds), description=f"{model.name}: rounds"):
        with (
            EngineProcess(logs / "plain.log", plain) as without,
            EngineProcess(logs / "kernels.log", lora, model.adapters, **{SWITCH: "1"}) as kernels,
        ):
            for key, taken in _round(model, without, kernels).items():
                seconds.setdefault(key, []).append(taken)
            kernels.seconds(STOCK)
            kernels_s = kernels.seconds(STOCK)
    return [*_entries(model, seconds), _stock_entry(model, stock_s, kernels_s)]


def _round(model: Model, without: EngineProcess, kernels: EngineProcess) -> dict[tuple[str, str, int], float]:
    """(engine, kind of batch, adapters) -> median of the seconds that a batch takes."""
    asked: dict[tuple[str, str, int], tuple[EngineProcess, Batch]] = {}
    for kind, batches in model.batches.items():
        asked["without", kind, 0] = (without, batches[0])
        asked |= {("kernels", kind, n): (kernels, batch) for n, batch in batches.items()}
    for engine, batch in asked.values():  # the first batches compile, allocate and load adapters
        engine.seconds(batch)
    taken: dict[tuple[str, str, int], list[float]] = {key: [] for key in asked}
    for _ in range(REPEATS):
        for key, (engine, batch) in asked.items():
            taken[key].append(engine.seconds(batch))
    return {key: statistics.median(each) for key, each in taken.items()}


def _entries(model: Model, seconds: dict[tuple[str, str, int], list[float]]) -> Iterator[Entry]:
    yield compared(f"{model.name}: ceiling with LoRA (FLOPs)", "ratio", [model.ceiling], COMMAND)
    for (engine, kind, n), taken in seconds.items():
        batch = model.batches[kind][n]
        rates = [batch.n_prompts / s for s in taken]
        base_rates = [batch.n_prompts / s for s in seconds["without", kind, 0]]
        name = f"{model.name}, {kind}: "
        if engine == "without":
            yield compared(f"{name}engine without LoRA", "prompts/s", rates, COMMAND)
            continue
        target = DECODE_TARGET if kind == "decode" else TARGETS[model.name].get(n)
        if target and kind == "prefill" and model.name == "tiny":
            target *= model.ceiling
        yield compared(
            f"{name}{n} adapters mixed" if n else f"{name}base requests, LoRA enabled",
            "prompts/s",
            rates,
            COMMAND,
            baseline=f"{name}engine without LoRA",
            against=base_rates,
            target=target if n else None,
        )


def _stock_entry(model: Model, stock_s: float, kernels_s: float) -> Entry:
    return compared(
        f"{model.name}, prefill: vLLM's own LoRA, 4 adapters mixed, {STOCK.n_prompts} prompts",
        "prompts/s",
        [STOCK.n_prompts / stock_s],
        COMMAND,
        baseline="the kernels on the same prompts",
        against=[STOCK.n_prompts / kernels_s],
    )


def main(rounds: Annotated[int, typer.Option(min=1)] = 5, only: str = "tiny,wide") -> None:
    """Measure and write docs/results/performance.json."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        makers = {"tiny": tiny_model, "wide": wide_model}
        for name in only.split(","):
            save(f"kernels-{name}", measure(makers[name](root), rounds, root))


if __name__ == "__main__":
    typer.run(main)
