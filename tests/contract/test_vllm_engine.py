"""The real engine: the contract, and vLLM's numbers against transformers + PEFT. One engine for all of it."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import pytest
import pytest_asyncio
from structlog.testing import capture_logs

from service.engine import start_engine
from service.lora_kernels import WRAPPER
from service.ports import EngineUnavailable, LoraHandle, RankingEngine
from shared.config import Settings
from tests.conftest import make_settings
from tests.contract.engine_contract import CONTRACT, LABELS, PROMPT, a_closed_engine_is_unavailable, handle
from tests.tiny_base import CONFIG, write_adapter, write_base, write_weights

pytestmark = pytest.mark.asyncio(loop_scope="module")

ADAPTERS = 3
# bfloat16 in vLLM against float32 in PEFT, in log-probability renormalised over the labels.
TOLERANCE = 0.06


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_weights(write_base(tmp_path_factory.mktemp("base")))


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory, base: Path) -> list[Path]:
    root = tmp_path_factory.mktemp("adapters")
    return [write_adapter(root / f"adapter-{seed}", seed, base) for seed in range(ADAPTERS)]


@pytest.fixture(scope="module")
def engine_settings(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Settings:
    return make_settings(base_model=str(base), state_dir=tmp_path_factory.mktemp("state"), max_model_len=1024)


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def engine(engine_settings: Settings) -> AsyncIterator[RankingEngine]:
    with capture_logs() as said, pytest.MonkeyPatch.context() as environment:
        # Images, and most machines that only serve, have no C++ compiler.
        environment.setenv("CXX", "/no/compiler")
        environment.setenv("TORCHINDUCTOR_CACHE_DIR", str(engine_settings.state_dir / "inductor"))
        built = await start_engine(engine_settings)
    # A plugin that fails to load is only logged by vLLM: the engine asks its workers what they use.
    assert {"event": "lora_kernels", "used": [WRAPPER]}.items() <= said[-1].items()
    yield built
    await built.close()


def reference(base: Path, folder: Path, prompts: Sequence[Sequence[int]]) -> list[list[float]]:
    """log p(label | prompt) over LABELS, by transformers + PEFT in float32."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32), folder).eval()
    answers = []
    with torch.inference_mode():
        for prompt in prompts:
            logits = model(torch.tensor([list(prompt)])).logits[0, -1, list(LABELS)]
            answers.append(torch.log_softmax(logits, dim=-1).tolist())
    return answers


async def test_label_log_probabilities_equal_peft_in_a_batch_that_mixes_adapters(
    engine: RankingEngine, base: Path, folders: Sequence[Path]
) -> None:
    prompts = [tuple((start + 3 * step) % CONFIG["vocab_size"] for step in range(length)) for start, length in
               ((1, 30), (5, 130), (9, 260), (13, 7))]  # fmt: skip
    loras = [handle(folder) for folder in folders]
    for lora in loras:
        await engine.add_adapter(lora)
    # Interleaved, all at once: every engine step holds rows of several adapters.
    calls: list[tuple[LoraHandle, Sequence[int]]] = [(lora, prompt) for prompt in prompts for lora in loras]
    served = await asyncio.gather(*(engine.rank(prompt, LABELS, lora) for lora, prompt in calls))
    by_call = dict(zip(((lora.lora_id, prompt) for lora, prompt in calls), served, strict=True))
    expected = [await asyncio.to_thread(reference, base, folder, prompts) for folder in folders]
    for lora, rows in zip(loras, expected, strict=True):
        for prompt, row in zip(prompts, rows, strict=True):
            assert by_call[lora.lora_id, tuple(prompt)] == pytest.approx(row, abs=TOLERANCE)
    for rows, others in itertools.combinations(expected, 2):
        # A mix-up of adapters could not hide in the tolerance.
        assert all(row != pytest.approx(other, abs=10 * TOLERANCE) for row, other in zip(rows, others, strict=True))
    for lora in loras:
        await engine.remove_adapter(lora)


async def test_an_adapter_that_was_removed_answers_alike_when_it_comes_back(
    engine: RankingEngine, folders: Sequence[Path]
) -> None:
    lora, other = handle(folders[0]), handle(folders[1])
    await engine.add_adapter(lora)
    before = await engine.rank(PROMPT * 8, LABELS, lora)
    await engine.add_adapter(other)
    await engine.remove_adapter(lora)
    between = await engine.rank(PROMPT * 8, LABELS, other)
    await engine.add_adapter(lora)
    assert await engine.rank(PROMPT * 8, LABELS, lora) == pytest.approx(before, abs=TOLERANCE)
    assert before != pytest.approx(between, abs=TOLERANCE)
    for each in (lora, other):
        await engine.remove_adapter(each)


@pytest.mark.parametrize(
    "clause", [each for each in CONTRACT if each is not a_closed_engine_is_unavailable], ids=lambda each: each.__name__
)
async def test_contract(clause: object, engine: RankingEngine, folders: Sequence[Path]) -> None:
    assert callable(clause)
    await clause(engine, folders)


async def test_contract_at_the_end(engine: RankingEngine, folders: Sequence[Path]) -> None:
    await a_closed_engine_is_unavailable(engine, folders)


async def test_a_base_that_cannot_be_loaded_is_said(engine_settings: Settings, tmp_path: Path) -> None:
    with pytest.raises(EngineUnavailable, match="vLLM did not start"):
        await start_engine(engine_settings.model_copy(update={"base_model": str(tmp_path)}))
