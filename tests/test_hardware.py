import pytest
import torch

from sparsegen.common.hardware import has_bfloat16


@pytest.mark.parametrize(
    ("instructions", "allowed", "found"),
    [
        (True, None, True),
        (True, "ALL", True),
        (True, "AVX512_CORE_AMX", True),
        (True, "avx2", False),
        (True, "AVX512_CORE", False),
        (False, None, False),
    ],
)
def test_bfloat16_is_used_if_the_processor_supports_it_and_it_is_not_disabled(
    instructions: bool, allowed: str | None, found: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": instructions})
    monkeypatch.delenv("ONEDNN_MAX_CPU_ISA", raising=False)
    if allowed:
        monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", allowed)
    assert has_bfloat16("cpu") == found
    assert not has_bfloat16("meta")
