"""The ranking engine: vLLM's AsyncLLM with LoRA adapters. Only this module and `lora_kernels` import vllm.

What looks roundabout here answers a measured trap of vLLM 0.32: an adapter is loaded by `add_lora` before any request
names it (a lazy load that fails kills the engine for everybody) and none beyond what the engine holds (it would drop
another, to be loaded lazily), a failed load is always followed by `remove_lora` (it may stay half-registered), no
prompt runs on the bare base (vLLM's own CPU kernels give such rows the last slot's adapter), every request asks for
log-probabilities in the same way, who waits for a call about adapters watches the engine as well (one that has died
never answers it), and nothing is in flight at `shutdown` (it would hang for ever).
"""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import threading
import uuid
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, TypeVar

import structlog

from service import lora_kernels
from service.ports import AdapterLoadFailed, AdapterNotLoaded, EngineFull, EngineUnavailable, LoraHandle, PromptTokens
from service.scoring import log_softmax
from shared.config import Settings
from shared.errors import InvalidInput
from shared.precision import cpu_dtype

log = structlog.get_logger(__name__)

T = TypeVar("T")

LORA_MODULES = ("qkv_proj", "o_proj", "gate_up_proj", "down_proj")
MAX_LABELS = 128
# vLLM compiles LoRA buffers for these ranks only.
LORA_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
# Tokens; vLLM's kernels for CPUs take multiples of it.
CPU_BLOCK = 32
DRAIN_S = 3.0
WATCH_S = 0.5
REPORT_S = 10.0


def engine_environment(settings: Settings) -> dict[str, str]:
    """Environment that vLLM, its plugin and torch read when they start; of all but the plugin's, what the user has set
    wins.
    """
    defaults = {
        # Left alone, vLLM keeps cores free for itself: one of two would idle.
        "VLLM_CPU_OMP_THREADS_BIND": ",".join(str(cpu) for cpu in sorted(os.sched_getaffinity(0))),
        "VLLM_CPU_KVCACHE_SPACE": str(settings.kv_cache_gib),
        # A fork of a process with running threads (Redis client, torch) may deadlock.
        "VLLM_WORKER_MULTIPROC_METHOD": "spawn",
        # vLLM compiles a small function of its sampler at the first ranking, and dies where there is no C++ compiler.
        "TORCH_COMPILE_DISABLE": "1",
        "VLLM_LOGGING_LEVEL": "WARNING",
        "VLLM_NO_USAGE_STATS": "1",
    }
    return {
        **{name: value for name, value in defaults.items() if name not in os.environ},
        lora_kernels.SWITCH: str(int(settings.lora_kernels)),
    }


def capacity(settings: Settings) -> int:
    """How many adapters the engine holds."""
    return max(settings.max_cpu_loras, settings.max_loras)


def engine_arguments(settings: Settings, *, on_cpu: bool) -> dict[str, Any]:
    """Arguments of vLLM's AsyncEngineArgs. `on_cpu`: whether vLLM runs on one here."""
    # A cache of prompts is kept by whole blocks: vLLM's 128 tokens for CPUs are a third of one of our prompts.
    memory = {"block_size": CPU_BLOCK} if on_cpu else {"gpu_memory_utilization": settings.gpu_memory_share}
    return {
        **memory,
        "model": settings.base_model,
        # Neither code nor pickles out of a model's repository.
        "trust_remote_code": False,
        "load_format": "safetensors",
        "dtype": cpu_dtype(settings.dtype) if on_cpu else settings.dtype,
        "max_model_len": settings.max_model_len,
        "seed": settings.seed,
        "enforce_eager": True,
        # Prompts come as token ids and answers as log-probabilities: the engine needs no tokenizer.
        "skip_tokenizer_init": True,
        "enable_lora": True,
        "max_loras": settings.max_loras,
        "max_cpu_loras": capacity(settings),
        "max_lora_rank": next(rank for rank in LORA_RANKS if rank >= settings.lora_rank),
        "lora_target_modules": list(LORA_MODULES),
        "worker_extension_cls": "service.lora_kernels.report.KernelReport",
        "max_logprobs": MAX_LABELS,
        "disable_log_stats": True,
    }


def _build(settings: Settings, abandoned: threading.Event) -> Any:
    """Blocks for some 15 s: imports vllm, starts its processes, loads the base model."""
    os.environ.update(engine_environment(settings))
    from vllm.engine.arg_utils import AsyncEngineArgs
    from vllm.platforms import current_platform
    from vllm.v1.engine.async_llm import AsyncLLM

    if abandoned.is_set():
        raise EngineUnavailable("nobody waits for this engine any more")
    return AsyncLLM.from_engine_args(AsyncEngineArgs(**engine_arguments(settings, on_cpu=current_platform.is_cpu())))


async def start_engine(settings: Settings) -> VllmEngine:
    """Builds the engine in a thread, so that health checks are answered meanwhile.

    A cancelled build ends the processes it has started. EngineUnavailable, with the cause, where it fails.
    """
    abandoned = threading.Event()
    building = asyncio.create_task(asyncio.to_thread(_build, settings, abandoned), name="vllm-build")
    try:
        llm = await asyncio.shield(building)
        await _log_lora_kernels(llm, settings)
        return VllmEngine(llm, capacity(settings))
    except asyncio.CancelledError:
        abandoned.set()
        await _end(building)
        raise
    except Exception as error:
        await _end(building)
        raise EngineUnavailable(f"vLLM did not start: {error}") from error


async def _log_lora_kernels(llm: Any, settings: Settings) -> None:
    """Say which code makes the LoRA products: a plugin that does not fit or fails to load leaves vLLM's own.

    Only a report: an engine whose workers cannot tell serves all the same.
    """
    try:
        async with asyncio.timeout(2 * REPORT_S):  # an engine that hangs already is found by its first check
            workers = await _while_alive(
                llm.collective_rpc("lora_kernels", timeout=REPORT_S), alive=lambda: not llm.errored
            )
    except Exception as error:
        log.warning("lora_kernels_unknown", error=repr(error))
        return
    used = sorted({name for worker in workers for name in worker})
    log.info("lora_kernels", used=used, dtype=str(llm.model_config.dtype))
    if settings.lora_kernels and any(name.startswith("vllm.") and name.endswith("CPU") for name in used):
        log.warning("slow_lora_kernels", used=used, hint="vLLM's own for CPUs, many times slower; its log says why")


async def _while_alive(call: Coroutine[Any, Any, T], alive: Callable[[], bool]) -> T:
    """The answer of one of vLLM's utility calls. EngineUnavailable where the engine dies: vLLM fails rankings alone."""
    answering = asyncio.create_task(call)
    try:
        while not answering.done():
            if not alive():
                raise EngineUnavailable("the engine has died")
            await asyncio.wait([answering], timeout=WATCH_S)
    finally:
        answering.cancel()
    return answering.result()


async def _end(building: asyncio.Task[Any]) -> None:
    """A thread cannot be cancelled; the build in it fails as soon as the engine's process is gone."""
    while not building.done():
        for child in multiprocessing.active_children():
            if child.name.startswith("EngineCore"):
                child.terminate()
        await asyncio.wait([building], timeout=0.2)
    if not building.cancelled() and building.exception() is None:
        await asyncio.to_thread(building.result().shutdown)


class VllmEngine:
    """`service.ports.RankingEngine` over an AsyncLLM that runs."""

    def __init__(self, llm: Any, capacity: int) -> None:
        self._llm = llm
        self._capacity = capacity
        self.prompt_tokens = PromptTokens()
        self._loaded: dict[int, LoraHandle] = {}
        self._loading = 0
        self._running: set[asyncio.Task[Any]] = set()
        self._answers = 0
        self._closed = False

    @property
    def alive(self) -> bool:
        return not self._closed and not self._llm.errored

    async def add_adapter(self, lora: LoraHandle) -> None:
        self._check_alive()
        if lora.lora_id in self._loaded:
            return
        if any(lora.name == other.name or lora.path == other.path for other in self._loaded.values()):
            raise AdapterLoadFailed(f"adapter {lora.name}: its name or path is loaded already under another id")
        held = len(self._loaded) + self._loading
        if held >= self._capacity:
            raise EngineFull(
                f"adapter {lora.name}: the engine holds {held} adapters, as many as fit; raise EVOREC_MAX_CPU_LORAS"
            )
        self._loading += 1
        try:
            await self._load(lora)
        finally:
            self._loading -= 1

    async def _load(self, lora: LoraHandle) -> None:
        try:
            accepted = await self._answer(self._llm.add_lora(_lora_request(lora)))
        except Exception as error:
            await self._forget(lora)
            self._check_alive()
            raise AdapterLoadFailed(f"adapter {lora.name}: {error}") from error
        if not accepted:
            await self._forget(lora)
            raise AdapterLoadFailed(f"adapter {lora.name}: vLLM declined it")
        self._loaded[lora.lora_id] = lora

    async def remove_adapter(self, lora: LoraHandle) -> None:
        if self._loaded.pop(lora.lora_id, None) is not None:
            await self._forget(lora)

    async def _forget(self, lora: LoraHandle) -> None:
        if not self.alive:
            return
        try:
            await self._answer(self._llm.remove_lora(lora.lora_id))
        except Exception as error:
            log.warning("adapter_not_removed", adapter=lora.name, error=repr(error))

    async def _answer(self, call: Coroutine[Any, Any, T]) -> T:
        answer = await _while_alive(call, alive=lambda: self.alive)
        self._answers += 1
        return answer

    async def rank(self, token_ids: Sequence[int], label_ids: Sequence[int], lora: LoraHandle) -> list[float]:
        if not 1 <= len(label_ids) <= MAX_LABELS:
            raise InvalidInput(f"{len(label_ids)} labels; one call ranks 1 to {MAX_LABELS}")
        self._check_alive()
        if self._loaded.get(lora.lora_id) != lora:
            raise AdapterNotLoaded(f"adapter {lora.name} is not loaded")
        # A task of its own, which `close` may cancel: its caller gets an error to answer with.
        call = asyncio.create_task(self._label_logprobs(token_ids, label_ids, lora))
        self._running.add(call)
        call.add_done_callback(self._running.discard)
        try:
            logprobs = await call
        except asyncio.CancelledError:
            if (caller := asyncio.current_task()) is not None and caller.cancelling():
                raise
            raise EngineUnavailable("the engine is closed") from None
        self._answers += 1
        return log_softmax([logprobs[label].logprob for label in label_ids])

    async def check(self) -> None:
        """vLLM answers calls in their order, and adapters that load before this one may take minutes.

        No timeout of vLLM's own: it would take a late answer for that of the next call.
        """
        self._check_alive()
        before = self._answers
        call = asyncio.create_task(self._answer(self._llm.collective_rpc("check_health")))
        try:
            while not call.done() and self._answers == before:
                await asyncio.wait([call], timeout=WATCH_S)
            if call.done():
                call.result()
        finally:
            call.cancel()

    async def _label_logprobs(
        self, token_ids: Sequence[int], label_ids: Sequence[int], lora: LoraHandle
    ) -> dict[int, Any]:
        from vllm.exceptions import VLLMValidationError
        from vllm.inputs.engine import tokens_input
        from vllm.sampling_params import RequestOutputKind, SamplingParams
        from vllm.v1.engine.exceptions import EngineDeadError

        try:
            params = SamplingParams(
                temperature=0,
                max_tokens=1,
                logprob_token_ids=list(label_ids),
                detokenize=False,
                output_kind=RequestOutputKind.FINAL_ONLY,
            )
            outputs = self._llm.generate(
                tokens_input(list(token_ids)), params, request_id=uuid.uuid4().hex, lora_request=_lora_request(lora)
            )
            answers = [answer async for answer in outputs]
        except VLLMValidationError as error:
            raise InvalidInput(f"the engine cannot rank this prompt: {error}") from error
        except EngineDeadError as error:
            raise EngineUnavailable("the engine has died") from error
        if not answers or not answers[-1].outputs[0].logprobs:
            raise EngineUnavailable("the engine gave no answer")
        self.prompt_tokens.asked += len(token_ids)
        self.prompt_tokens.cached += answers[-1].num_cached_tokens or 0
        found: dict[int, Any] = answers[-1].outputs[0].logprobs[0]
        return found

    def _check_alive(self) -> None:
        if not self.alive:
            raise EngineUnavailable("the engine is closed" if self._closed else "the engine has died")

    async def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        if self._running:
            await asyncio.wait(self._running, timeout=DRAIN_S)
        for task in list(self._running):
            task.cancel()
        if self._running:
            await asyncio.wait(self._running, timeout=1.0)
        llm, self._llm = self._llm, None
        await asyncio.to_thread(llm.shutdown)
        # Its finalizer would shut down once more when half of vllm is gone: a traceback for nothing.
        llm.shutdown = lambda: None


def _lora_request(lora: LoraHandle) -> Any:
    from vllm.lora.request import LoRARequest

    return LoRARequest(lora.name, lora.lora_id, str(lora.path))
