"""`EVOREC_DTYPE=auto` on a CPU."""

from __future__ import annotations

import pytest

from shared import precision


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ({"avx2", "fma"}, "float32"),
        ({"avx2", "avx512f", "avx512bw"}, "float32"),
        ({"avx512_bf16"}, "bfloat16"),
        ({"amx_bf16", "amx_tile"}, "bfloat16"),
        ({"asimd", "bf16"}, "bfloat16"),
        (set(), "float32"),
    ],
)
def test_auto_takes_bfloat16_only_where_the_processor_multiplies_it(
    flags: set[str], expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(precision, "_cpu_flags", lambda: frozenset(flags))
    assert precision.cpu_dtype("auto") == expected


@pytest.mark.parametrize("wanted", ["bfloat16", "float32", "float16"])
def test_what_is_set_stays(wanted: precision.Dtype) -> None:
    assert precision.cpu_dtype(wanted) == wanted
