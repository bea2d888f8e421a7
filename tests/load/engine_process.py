"""A vLLM engine in a process of its own that answers timed batches: `EngineProcess` starts and asks it.

Several can be alive at once and are asked in turn, so that what is compared ran in the same minute on the same machine.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import psutil

from service.engine import engine_environment
from shared.config import Settings

READY, DONE = "evorec-ready", "evorec-done"
SETTLE_S = 0.3  # OpenMP's threads go on spinning for a moment after their last work


@dataclass(frozen=True)
class Batch:
    """`n_prompts` prompts of `length` tokens; `adapters`: how many, mixed prompt by prompt (0: the bare base)."""

    n_prompts: int
    length: int
    adapters: int
    max_tokens: int = 1


class EngineProcess:
    """Raises `RuntimeError` with the end of its log where the engine fails."""

    def __init__(self, log: Path, engine: dict[str, Any], adapters: Sequence[Path] = (), **env: str) -> None:
        self._log = log
        self._job = {"engine": engine, "adapters": [str(folder) for folder in adapters]}
        self._env = {**os.environ, **engine_environment(Settings()), "VLLM_ENABLE_V1_MULTIPROCESSING": "0", **env}

    def __enter__(self) -> Self:
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "tests.load.engine_process", json.dumps(self._job)],
                env=self._env,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
            )
        self._answer(READY)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.kill()
        self._process.wait()

    def seconds(self, batch: Batch) -> float:
        """How long the engine takes for the batch."""
        time.sleep(SETTLE_S)
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(vars(batch)) + "\n")
        self._process.stdin.flush()
        return float(self._answer(DONE))

    def memory_mib(self) -> float:
        """Resident memory of the engine and its processes, shared pages counted once (PSS)."""
        main = psutil.Process(self._process.pid)
        return sum(each.memory_full_info().pss for each in (main, *main.children(recursive=True))) / 2**20

    def _answer(self, word: str) -> str:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.startswith(word):
                return line.removeprefix(word).strip()
        raise RuntimeError(f"the engine ended; its log: {self._log.read_text()[-3000:]}")


def main() -> None:
    """The child: prints READY, then for every line of stdin DONE and the seconds."""
    from vllm import LLM, SamplingParams
    from vllm.lora.request import LoRARequest

    job = json.loads(sys.argv[1])
    llm = LLM(**job["engine"], enforce_eager=True, skip_tokenizer_init=True, enable_prefix_caching=False)
    vocabulary = llm.llm_engine.model_config.get_vocab_size()
    loras = [LoRARequest(f"adapter-{n}", n + 1, folder) for n, folder in enumerate(job["adapters"])]
    say(READY)
    for line in sys.stdin:
        batch = Batch(**json.loads(line))
        rng = random.Random(0)
        prompts = [
            {"prompt_token_ids": [rng.randrange(vocabulary) for _ in range(batch.length)]}
            for _ in range(batch.n_prompts)
        ]
        sampling = SamplingParams(temperature=0, max_tokens=batch.max_tokens, ignore_eos=True, detokenize=False)
        chosen = [loras[n % batch.adapters] if batch.adapters else None for n in range(batch.n_prompts)]
        began = time.perf_counter()
        llm.generate(prompts, sampling, lora_request=chosen if loras else None, use_tqdm=False)
        say(DONE, str(time.perf_counter() - began))


def say(*words: str) -> None:
    """One line to whoever started this process."""
    sys.stdout.write(" ".join(words) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
