"""The LoRA kernels in the real engine, against transformers + PEFT in float32.

One batch mixes prompts of three adapters of different ranks and of the bare base model; prefill, decode and prompt
log-probabilities.
"""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from service.engine import LORA_MODULES
from service.lora_kernels import SWITCH, WRAPPER
from tests.tiny_base import CONFIG, RANK, write_adapter, write_base, write_weights

LABELS = (20, 21, 22, 300)
RANKS = (RANK, RANK // 2, 3)
# Log-probabilities over the whole vocabulary, for the two cases that answer and the one that reads whole prompts.
# float32: the order of summation. bfloat16: rounding in every layer; over hundreds of positions of whole prompts the
# tail is longer (seen on a processor that emulates it: 0.049 under an adapter, 0.025 for rows of the bare base).
TOLERANCES = {"float32": (1e-5, 1e-5, 1e-5), "bfloat16": (0.03, 0.03, 0.06)}
# (start, length, adapter or None). Long and short runs, neighbours of one adapter, base rows between adapters.
PROMPTS = [(1, 30, 0), (5, 130, 1), (9, 260, None), (13, 7, 2), (4, 90, 0), (8, 64, 0), (6, 200, None), (2, 1, 2)]
SHORT = [(start, 2, adapter) for start, adapter in enumerate([0, None, 2, 2, 1, 0, None, 1, 2, 0])]


def token_ids(start: int, length: int) -> list[int]:
    return [(start + 3 * step) % CONFIG["vocab_size"] for step in range(length)]


@dataclass(frozen=True)
class Models:
    """A base and adapters of different ranks for it."""

    base: Path
    adapters: tuple[Path, ...]

    def logprobs(self, ids: Sequence[int], adapter: int | None) -> list[list[float]]:
        """log p(next token) after every token, by transformers + PEFT in float32.  -> [T, V]"""
        import torch

        with torch.inference_mode():
            logits = self._model(adapter)(torch.tensor([list(ids)])).logits[0]
        rows: list[list[float]] = torch.log_softmax(logits, dim=-1).tolist()
        return rows

    @cache  # noqa: B019 - the fixture's one object lives as long as the module's tests
    def _model(self, adapter: int | None) -> Any:
        import torch
        from peft import PeftModel
        from transformers import AutoModelForCausalLM

        model = AutoModelForCausalLM.from_pretrained(self.base, dtype=torch.float32)
        return (model if adapter is None else PeftModel.from_pretrained(model, self.adapters[adapter])).eval()


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Models:
    root = tmp_path_factory.mktemp("models")
    base = write_weights(write_base(root / "base"))
    return Models(base, tuple(write_adapter(root / f"rank-{rank}", rank, base, rank=rank) for rank in RANKS))


def run_engine(models: Models, dtype: str, cases: Sequence[dict[str, Any]], **env: str) -> dict[str, Any]:
    """The answers of an engine process to each case, a batch at a time."""
    engine = {
        "model": str(models.base),
        "dtype": dtype,
        "max_model_len": 1024,
        "max_loras": 4,
        "max_lora_rank": RANK,
        "lora_target_modules": list(LORA_MODULES),
    }
    job = {"engine": engine, "adapters": [str(folder) for folder in models.adapters], "cases": cases}
    defaults = {
        SWITCH: "1",
        "VLLM_CPU_OMP_THREADS_BIND": str(min(os.sched_getaffinity(0))),
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_LOGGING_LEVEL": "WARNING",
    }
    out = models.base.parent / "answers.json"
    done = subprocess.run(
        [sys.executable, "-m", "tests.contract.lora_engine", str(out)],
        input=json.dumps(job),
        env={**os.environ, **defaults, **env},
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    answers: dict[str, Any] = json.loads(out.read_text())
    return answers


def case(shapes: Sequence[tuple[int, int, int | None]], **sampling: Any) -> dict[str, Any]:
    return {"prompts": [(token_ids(start, length), adapter) for start, length, adapter in shapes], "sampling": sampling}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_mixed_batches_equal_peft(models: Models, dtype: str) -> None:
    labels = {"logprob_token_ids": list(LABELS)}
    cases = [case(PROMPTS, max_tokens=4, **labels), case(SHORT, max_tokens=3, **labels)]
    cases.append(case(PROMPTS, max_tokens=1, prompt_logprobs=0))
    found = run_engine(models, dtype, cases)
    assert found["kernels"] == [WRAPPER]

    for asked, answers, allowed in zip(cases, found["answers"], TOLERANCES[dtype], strict=True):
        worst: dict[int | None, float] = {}
        for (ids, adapter), answer in zip(asked["prompts"], answers, strict=True):
            expected = models.logprobs([*ids, *answer["tokens"]], adapter)
            if "logprob_token_ids" in asked["sampling"]:
                compared = _decoded(answer, expected, len(ids))
                assert compared
            else:
                compared = _of_prompt(answer, expected)
                assert len(compared) == len(ids) - 1
            assert all(math.isfinite(mine) for mine, _ in compared)  # the larger of 0 and NaN is 0
            worst[adapter] = max([worst.get(adapter, 0.0), *(abs(mine - theirs) for mine, theirs in compared)])
        sys.stdout.write(f"{dtype}: largest difference in log-probability, by adapter: {worst}\n")
        assert worst.keys() == {None, *range(len(RANKS))}
        assert max(worst.values()) <= allowed


def _decoded(answer: dict[str, Any], expected: list[list[float]], start: int) -> list[tuple[float, float]]:
    """(served, expected) of the labels and of the token that was generated, at each step."""
    return [
        (entry[str(token)], expected[start - 1 + step][token])
        for step, (entry, generated) in enumerate(zip(answer["logprobs"], answer["tokens"], strict=True))
        for token in {*LABELS, generated}
    ]


def _of_prompt(answer: dict[str, Any], expected: list[list[float]]) -> list[tuple[float, float]]:
    """(served, expected) of the prompt's own tokens; the first has no prediction."""
    entries = (answer["prompt_logprobs"] or [])[1:]
    return [(value, expected[step][int(token)]) for step, entry in enumerate(entries) for token, value in entry.items()]


def test_the_switch_leaves_vllm_as_it_is(models: Models) -> None:
    found = run_engine(models, "float32", [case([(1, 3, 0)], max_tokens=1)], **{SWITCH: "0"})
    assert found["kernels"] == ["vllm.lora.punica_wrapper.punica_cpu.PunicaWrapperCPU"]
