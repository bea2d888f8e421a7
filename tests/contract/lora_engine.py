"""`python -m tests.contract.lora_engine OUT`: an engine of its own that answers batches of cases; JSON in and out.

A process of its own, because vLLM's plugins are chosen once per process. On stdin:
    {"engine": {AsyncEngineArgs...}, "adapters": [folder...], "cases": [{"sampling": {...}, "prompts": [[ids, adapter
    index or null]...]}...]}
In the file OUT (stdout is vLLM's): for each case and prompt {"tokens": [...], "logprobs": [{id: p}...],
"prompt_logprobs": [...]}, and the class that made the LoRA products.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any


def _numbers(entries: Any) -> list[dict[int, float] | None] | None:
    if entries is None:
        return None
    return [None if entry is None else {int(i): p.logprob for i, p in entry.items()} for entry in entries]


def main() -> None:
    from vllm import LLM, SamplingParams
    from vllm.lora.request import LoRARequest

    job = json.load(sys.stdin)
    llm = LLM(
        **job["engine"],
        enforce_eager=True,
        skip_tokenizer_init=True,
        enable_lora=True,
        enable_prefix_caching=False,
        worker_extension_cls="service.lora_kernels.report.KernelReport",
    )
    loras = [LoRARequest(f"adapter-{n}", n + 1, folder) for n, folder in enumerate(job["adapters"])]
    answers = []
    for case in job["cases"]:
        outputs = llm.generate(
            [{"prompt_token_ids": ids} for ids, _ in case["prompts"]],
            SamplingParams(temperature=0, detokenize=False, **case["sampling"]),
            lora_request=[None if adapter is None else loras[adapter] for _, adapter in case["prompts"]],
            use_tqdm=False,
        )
        answers.append(
            [
                {
                    "tokens": list(output.outputs[0].token_ids),
                    "logprobs": _numbers(output.outputs[0].logprobs),
                    "prompt_logprobs": _numbers(output.prompt_logprobs),
                }
                for output in outputs
            ]
        )
    Path(sys.argv[1]).write_text(json.dumps({"kernels": llm.collective_rpc("lora_kernels")[0], "answers": answers}))


if __name__ == "__main__":
    main()
